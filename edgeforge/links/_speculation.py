"""Speculative decoding, measured on this machine: in a process of its own, in turns with plain decoding."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from edgeforge.core.measurement import bootstrap_median, percentile
from edgeforge.core.spec import Spec
from edgeforge.links import Subject, local
from edgeforge.runtimes._llama.speculative import acceptance, projected_speedup

RUNTIME = "llama_cpp"


class Drafting(Spec):
    """What to measure: two folders with GGUF files of one vocabulary, and prompts of token ids."""

    teacher: Path
    draft: Path
    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int = Field(gt=1)
    rounds: int = Field(gt=0)
    threads: int = 1
    lengths: tuple[int, ...] = (1, 2, 3, 4)
    seed: int = 0


def measure(work: Drafting) -> dict[str, Any]:
    """Plain JSON: costs, and for each length of drafts what was accepted, measured and projected; see `summarised`.

    Raises EnvironmentProblem where the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="edgeforge-") as name, local.watching() as conditions:
        path = Path(name) / "prompts.json"
        path.write_text(json.dumps(work.prompts), encoding="utf-8")
        subjects = {"teacher": work.teacher, "draft": work.draft}
        cores = local.idle_cores(work.threads)
        job = {
            "what": "speculate",
            "subjects": {
                role: Subject(runtime=RUNTIME, folder=folder.absolute()).model_dump(mode="json")
                for role, folder in subjects.items()
            },
            "inputs": str(path),
            "cores": cores,
            **work.model_dump(mode="json", include={"new_tokens", "rounds", "threads", "lengths", "seed"}),
        }
        answers = local._ask(job)
    end = answers.end or {}
    return {
        "schema": "edgeforge.speculation/1",
        "threads": work.threads,
        "prompts": len(work.prompts),
        "new_tokens": work.new_tokens,
        "rounds": work.rounds,
        "conditions": {"pinned_to_cores": cores, "waiting_share": end["waiting_share"], **conditions},
        **summarised(answers.runs, end["costs"], work.lengths),
    }


def summarised(runs: Sequence[dict[str, Any]], costs: dict[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
    """`measured` is the median over texts of plain time per token over drafted time per token, paired by round.

    `projected` follows from the acceptance and the costs alone (`speculative.projected_speedup`). `same_texts` counts
    the prompts that were continued as plainly, token for token.
    """
    plain = {(run["round"], run["prompt"]): run for run in runs if run["length"] == 0}
    verify_ms = {int(count): value for count, value in costs["verify_ms"].items()}
    found = []
    for length in lengths:
        own = [run for run in runs if run["length"] == length]
        drafts = [(drafted, accepted) for run in own for drafted, accepted in run["drafts"]]
        shares = acceptance(drafts, length)
        pairs = [(plain[run["round"], run["prompt"]], run) for run in own]
        ratios = [
            _per_token_ms(one) / _per_token_ms(other) for one, other in pairs if one["tokens"] and other["tokens"]
        ]
        different = {run["prompt"] for one, run in pairs if one["tokens"] != run["tokens"]}
        found.append(
            {
                "length": length,
                "acceptance": shares,
                "verifications": len(drafts),
                "tokens_per_verification": 1 + sum(share for share in shares if share is not None),
                "measured": _median(ratios),
                "projected": projected_speedup(shares, draft_ms=costs["draft_ms"], verify_ms=verify_ms),
                "same_texts": len({run["prompt"] for run in own} - different),
            }
        )
    plain_ms = [_per_token_ms(run) for run in plain.values() if run["tokens"]]
    return {"costs": costs, "plain_ms_per_token": _median(plain_ms), "drafts": found, "runs": list(runs)}


def _per_token_ms(run: dict[str, Any]) -> float:
    return float(run["ms"] / len(run["tokens"]))


def _median(samples: Sequence[float]) -> dict[str, Any]:
    if not samples:
        return {"n": 0, "median": None, "ci95": None}
    return {"n": len(samples), "median": percentile(samples, 50), "ci95": list(bootstrap_median(samples))}
