"""The store: whole or absent, checked when opened, shared without harm."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.store import CHECKPOINT, Store

KEY = "k" * 64


def make(store: Store, key: str = KEY, content: bytes = b"weights") -> None:
    draft = store.draft(key, "train", parents={"model": "p"}, recipe={"epochs": 1})
    (draft.path / "deep").mkdir()
    (draft.path / "deep" / "model.safetensors").write_bytes(content)
    (draft.path / "config.json").write_text("{}")
    store.seal(draft, "torch", {"params": 3}, 1.5)


def test_what_was_sealed_is_opened_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.has(KEY)
    assert store.open(KEY) is None
    make(store)
    artifact = store.open(KEY)
    assert artifact is not None
    assert store.has(KEY)
    assert (artifact.kind, artifact.format, artifact.facts, artifact.seconds) == ("train", "torch", {"params": 3}, 1.5)
    assert sorted(artifact.files) == ["config.json", "deep/model.safetensors"]
    assert artifact.size_bytes == len(b"weights") + 2
    assert not list((tmp_path / "drafts").iterdir())


def test_the_digest_is_the_documented_one(tmp_path: Path) -> None:
    import hashlib

    store = Store(tmp_path)
    make(store)
    artifact = store.open(KEY)
    assert artifact is not None
    lines = "".join(
        f"{name} {hashlib.sha256(content).hexdigest()}\n"
        for name, content in [("config.json", b"{}"), ("deep/model.safetensors", b"weights")]
    )
    assert artifact.digest == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("damage", ["truncated", "edited", "lost", "added", "manifest", "no manifest", "other key"])
def test_a_damaged_artifact_is_set_aside_and_made_anew(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    make(store)
    folder = tmp_path / "sealed" / KEY
    model, manifest = folder / "deep" / "model.safetensors", folder / "artifact.json"
    if damage == "truncated":
        os.truncate(model, 3)
    elif damage == "edited":
        model.write_bytes(b"Weights")
    elif damage == "lost":
        model.unlink()
    elif damage == "added":
        (folder / "extra.bin").write_bytes(b"x")
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "key": "x" * 64}))
    assert store.open(KEY) is None
    assert not store.has(KEY)
    make(store)
    assert store.open(KEY) is not None


def test_a_draft_keeps_its_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    draft = store.draft(KEY, "train", parents={}, recipe={})
    (draft.path / CHECKPOINT).mkdir()
    (draft.path / CHECKPOINT / "state.json").write_text("{}")
    (draft.path / "half.safetensors").write_bytes(b"x")
    (draft.path / "half").mkdir()
    draft = store.draft(KEY, "train", parents={}, recipe={})
    assert [path.name for path in draft.path.iterdir()] == [CHECKPOINT]
    (draft.path / "model.safetensors").write_bytes(b"whole")
    artifact = store.seal(draft, "torch", {}, 0.0)
    assert list(artifact.files) == ["model.safetensors"]


def test_killed_while_sealing_leaves_all_of_a_checkpoint_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    draft = store.draft(KEY, "train", parents={}, recipe={})
    whole = draft.path / CHECKPOINT / "step-000000010"
    whole.mkdir(parents=True)
    for name in ("state.json", "trainee.safetensors"):
        (whole / name).write_text("1")

    def killed(folder: Path) -> None:
        next(folder.rglob("trainee.safetensors")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as changed, pytest.raises(KeyboardInterrupt):
        changed.setattr("edgeforge.store.shutil.rmtree", killed)
        store.seal(draft, "torch", {}, 0.0)
    again = store.draft(KEY, "train", parents={}, recipe={})
    assert list(again.path.iterdir()) == []


def test_sealing_again_replaces(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make(store)
    make(store, content=b"other")
    artifact = store.open(KEY)
    assert artifact is not None
    assert (artifact.path / "deep" / "model.safetensors").read_bytes() == b"other"


def test_a_fact_that_is_no_json_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    draft = store.draft(KEY, "train", parents={}, recipe={})
    with pytest.raises(ValueError, match="JSON"):
        store.seal(draft, "torch", {"loss": float("nan")}, 0.0)
    assert not store.has(KEY)


def test_the_lock_makes_the_second_wait(tmp_path: Path) -> None:
    store, order = Store(tmp_path), []

    def second() -> None:
        with Store(tmp_path).lock(KEY, waiting=lambda: order.append("waits")):
            order.append("second")

    with store.lock(KEY):
        thread = threading.Thread(target=second)
        thread.start()
        while not order:
            time.sleep(0.01)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["waits", "first", "second"]


def _hold(root: Path, ready: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    with Store(root).lock(KEY):
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    began = time.monotonic()
    with Store(tmp_path).lock(KEY):
        assert time.monotonic() - began < 5


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="cannot be written") as caught:
        Store(tmp_path / "file" / "store")
    assert "--store" in (caught.value.remedy or "")
