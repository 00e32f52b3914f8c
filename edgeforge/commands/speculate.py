"""`edgeforge speculate`: what a small model's drafts are worth to a large one, before anybody relies on it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeforge import gguf_file
from edgeforge.commands import _gguf
from edgeforge.core.errors import ConfigurationError, EnvironmentProblem
from edgeforge.data import Document
from edgeforge.gguf_file import GgufFile
from edgeforge.links import _speculation
from edgeforge.links._speculation import Drafting
from edgeforge.models import gguf_tokenizer, tokenizer
from edgeforge.renderers import _text as text
from edgeforge.runtimes.llama_cpp import LlamaCpp
from edgeforge.tasks import _prompts

ROUNDS = 3
TOKENS = "tokenizer.ggml.tokens"
QUESTIONS = (
    "Explain in a short paragraph why the sky is blue.",
    "Write three tips for someone who learns to cook.",
    "What is the difference between a list and a set in Python?",
    "Tell a short story about a lighthouse keeper and a whale.",
)
"""Asked where no prompts are given."""


def measure(
    teacher: Path, draft: Path, *, prompts: Path | None, new_tokens: int, threads: int, console: Console
) -> dict[str, Any]:
    """What `links._speculation.measure` finds, with the files' names.

    Raises ConfigurationError where a file is missing or the vocabularies differ, ModelError for a damaged file,
    DataError for prompts that cannot be read, EnvironmentProblem where llama.cpp is missing or fails.
    """
    if reason := LlamaCpp().available():
        raise EnvironmentProblem(reason, where="llama.cpp")
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(_gguf.folder_of(path)) for path in (teacher, draft)]
        files = [gguf_file.read(folder / gguf_file.MODEL) for folder in folders]
        check_vocabularies(*files, where=f"{teacher} and {draft}")
        work = Drafting(
            teacher=folders[0],
            draft=folders[1],
            prompts=_encoded(prompts, folders[0], files, new_tokens),
            new_tokens=new_tokens,
            rounds=ROUNDS,
            threads=threads,
        )
        with console.status("drafting and verifying"):
            found = _speculation.measure(work)
    return {"teacher": str(teacher), "draft": str(draft), **found}


def check_vocabularies(teacher: GgufFile, draft: GgufFile, *, where: str) -> None:
    """Raise ConfigurationError unless both have the same tokens under the same ids."""
    ours, theirs = (list(file.metadata.get(TOKENS, ())) for file in (teacher, draft))
    rows = [file.tensors["token_embd.weight"].shape[0] for file in (teacher, draft)]
    if ours == theirs and ours and rows[0] == rows[1]:
        return
    differing = next((index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    what = (
        f"they have {rows[0]} and {rows[1]} tokens"
        if rows[0] != rows[1]
        else f"the token {differing} differs: {ours[differing]!r} and {theirs[differing]!r}"
        if differing is not None
        else "one of them does not say its tokens"
    )
    raise ConfigurationError(
        f"a draft is read by its token ids, so both vocabularies must be equal; {what}",
        where=where,
        remedy="draft with a student whose vocabulary was not pruned",
    )


def _encoded(path: Path | None, folder: Path, files: Sequence[GgufFile], limit: int) -> tuple[tuple[int, ...], ...]:
    """The prompts as the teacher reads them; a tokenizer that does not lie beside the file is rebuilt from it."""
    asked = (
        _prompts.read(path)
        if path is not None
        else [_prompts.Prompt(Document(text=question), None, None) for question in QUESTIONS]
    )
    with TemporaryDirectory(prefix="edgeforge-") as name:
        reader = folder
        if not tokenizer.present(folder):
            reader = Path(name)
            gguf_tokenizer.write(files[0], reader)
        found = _prompts.encoded(asked, reader)
    room = min(int(file.said("context_length") or 0) for file in files)
    if room and max(map(len, found)) + limit > room:
        raise ConfigurationError(
            f"a prompt of {max(map(len, found))} tokens and {limit} new ones are more than the {room} of the models",
            where=str(path or "prompts"),
            remedy="give shorter prompts, or fewer --new-tokens",
        )
    return tuple(map(tuple, found))


def write(found: Mapping[str, Any], path: Path) -> None:
    """All of it, texts included. Raises EnvironmentProblem."""
    try:
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"cannot be written: {error.strerror}", where=str(path)) from error


def show(found: Mapping[str, Any], console: Console) -> None:
    """One line for each length of drafts; what was measured and what is projected apart."""
    columns = ("drafted", "accepted at 1, 2, ...", "tokens a verification", "measured", "95 % interval", "projected")
    table = Table(*columns, "same texts", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in found["drafts"]:
        table.add_row(
            str(row["length"]),
            " ".join(text.NONE if share is None else f"{share:.2f}" for share in row["acceptance"]),
            f"{row['tokens_per_verification']:.2f}",
            text.times(row["measured"]["median"]),
            escape(text.interval(row["measured"]["ci95"])),
            text.times(row["projected"]),
            f"{row['same_texts']} of {found['prompts']}",
        )
    console.print(table)
    costs = found["costs"]
    verify = ", ".join(text.milliseconds(value) for value in costs["verify_ms"].values())
    plain, drafted = found["plain_ms_per_token"]["median"], costs["draft_ms"]
    console.print(
        f"\nPlainly: {text.milliseconds(plain)} a token. A drafted token costs {text.milliseconds(drafted)}, "
        f"reading 1, 2, ... at once {verify}.",
        highlight=False,
    )
    console.print(verdict(found), highlight=False)
    if busy := found["conditions"].get("busy"):
        console.print(f"[yellow]{escape(busy)}[/yellow]", highlight=False)


def verdict(found: Mapping[str, Any]) -> str:
    """What may be said: a gain only where one was measured and its interval excludes 1."""
    rows = [row for row in found["drafts"] if row["measured"]["median"] is not None]
    if not rows:
        return "No text was written, so nothing was measured."
    best = max(rows, key=lambda row: row["measured"]["median"])
    low, high = best["measured"]["ci95"]
    where = f"with drafts of {best['length']} ({found['prompts']} prompts, {found['rounds']} rounds)"
    if low > 1:
        return f"Writing was {text.times(best['measured']['median'])} as fast {where}."
    if high < 1:
        return f"No drafts made it faster: at best {text.times(best['measured']['median'])} the plain speed, {where}."
    return f"No difference was shown: at best {text.times(best['measured']['median'])} the plain speed, {where}."
