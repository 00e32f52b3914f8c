"""What a teacher writes for its students: from which prompts, what is left out, killed and gone on, and mixed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from edgeforge.core.errors import DataError, IncompatiblePlanError, ModelError
from edgeforge.core.stage import Job
from edgeforge.models import loading, tokenizer
from edgeforge.stages.cache import Cache
from edgeforge.stages.finetune import Finetune
from edgeforge.stages.generate import Generate
from edgeforge.store import CHECKPOINT
from edgeforge.training import stream
from edgeforge.training.mixture import DATASET, Mix, open_mixed

if TYPE_CHECKING:
    from conftest import Tales

    from edgeforge.core.artifact import Artifact

QUESTIONS = [
    {"prompt": "Tell me where the red fox ran on that cold winter morning."},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who met the whale?"}]},
    {"text": "Once upon a time a brown mouse lived under the floor of a"},
]


class Quiet:
    """Progress that keeps warnings, and stops the work after so many updates, as a kill would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.left, self.warnings = stop_after, list[str]()

    def update(self, done: int, total: int, note: str = "") -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def job(tales: Tales, folder: Path, progress: Quiet) -> Job:
    made = tales.job(folder)
    return Job(made.task, folder, 0, made.make_accelerator, progress, tales.torch("llama").path)


def written(
    tales: Tales, folder: Path, progress: Quiet | None = None, **fields: Any
) -> tuple[list[Any], dict[str, Any]]:
    stage = Generate.model_validate({"kind": "generate", "max_new_tokens": 12, **fields})
    stage.check()
    facts = stage.run({"teacher": tales.torch("llama")}, job(tales, folder, progress or Quiet()))
    lines = (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], dict(facts)


def questions(folder: Path, values: list[Any] | None = None) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values or QUESTIONS), encoding="utf-8")
    return str(path)


