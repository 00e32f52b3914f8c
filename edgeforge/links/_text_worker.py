"""Jobs of `_worker` for language models, in the same protocol.

- ``start``: load one model, read the prompt, write -> ``{"start": {load_ms, first_inference_ms, peak_rss_mb}, ...}``.
- ``race``: open every model; in shuffled rounds each reads the prompt and writes, and memory is read beside them ->
  a ``{"round": {subject: ms per token}, "prefill_ms": {subject: ms}, "memory_gb_per_s": ...}`` after each.
- ``speculate``: the subject ``draft`` drafts for ``teacher`` -> a ``{"run": {...}}`` for every text that was written.

As llama-bench does, writing begins with an empty memory, and the tokens that are read are not those that were chosen:
the prompt's are taken in turn, the same for every model. What is chosen is looked for each time, and thrown away.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeforge.links._memory import Memory
from edgeforge.links._worker import Clock, peak_rss_bytes
from edgeforge.runtimes._llama import speculative

if TYPE_CHECKING:
    from edgeforge.runtimes import TextSession

Say = Callable[[Mapping[str, Any]], None]
Opened = Mapping[str, Any]

COST_SAMPLES = 9
"""How often each cost of speculation is measured; their median counts."""


def start(job: Mapping[str, Any], opened: Opened, say: Say) -> None:
    """Load the one subject, let it read the prompt and write, with every library already imported."""
    (subject,) = job["subjects"].values()
    prompt = _prompt(job)
    clock = Clock()
    begin = clock.now_ns()
    session: TextSession = opened[subject["runtime"]](Path(subject["folder"]), job["threads"])
    loaded = clock.now_ns()
    token = session.prefill(prompt, room=job["new_tokens"])
    answered = clock.now_ns()
    for _ in range(job["new_tokens"]):
        token = session.decode(token)
    found = {
        "load_ms": (loaded - begin) / 1e6,
        "first_inference_ms": (answered - loaded) / 1e6,
        "peak_rss_mb": peak_rss_bytes() / 1e6,
    }
    say({"start": found, "processor_s": time.process_time()})


def race(job: Mapping[str, Any], opened: Opened, say: Say) -> None:
    """Time all subjects, and the memory, in rounds of shuffled order."""
    parent = os.getppid()
    prompt = _prompt(job)
    clock = Clock()
    laps = {
        name: TextLap(opened[subject["runtime"]](Path(subject["folder"]), job["threads"]), prompt, job, clock)
        for name, subject in job["subjects"].items()
    }
    memory = Memory(job["threads"], clock)
    shuffle = random.Random(job["seed"]).sample
    gc.collect()
    gc.disable()
    for number in range(-job["warmup"], job["samples"]):
        if os.getppid() != parent:
            sys.exit("whoever asked for this benchmark is gone")
        found = {name: laps[name].sample() for name in shuffle(sorted(laps), k=len(laps))}
        gb_per_s = memory.gb_per_s()
        if number >= 0:
            say(
                {
                    "round": {name: token for name, (_, token) in found.items()},
                    "prefill_ms": {name: prefill for name, (prefill, _) in found.items()},
                    "memory_gb_per_s": gb_per_s,
                }
            )
    for name, seconds in job.get("sustained", {}).items():
        for at_s, token_ms in laps[name].sustained(seconds):
            say({"sustained": {"subject": name, "at_s": at_s, "latency_ms": token_ms}})
    conditions = {"memory": memory.described(), "prompt_tokens": len(prompt), "new_tokens": job["new_tokens"]}
    end = {"calls_per_sample": {}, "waiting_share": clock.waiting_share(), "conditions": conditions}
    say({"end": end, "processor_s": time.process_time()})


class TextLap:
    """Takes samples of one session."""

    def __init__(self, session: TextSession, prompt: list[int], job: Mapping[str, Any], clock: Clock) -> None:
        self.session, self.prompt, self.clock = session, prompt, clock
        self.new_tokens: int = job["new_tokens"]

    def sample(self) -> tuple[float, float]:
        """Milliseconds to read the prompt and choose what follows, and for each token that is then written."""
        begin = self.clock.now_ns()
        # As much room as writing takes: asking for more in between would make a new memory.
        self.session.prefill(self.prompt, room=self.new_tokens)
        return (self.clock.now_ns() - begin) / 1e6, self._write_ms()

    def sustained(self, seconds: float) -> Iterator[tuple[float, float]]:
        """(seconds since its begin, ms for each token), one text after the other without a pause."""
        begin, at_s = time.perf_counter(), 0.0
        while at_s < seconds:
            yield at_s, self._write_ms()
            at_s = time.perf_counter() - begin

    def _write_ms(self) -> float:
        tokens = itertools.islice(itertools.cycle(self.prompt), 1, 1 + self.new_tokens)
        decode = self.session.decode
        self.session.prefill(self.prompt[:1], room=self.new_tokens)
        begin = self.clock.now_ns()
        for token in tokens:
            decode(token)
        elapsed = self.clock.now_ns() - begin
        self.session.clear()
        return elapsed / self.new_tokens / 1e6


def speculate(job: Mapping[str, Any], opened: Opened, say: Say) -> None:
    """Each prompt, in each of so many rounds: written plainly, and with drafts of each length, in shuffled order."""
    parent = os.getppid()
    prompts: list[list[int]] = json.loads(Path(job["inputs"]).read_text(encoding="utf-8"))
    sessions = {
        name: opened[subject["runtime"]](Path(subject["folder"]), job["threads"])
        for name, subject in job["subjects"].items()
    }
    clock = Clock()
    pair = speculative.Pair(sessions["teacher"], sessions["draft"], room=job["new_tokens"] + max(job["lengths"]) + 1)
    chance = random.Random(job["seed"])
    costs = _costs(pair, prompts[0], max(job["lengths"]), clock)
    gc.collect()
    gc.disable()
    for number in range(-1, job["rounds"]):
        for index, prompt in enumerate(prompts if number >= 0 else prompts[:1]):
            for length in chance.sample([0, *job["lengths"]], k=1 + len(job["lengths"])):
                if os.getppid() != parent:
                    sys.exit("whoever asked for this measurement is gone")
                first = pair.begin(prompt)
                begin = clock.now_ns()
                written = pair.write(prompt, first, limit=job["new_tokens"], length=length)
                elapsed = clock.now_ns() - begin
                if number >= 0:
                    run = {"round": number, "prompt": index, "length": length, "ms": elapsed / 1e6}
                    say({"run": {**run, "tokens": written.tokens, "drafts": written.drafts}})
    end = {"costs": costs, "waiting_share": clock.waiting_share()}
    say({"end": end, "processor_s": time.process_time()})


def _costs(pair: speculative.Pair, prompt: list[int], longest: int, clock: Clock) -> dict[str, Any]:
    """What the parts of speculation cost after a prompt, in ms: one drafted token, and reading 1, 2, ... at once."""
    pair.begin(prompt)

    def timed(session: speculative.Session, count: int) -> float:
        begin = clock.now_ns()
        session.read((prompt * count)[:count])
        elapsed = clock.now_ns() - begin
        session.go_back(len(prompt))
        return elapsed / 1e6

    draft: list[float] = []
    verify: dict[int, list[float]] = {count: [] for count in range(1, longest + 2)}
    for number in range(-2, COST_SAMPLES):
        drafted = timed(pair.draft, 1)
        verified = {count: timed(pair.teacher, count) for count in verify}
        if number >= 0:
            draft.append(drafted)
            for count, value in verified.items():
                verify[count].append(value)
    medians = {str(count): statistics.median(values) for count, values in verify.items()}
    return {"draft_ms": statistics.median(draft), "verify_ms": medians}


def _prompt(job: Mapping[str, Any]) -> list[int]:
    import numpy as np

    with np.load(job["inputs"], allow_pickle=False) as file:
        return [int(token) for token in file["input_ids"][0]]
