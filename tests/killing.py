"""Run a pipeline again and again, killing it at random points, until it ends; print the digest of every artifact.

A process of its own: it imports what a run needs once, then forks a child for each attempt, so that an attempt costs
its work and not its imports. `python tests/killing.py PIPELINE STORE OUT KILLS SEED` prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import accelerate  # noqa: F401  imported before the forks
import onnxruntime  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
import torch_pruning  # noqa: F401
import transformers  # noqa: F401

from edgeforge.pipeline import load
from edgeforge.plan import build
from edgeforge.run import execute
from edgeforge.store import Store


class Silent:
    def started(self, step: object, number: int, of: int) -> None:
        pass

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def finished(self, step: object, result: object) -> None:
        pass

    def warn(self, message: str) -> None:
        pass


def attempt(pipeline: Path, store: Path, out: Path, *, kill_after: float | None) -> bool:
    """One attempt in a forked child; whether it ended by itself, well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            outcome = execute(build(load(pipeline)), Store(store), out, watcher=Silent())
            code = 0 if outcome.error is None else 3
            if outcome.error is not None:
                print(outcome.error, file=sys.stderr)
        finally:
            os._exit(code)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
                sys.exit(f"an attempt failed with exit code {os.WEXITSTATUS(status)}")
            return os.WIFEXITED(status)
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.005)


def main() -> None:
    pipeline, store, out, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:])
    rng = random.Random(seed)
    killed = 0
    while killed < kills and not attempt(pipeline, store, out, kill_after=rng.uniform(0.05, 4.0)):
        killed += 1
    if not attempt(pipeline, store, out, kill_after=None):
        sys.exit("the last attempt was killed by something else")
    plan, opened = build(load(pipeline)), Store(store)
    artifacts = {step.name: opened.open(step.key) for step in plan.steps}
    digests = {name: artifact.digest if artifact else None for name, artifact in artifacts.items()}
    print(json.dumps({"killed": killed, "digests": digests}))


if __name__ == "__main__":
    main()
