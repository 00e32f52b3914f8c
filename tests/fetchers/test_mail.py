"""Mails as text, against mails written by hand and by the standard library."""

from __future__ import annotations

from email.message import EmailMessage

import pytest

from edgeforge.fetchers._mail import read_mail


def mail(text: str, encoding: str = "utf-8") -> bytes:
    return text.encode(encoding)


def test_only_subject_and_body_stay() -> None:
    found = read_mail(
        b"From a@b  Mon\nReceived: from x\nX-Spam-Status: Yes\nSubject: Hello\n there \n\nFirst.\n\n\n\nSecond.  \n"
    )
    assert found.subject == "Hello there"
    assert found.body == "First.\n\nSecond."


def test_what_the_standard_library_writes_is_read() -> None:
    message = EmailMessage()
    message["Subject"] = "Caf\u00e9 \u2615 " + "long " * 30
    message.set_content("Body with \u00fcmlauts and \u4f60\u597d\n")
    message.add_alternative("<p>not <b>this</b></p>", subtype="html")
    message.add_attachment("a secret", filename="a.txt")
    message.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="a.png")
    found = read_mail(message.as_bytes())
    assert found.subject == ("Caf\u00e9 \u2615 " + "long " * 30).strip()
    assert found.body == "Body with \u00fcmlauts and \u4f60\u597d"


def test_html_alone_becomes_text() -> None:
    message = EmailMessage()
    message.set_content(
        "<html><head><title>T</title><style>p {}</style><script>if (a < b) x()</script></head><body>"
        "<p>Buy V<!-- hidden -->iag<b></b>ra&nbsp;now &amp; save\nmoney</p><div>x<br>y</div>"
        "<table><tr><td>one</td><td>two</td></tr></table>1 < 2<!-- the end",
        subtype="html",
    )
    assert read_mail(message.as_bytes()).body == "T\n\nBuy Viagra now & save money\n\nx\ny\n\none two\n\n1 < 2"


def test_html_that_calls_itself_plain_text() -> None:
    assert read_mail(b"Subject: x\n\n \n<HTML><BODY>Hi<BR>you</BODY></HTML>").body == "Hi\nyou"
    assert read_mail(b"Subject: x\n\n<john@x.org> wrote: <b>").body == "<john@x.org> wrote: <b>"


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_an_empty_alternative_is_passed_over(kind: str) -> None:
    message = EmailMessage()
    message.set_content(" \n")
    message.add_alternative("something", subtype=kind)
    assert read_mail(message.as_bytes()).body == "something"


@pytest.mark.parametrize(
    ("content", "charset"),
    [
        ("na\u00efve".encode("latin-1"), "iso-8859-1"),
        ("na\u00efve".encode("latin-1"), "us-ascii"),  # not what it says
        ("na\u00efve".encode(), "us-ascii"),
        ("na\u00efve".encode(), "no-such-charset"),
        ("na\u00efve".encode(), "base64"),  # a codec, but not of text
    ],
)
def test_the_character_set_is_what_it_says_or_what_it_can_be(content: bytes, charset: str) -> None:
    raw = b"Subject: " + content + b"\nContent-Type: text/plain; charset=" + charset.encode() + b"\n\n" + content
    assert (read_mail(raw).subject, read_mail(raw).body) == ("na\u00efve", "na\u00efve")


def test_characters_that_are_not_seen_are_dropped() -> None:
    raw = mail(
        "Subject: x\nContent-Type: text/plain; charset=utf-8\n\na\u200bb\0c\u2028d\te\u00a0\u00a0f\r\ng\u00adh\ufeff"
    )
    assert read_mail(raw).body == "abcd e f\ngh"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe\0\0",
        b"Subject: =?utf-8?b?!!!?=\nContent-Transfer-Encoding: base64\n\n!!!",
        b"Content-Type: multipart/mixed; boundary=x\n\nno parts",
        b"Content-Type: multipart/alternative; boundary=x\n\n--x\n--x--",
        b"Content-Type: message/rfc822\n\n",
        b"Content-Type: text/plain; charset*=x'y\n\n\x80\x81",
    ],
)
def test_damaged_mails_are_read_as_far_as_they_go(raw: bytes) -> None:
    found = read_mail(raw)
    (found.subject + found.body).encode()
