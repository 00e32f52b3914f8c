"""Answers with and without a trace: a Llama of 1.1 M parameters learns to add and to multiply from a program.

Three students of one shape and seed, taught by the same questions: `traces` writes down every step before its answer;
`answers` learns answers alone, from the same examples as often; `answers-long` learns them from the same number of
tokens, which are more passes over the same examples. Each row is a pipeline that `edgeforge run` could run: `generate`
with a program as teacher and a checker that compares its answers with Python's, then `train` on what was written. Its
raw result is rows/<row>-seed<k>.json; a row that is there is not made again, and one that was killed goes on from its
checkpoint. table.py draws the table.

    OMP_NUM_THREADS=1 python -m benchmarks.reasoning.run --seed 0 --work data/reasoning
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import read_row, run_pipeline, write_row

HERE = Path(__file__).parent
ROWS = HERE / "rows"
LONG = "answers-long"
NAMES = ("traces", "answers", LONG)

TAUGHT = {"1+1": 400, "2+2": 1500, "3+3": 2500, "4+4": 3000, "1*1": 400, "2*1": 700, "2*2": 2500}
"""Digits of both numbers -> examples to learn from; of one digit by one there are 80, each of them five times."""
BEYOND = ("5+5", "6+6", "3*1", "3*2")
"""Longer than what is taught."""
TESTED = 100
"""Questions of each kind, none of them taught; 20 of those that have only a hundred in all."""

SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 384,
    "rope_theta": 10000.0,
}
WINDOW, PASSES = 256, 4
BATCHES = {"traces": 4, "answers": 1, LONG: 4}
"""Windows of a step. An answer alone takes about a quarter of the tokens of one with a trace, so a step of `answers`
holds as many examples as one of `traces`."""
RECIPE = {
    "learning_rate": 2e-3,
    "warmup": 0.05,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
    "precision": "float32",
}

ANSWER = "Answer:"
CHECKER = {"kind": "numeric", "answer": {}}
MOST_TOKENS = 160
"""A product of three by two digits takes about 150."""
CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] }}{% else %}"
    "{{ '<|assistant|>' + message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


# -- questions


def questions(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Those that are taught and those that are tested, each with its right answer and its digits; none is in both."""
    chance = random.Random(seed)
    taught, tested = [], []
    for digits in [*TAUGHT, *BEYOND]:
        few = digits in ("1+1", "1*1")
        wanted, test = TAUGHT.get(digits, 0), TESTED // 5 if few else TESTED
        found = list(_drawn(digits, 100 if few else wanted + test, chance))
        tested += found[:test]
        taught += found[test:] * (wanted // 80 if few else 1)
    chance.shuffle(taught)
    return taught, tested


def _drawn(digits: str, count: int, chance: random.Random) -> Iterator[dict[str, str]]:
    operation = "+" if "+" in digits else "*"
    widths = [int(width) for width in digits.split(operation)]
    seen: set[str] = set()
    while len(seen) < count:
        first, second = (chance.randrange(10 ** (width - 1) if width > 1 else 0, 10**width) for width in widths)
        asked = f"{first}{operation}{second}"
        if asked not in seen:
            seen.add(asked)
            answer = first + second if operation == "+" else first * second
            yield {"prompt": asked, "answer": str(answer), "digits": digits}


def write_data(folder: Path, seed: int) -> None:
    """The tokenizer, questions to be taught and asked, and chats with answers, on which perplexity is measured."""
    folder.mkdir(parents=True, exist_ok=True)
    taught, tested = questions(seed)
    _write_lines(folder / "taught.jsonl", taught)
    _write_lines(folder / "asked.jsonl", tested)
    for part, rows in (("train", taught[:500]), ("test", tested)):
        said = [[("user", row["prompt"]), ("assistant", f"{ANSWER} {row['answer']}")] for row in rows]
        chats = [{"messages": [{"role": role, "content": text} for role, text in one]} for one in said]
        _write_lines(folder / f"{part}.jsonl", chats)
    write_tokenizer(folder / "tokenizer")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """One token for each character, and one for the word that marks the answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special, word = ["<|endoftext|>", "<|im_end|>", "<|assistant|>"], ANSWER.removesuffix(":")
    merges = [(word[:end], word[end]) for end in range(1, len(word))]
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(vocabulary)}, merges))
    # As SmolLM2's, which llama.cpp knows.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = CHAT
    fast.save_pretrained(folder)


# -- rows


def pipeline(name: str, seed: int, folder: Path, length: dict[str, int]) -> dict[str, Any]:
    """A row as a pipeline file; `length` is its `epochs` or `steps`."""
    files = {part: str(folder / f"{part}.jsonl") for part in ("train", "test")}
    template = "{trace}\n" + ANSWER + " {answer}" if name == "traces" else ANSWER + " {answer}"
    return {
        "name": f"reasoning-{name}-seed{seed}",
        "task": {
            "kind": "causal_lm",
            "data": {"kind": "jsonl", **files},
            "tokenizer": str(folder / "tokenizer"),
            "max_length": WINDOW,
            "answers_only": True,
            "whole_documents": True,
            "prompts": str(folder / "asked.jsonl"),
            "max_new_tokens": MOST_TOKENS,
            "checker": CHECKER,
            "direct_prefix": ANSWER,
            "prompt_group": "digits",
        },
        "model": {"kind": "config", "architecture": "llama", **SHAPE},
        "seed": seed,
        "stages": [
            {
                "kind": "generate",
                "name": "lessons",
                "prompts": str(folder / "taught.jsonl"),
                "teacher": {"kind": "program", "function": f"{HERE / 'lessons.py'}:teach", "template": template},
                "filters": [{"kind": "verified", "checker": CHECKER}],
            },
            {
                "kind": "train",
                "mix": {"stage": "lessons", "share": 1.0},
                "batch_size": BATCHES[name],
                **RECIPE,
                **length,
            },
        ],
        "targets": [],
    }


def make(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row, after the one whose number of steps it takes."""
    path = ROWS / f"{name}-seed{options.seed}.json"
    length = {"epochs": PASSES}
    if name == LONG:
        length = {"steps": trained(make("traces", options))["steps"]}
    if found := read_row(path):
        return found
    folder = options.work / f"data-seed{options.seed}"
    if not (folder / "tokenizer").is_dir():
        write_data(folder, options.seed)
    source = pipeline(name, options.seed, folder, length)
    result = run_pipeline(source, options.work)
    text = json.dumps(source).replace(str(options.work), "work").replace(f"{HERE}/", "")
    row = {"row": name, "seed": options.seed, "pipeline": json.loads(text), **result}
    row["training_tokens"] = trained(row)["steps"] * BATCHES[name] * WINDOW
    write_row(path, row)
    return row


def trained(row: dict[str, Any]) -> dict[str, Any]:
    """What a row's training came to: its facts in the report."""
    facts: dict[str, Any] = row["stages"][-1]["facts"]
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True, help="data, store and runs; may be removed afterwards")
    parser.add_argument("--only", choices=NAMES, help="one row")
    options = parser.parse_args()
    for name in [options.only] if options.only else NAMES:
        make(name, options)


if __name__ == "__main__":
    main()
