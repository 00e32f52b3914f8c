"""Content-addressed artifacts: has / draft / seal / open.

Layout of a store: ``sealed/<key>/`` (immutable; ``artifact.json`` inside), ``drafts/<key>/`` (being written;
survives a kill, so that a stage can go on from its checkpoint), ``locks/<key>.lock``, ``damaged/`` (what did not
match its digest, kept for the user to look at).

A folder under ``sealed/`` appears by one rename, after every file in it was flushed to disk: it is whole or absent.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from edgeforge.core.artifact import MANIFEST, Artifact, digest_files, hash_folder
from edgeforge.core.errors import EnvironmentProblem

CHECKPOINT = "checkpoint"


@dataclass
class Draft:
    """A step's folder while it is written, and what will stand in its manifest."""

    key: str
    kind: str
    path: Path
    parents: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """Artifacts on one disk, shared by any number of runs and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            for name in ("sealed", "drafts", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True)
            # A probe: mkdir succeeds on folders that exist but cannot be written.
            probe = root / "locks" / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise EnvironmentProblem(
                f"the store cannot be written: {error.strerror}",
                where=str(root),
                remedy="choose another folder with --store",
            ) from error

    def has(self, key: str) -> bool:
        """Whether a sealed artifact with this key is there. Its content is checked by `open`, not here."""
        return (self.root / "sealed" / key / MANIFEST).is_file()

    def open(self, key: str) -> Artifact | None:
        """The sealed artifact, its digests checked; None where it is absent or damaged.

        A damaged artifact (truncated, edited, files added or lost) is moved to ``damaged/``, so that it is rebuilt.
        """
        path = self.root / "sealed" / key
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            artifact = Artifact(path=path, **manifest)
            whole = artifact.key == key and dict(artifact.files) == hash_folder(path)
            whole = whole and artifact.digest == digest_files(artifact.files)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError):
            whole = False
        if whole:
            return artifact
        self._set_aside(path)
        return None

    def _set_aside(self, path: Path) -> None:
        bin_folder = self.root / "damaged"
        bin_folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another run set it aside first
            path.rename(bin_folder / f"{path.name}-{time.time_ns()}")

    @contextmanager
    def lock(self, key: str, *, waiting: Any = None) -> Iterator[None]:
        """Hold the key: whoever else wants to build the same artifact waits. `waiting()` is called once if so.

        The operating system frees the lock when its holder dies, kill -9 included.
        """
        lock = FileLock(self.root / "locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def draft(self, key: str, kind: str, *, parents: Mapping[str, str], recipe: Mapping[str, Any]) -> Draft:
        """The folder to write this artifact in. Only ``checkpoint/`` is kept from an interrupted attempt."""
        path = self.root / "drafts" / key
        path.mkdir(parents=True, exist_ok=True)
        for item in path.iterdir():
            if item.name != CHECKPOINT:
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        return Draft(key, kind, path, parents, recipe)

    def seal(self, draft: Draft, made: str, facts: Mapping[str, Any], seconds: float) -> Artifact:
        """Hash, flush and rename a finished draft of format `made`. From here on it is immutable."""
        _discard(draft.path / CHECKPOINT)
        files = hash_folder(draft.path)
        target = self.root / "sealed" / draft.key
        artifact = Artifact(
            key=draft.key,
            kind=draft.kind,
            format=made,
            path=target,
            digest=digest_files(files),
            files=files,
            parents=dict(draft.parents),
            recipe=dict(draft.recipe),
            facts=dict(facts),
            seconds=seconds,
        )
        manifest = {name: value for name, value in asdict(artifact).items() if name != "path"}
        text = json.dumps(manifest, indent=1, allow_nan=False)
        (draft.path / MANIFEST).write_text(text, encoding="utf-8")
        for name in [*files, MANIFEST]:
            _flush(draft.path / name)
        for folder in {draft.path, *((draft.path / name).parent for name in files)}:
            _flush(folder)
        if target.exists():
            self._set_aside(target)
        draft.path.rename(target)
        _flush(target.parent)
        return artifact


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint so that a kill leaves all of it or nothing: the next attempt must not go on from a part."""
    removed = checkpoint.with_name(f"{checkpoint.name}.removed")
    if checkpoint.is_dir():
        checkpoint.rename(removed)
        shutil.rmtree(removed)
