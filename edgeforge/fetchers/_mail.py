"""A raw e-mail -> its subject and its body as plain text.

The standard library splits a mail into its parts. HTML becomes text by the rules below, and not by `html.parser`,
whose reading of broken markup differs between Python releases: what a fetcher writes must not.
"""

from __future__ import annotations

import binascii
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.header import decode_header
from email.message import Message

# Some senders call their HTML plain text.
_HTML = re.compile(
    r"\s*<(?:!doctype|html|head|body|title|meta|style|table|center|div|p|font|img|a)\b[^<>]*>", re.IGNORECASE
)
_INVISIBLE = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|<!--.*", re.IGNORECASE | re.DOTALL)
_LINE_ENDS = re.compile(
    r"</?(?:address|blockquote|br|center|dd|div|dl|dt|form|h[1-6]|hr|li|ol|p|pre|table|title|tr|ul)\b[^<>]*>", re.I
)
_CELL_ENDS = re.compile(r"</t[dh]\b[^<>]*>", re.IGNORECASE)
_TAGS = re.compile(r"</?[a-z!?][^<>]*>", re.IGNORECASE)

# Control characters, what is not a character, and characters of no width: spammers hide words with them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff\ufffe\uffff]"
)
_BLANKS = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n{3,}")
# The report that SpamAssassin put into a few of these mails would tell the answer.
_REPORT = re.compile(r"^SPAM:(?: .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Mail:
    """What a reader sees of a mail: `subject` in one line, `body` in lines without outer blanks; either may be ''."""

    subject: str
    body: str


def read_mail(raw: bytes) -> Mail:
    """Decode one mail. Never raises: of a damaged mail, what can be read is kept."""
    message = message_from_bytes(raw)
    body = "\n\n".join(text for text in _texts(message) if text)
    return Mail(" ".join(_plain(_subject(message)).split()), _plain(_REPORT.sub("", body)))


def _subject(message: Message) -> str:
    for name, value in message.raw_items():
        if name.lower() == "subject":
            # Bytes above 127 stand in `value` as surrogates.
            written = _decoded(str(value).encode("ascii", "surrogateescape"), None)
            try:
                pieces = decode_header(written)
            except (ValueError, binascii.Error):
                return written
            return "".join(_decoded(text, charset) if isinstance(text, bytes) else text for text, charset in pieces)
    return ""


def _texts(message: Message) -> Iterator[str]:
    """The texts that a mail program shows, in order; of alternatives only one, plain text before HTML."""
    if message.is_multipart():
        parts = [part for part in message.get_payload() if isinstance(part, Message)]
        shown = [(part.get_content_type(), list(_texts(part))) for part in parts]
        if message.get_content_type() == "multipart/alternative":
            filled = [(kind, texts) for kind, texts in shown if any(map(str.strip, texts))]
            shown = ([one for one in filled if one[0] == "text/plain"] or filled)[:1]
        for _, texts in shown:
            yield from texts
    elif message.get_content_maintype() == "text" and message.get_filename() is None:
        content = message.get_payload(decode=True)
        text = _decoded(content if isinstance(content, bytes) else b"", message.get_content_charset())
        yield _from_html(text) if message.get_content_subtype() == "html" or _HTML.match(text) else text


def _decoded(content: bytes, charset: str | None) -> str:
    """As the mail says it is written, else as UTF-8, else as Windows writes Western European text."""
    for name in (charset, "utf-8"):
        try:
            if name is not None:
                return content.decode(name)
        except (LookupError, ValueError):  # unknown, or not what the mail says
            continue
    return content.decode("windows-1252", "replace")


def _from_html(text: str) -> str:
    text = _INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\n", " "))
    text = _CELL_ENDS.sub(" ", _LINE_ENDS.sub("\n", text))
    return html.unescape(_TAGS.sub("", text))


def _plain(text: str) -> str:
    """Without unseen characters; blanks, and more than one empty line, drawn together."""
    text = _UNSEEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = "\n".join(_BLANKS.sub(" ", line).strip() for line in text.split("\n"))
    return _EMPTY_LINES.sub("\n\n", lines).strip()