@pytest.fixture
def every_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model ends no answer by itself."""
    from edgeforge.training import sampling

    write = sampling.write

    def ending(*arguments: Any, ends: frozenset[int], **named: Any) -> list[list[int]]:
        return [[*ids[:-1], max(ends)] for ids in write(*arguments, ends=frozenset(), **named)]

    monkeypatch.setattr(sampling, "write", ending)


# -- what is written


@pytest.mark.usefixtures("every_answer_ends")
def test_questions_become_chats_and_texts_go_on(tales: Tales, tmp_path: Path) -> None:
    found, facts = written(tales, tmp_path / "out", prompts=questions(tmp_path), temperature=0)
    assert [list(one) for one in found] == [["messages"], ["messages"], ["text"]]
    assert [turn["role"] for turn in found[0]["messages"]] == ["user", "assistant"]
    assert found[1]["messages"][:2] == QUESTIONS[1]["messages"]
    assert found[2]["text"].startswith(QUESTIONS[2]["text"])
    folder = tales.torch("llama").path
    model, reader = loading.load(folder), tokenizer.read(folder)
    asked = "<|im_start|>user\n" + QUESTIONS[0]["prompt"] + "<|im_end|>\n<|im_start|>assistant\n"  # type: ignore[operator]
    ids = torch.tensor([reader(asked, add_special_tokens=False)["input_ids"]])
    model.generation_config.eos_token_id = None
    mask = torch.ones_like(ids)
    wanted = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=11, do_sample=False, pad_token_id=0)
    answer = reader.decode(wanted[0, ids.shape[1] :], skip_special_tokens=True)
    assert found[0]["messages"][-1]["content"] == answer.strip()
    assert facts["documents"] == 3
    assert facts["left_out"] == {}
    assert facts["tokens"] == 36
    assert facts["teacher"] == tales.torch("llama").key
    assert facts["settings"]["max_new_tokens"] == 12
    assert len(facts["prompts_sha256"]) == 64
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"data.jsonl", CHECKPOINT}  # which sealing removes


def test_windows_beginnings_go_on_in_the_trainings_words(tales: Tales, tmp_path: Path) -> None:
    found, facts = written(tales, tmp_path, prompt_tokens=6, count=5, samples=2)
    reader = tokenizer.read(tales.torch("llama").path)
    windows = tales.data.batch("train", range(tales.data.size("train")))["input_ids"][:, :6].tolist()
    special = set(reader.all_special_ids) | {0}
    beginnings = {reader.decode(ids) for ids in windows if not special & set(ids)}
    assert found
    assert all(any(one["text"].startswith(begun) for begun in beginnings) for one in found)
    assert facts["documents"] + sum(facts["left_out"].values()) == 10
    assert facts["prompts_sha256"] is None


def test_several_samples_differ_and_always_are_the_same(tales: Tales, tmp_path: Path) -> None:
    fields = {"prompts": questions(tmp_path, QUESTIONS[2:]), "samples": 6, "batch_size": 4}
    first, _ = written(tales, tmp_path / "a", **fields)
    again, _ = written(tales, tmp_path / "b", **fields)
    assert first == again
    assert len({one["text"] for one in first}) == len(first) == 6
    greedy, facts = written(tales, tmp_path / "c", **fields, temperature=0)
    assert len(greedy) == 1
    assert facts["left_out"] == {"copies": 5}


@pytest.mark.parametrize("stop_after", [0, 2])
def test_killed_it_goes_on_to_the_same_texts(
    stop_after: int, tales: Tales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"prompt_tokens": 6, "count": 6, "batch_size": 2}
    whole, facts = written(tales, tmp_path / "whole", **fields)
    monkeypatch.setattr(stream, "FLUSH_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        written(tales, tmp_path / "cut", Quiet(stop_after), **fields)
    assert not (tmp_path / "cut" / "data.jsonl").exists()
    state = json.loads((tmp_path / "cut" / CHECKPOINT / "written.jsonl.json").read_text())
    assert state["done"] == 2 * stop_after + 2
    went_on, facts_too = written(tales, tmp_path / "cut", **fields)
    assert (went_on, facts_too) == (whole, facts)


# -- what is left out


def test_chats_whose_answer_did_not_end_are_left_out(tales: Tales, tmp_path: Path) -> None:
    notes = Quiet()
    found, facts = written(tales, tmp_path / "out", notes, prompts=questions(tmp_path))
    assert [list(one) for one in found] == [["text"]]
    assert facts["left_out"] == {"unfinished": 2}
    assert any("2 unfinished" in warning for warning in notes.warnings)


@pytest.mark.usefixtures("every_answer_ends")
def test_what_is_tested_is_not_written(tales: Tales, tmp_path: Path) -> None:
    """The test part, the prompts that the task asks, and the files to avoid: each takes one prompt away."""
    tested = (tales.root / "test.jsonl").read_text(encoding="utf-8").splitlines()
    from_test = next(value["text"] for value in map(json.loads, tested) if "text" in value)
    avoid = tmp_path / "avoid.jsonl"
    avoid.write_text(json.dumps({"messages": [{"role": "user", "content": "WHO met... the whale"}]}) + "\n")
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"prompt": QUESTIONS[0]["prompt"], "answer": "home"}) + "\n")  # type: ignore[index]
    file = questions(tmp_path, [*QUESTIONS, {"prompt": f"Is this true: {from_test}"}])
    task = tales.task.model_copy(update={"prompts": str(asked)})
    stage = Generate(prompts=file, max_new_tokens=12, avoid=(str(avoid),))
    made = job(tales, tmp_path / "out", Quiet())
    facts = stage.run(
        {"teacher": tales.torch("llama")}, Job(task, made.folder, 0, made.make_accelerator, made.progress)
    )
    (kept,) = map(json.loads, (tmp_path / "out" / "data.jsonl").read_text().splitlines())
    assert kept["text"].startswith(QUESTIONS[2]["text"])  # type: ignore[arg-type]
    assert facts["left_out"] == {"repeats what is tested": 3}


def test_with_nothing_left_it_says_why(tales: Tales, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 unfinished(.|\n)*max_new_tokens"):
        written(tales, tmp_path / "out", prompts=questions(tmp_path, QUESTIONS[:2]))


# -- bad input


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([{"question": "?"}], "one of 'prompt', 'messages' and 'text'"),
        ([{"prompt": "a", "text": "b"}], "one of 'prompt', 'messages' and 'text'"),
        ([{"prompt": " "}], "empty"),
        ([{"messages": [{"role": "assistant", "content": "Hello."}]}], "has the last word"),
        ([{"messages": [{"role": "nobody", "content": "Hello."}]}], "no role is named"),
    ],
)
def test_prompts_that_are_none_are_refused_at_the_rehearsal(
    values: list[Any], said: str, tales: Tales, tmp_path: Path
) -> None:
    model = loading.load(tales.torch("llama").path)
    with pytest.raises(DataError, match=said):
        Generate(prompts=questions(tmp_path, values)).rehearse(model, tales.task)


def test_teachers_and_tasks_that_write_nothing_are_refused(mails: Any) -> None:
    with pytest.raises(IncompatiblePlanError, match="cannot write"):
        Generate.model_validate({"kind": "generate", "teacher": {"kind": "cached", "top_k": 4}}).check()
    with pytest.raises(IncompatiblePlanError, match="only a language model"):
        Generate().rehearse(loading.load(mails.torch("bert").path), mails.task)


def test_chats_alone_have_no_beginning_of_a_text(tales: Tales, tmp_path: Path) -> None:
    from edgeforge.data.jsonl import Jsonl

    for part in ("train", "test"):
        chats = [[{"role": "user", "content": f"Is {number} more?"}] for number in range(20)]
        lines = [json.dumps({"messages": [*chat, {"role": "assistant", "content": part}]}) for chat in chats]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    data = Jsonl(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"))
    task = tales.task.model_copy(update={"data": data})
    made = job(tales, tmp_path / "out", Quiet())
    with pytest.raises(ModelError, match=r"no training window begins with 24 tokens(.|\n)*`prompts`"):
        Generate(prompt_tokens=24).run(
            {"teacher": tales.torch("llama")}, Job(task, made.folder, 0, made.make_accelerator, made.progress)
        )


def test_what_was_said_is_in_the_key_and_where_it_stands_is_not(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    here, there = questions(tmp_path), questions(tmp_path / "b")
    assert Generate(prompts=here, name="talk").identity() == Generate(prompts=there).identity()
    assert Generate(prompts=here, top_p=0.9).identity() != Generate(prompts=here).identity()
    before = Generate(prompts=here).identity()
    questions(tmp_path, QUESTIONS[:1])
    assert Generate(prompts=here).identity() != before


# -- mixed in


@pytest.fixture
def dataset(tales: Tales, tmp_path: Path) -> Artifact:
    written(tales, tmp_path / "dataset", prompt_tokens=6, max_new_tokens=20)
    return tales.artifact(tmp_path / "dataset", "dataset")


def test_a_student_is_trained_on_what_was_written(tales: Tales, tmp_path: Path, dataset: Artifact) -> None:
    model = tales.torch("llama")
    inputs = {"model": model, DATASET: dataset}
    mixed = open_mixed(tales.task, Mix(stage="generate", share=0.4), inputs, reader="model")
    own, both = tales.data.size("train"), mixed.size("train")
    assert both > own
    lines = (dataset.path / "data.jsonl").read_text(encoding="utf-8").splitlines()
    stream_of = tokenizer.read(model.path)("<|endoftext|>".join(json.loads(line)["text"] for line in lines))[
        "input_ids"
    ]
    last = mixed.batch("train", range(own, both))
    found = last["input_ids"].flatten().tolist()
    assert found == stream_of[: len(found)], "the written texts, one after the other"
    stage = Finetune(steps=3, batch_size=4, mix=Mix(stage="generate", share=1.0), name="talk")
    assert stage.sources() == {DATASET: "generate"}
    facts = stage.run(inputs, tales.job(tmp_path / "out"))
    alone = Finetune(steps=3, batch_size=4).run({"model": model}, tales.job(tmp_path / "alone"))
    assert facts["history"]["loss"] != alone["history"]["loss"]
    other_name = stage.model_copy(update={"mix": Mix(stage="other", share=1.0)})
    assert other_name.identity() == stage.identity(), "the texts are an input, whatever their stage is called"


def test_a_cache_of_both_answers_about_both(tales: Tales, tmp_path: Path, dataset: Artifact) -> None:
    from edgeforge.teachers.cached import Cached

    inputs = {"model": tales.torch("llama"), DATASET: dataset}
    folder = tmp_path / "cache"
    Cache(top_k=4).run(inputs, job(tales, folder, Quiet()))
    mixed = open_mixed(tales.task, Mix(stage="generate"), inputs, reader="model")
    teacher = Cached(top_k=4).open({"logits": tales.artifact(folder, "logits")}, torch.device("cpu"), mixed)
    rows = [0, mixed.size("transfer") - 1]
    answer = teacher(mixed.batch("transfer", rows), frozenset())
    assert answer.bucket_ids.shape == (2 * 31, 4)
    with pytest.raises(ModelError, match="samples are kept"):
        Cached(top_k=4).open({"logits": tales.artifact(folder, "logits")}, torch.device("cpu"), tales.data)


def test_too_little_to_train_on_says_who_should_write_more(tales: Tales, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "The fox."}\n')
    inputs = {"model": tales.torch("llama"), DATASET: tales.artifact(tmp_path, "dataset")}
    with pytest.raises(DataError, match=r"too little was written(.|\n)*`samples`"):
        open_mixed(tales.task, Mix(stage="generate"), inputs, reader="model")


# -- llama.cpp


@pytest.mark.slow
def test_llama_cpp_writes_what_torch_does(tales: Tales, tmp_path: Path) -> None:
    """At temperature 0; where float16 turns one likeliest token into another, a text goes its own way from there."""
    pytest.importorskip("llama_cpp")
    from edgeforge.stages._llama_writer import LlamaWriter
    from edgeforge.training.sampling import Sampling, write

    ids = tales.data.batch("test", range(6))["input_ids"].tolist()
    prompts = [row[: 4 + 2 * number] for number, row in enumerate(ids)]
    teacher = tales.torch("llama")
    writer = LlamaWriter(teacher, job(tales, tmp_path, Quiet()), tmp_path / "gguf")
    with torch.no_grad():
        ours = write(
            loading.load(teacher.path), prompts, Sampling(temperature=0), tokens=8, generator=torch.Generator()
        )
    theirs = writer.write(
        prompts, Sampling(temperature=0), tokens=8, ends=frozenset({ours[1][2]}), generator=torch.Generator()
    )
    ended = [text[: text.index(ours[1][2]) + 1] if ours[1][2] in text else text for text in ours]
    assert sum(a == b for a, b in zip(ended, theirs, strict=True)) >= 5
    assert len(theirs[1]) <= 3
    drawn = [
        writer.write(prompts, Sampling(), tokens=4, ends=frozenset(), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_a_stage_on_llama_cpp_leaves_its_texts_only(tales: Tales, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    found, facts = written(tales, tmp_path, prompt_tokens=6, count=6, batch_size=3, runtime="llama_cpp")
    assert len(found) == facts["documents"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", CHECKPOINT}  # which sealing removes
