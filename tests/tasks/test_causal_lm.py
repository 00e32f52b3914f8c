"""The language modelling task: windows, splits, what is learnt, and numbers that other ways of computing them give."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax

from edgeforge.core.errors import DataError, IncompatiblePlanError, ModelError
from edgeforge.core.task import NO_LABEL, Answers, Batch
from edgeforge.data.jsonl import Jsonl
from edgeforge.data.text_files import TextFiles
from edgeforge.models import loading, tokenizer, vocabulary
from edgeforge.tasks import _token_scores, _windows
from edgeforge.tasks.causal_lm import CausalLm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tests.conftest import Tales

ANSWER = {"role": "assistant", "content": "no"}
MANY_TALES = "The fox is red. The fox ran 12 miles to the café. There it met the whale. " * 8


def asked(model: PreTrainedModel, **more: Any) -> Answers:
    """A torch model, as a task asks it."""

    def logits(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return model(**batch).logits

    return Answers(logits, **more)


def changed(task: CausalLm, **fields: Any) -> CausalLm:
    """The task with other fields, checked."""
    return CausalLm.model_validate({**dict(task), **fields})


def files(folder: Path, train: list[str], test: list[str]) -> TextFiles:
    """Text files, one for each document."""
    paths: dict[str, list[str]] = {"train": [], "test": []}
    for part, texts in (("train", train), ("test", test)):
        for number, text in enumerate(texts):
            (folder / f"{part}{number}.txt").write_text(text, encoding="utf-8")
            paths[part].append(str(folder / f"{part}{number}.txt"))
    return TextFiles(**paths)


def texts_of(tales: Tales, part: str) -> list[str]:
    """The documents as transformers renders them, in order."""
    reader = tokenizer.read(tales.root / "tokenizer")
    reader.chat_template = (tales.root / "tokenizer" / "chat_template.jinja").read_text(encoding="utf-8")
    found = []
    for line in (tales.root / f"{part}.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        chat = sample.get("messages")
        found.append(reader.apply_chat_template(chat, tokenize=False) if chat else sample["text"])
    return found


# -- windows


def test_windows_are_the_documents_joined_by_the_end_of_text(tales: Tales) -> None:
    reader = tokenizer.read(tales.root / "tokenizer")
    stream = [token for text in texts_of(tales, "test") for token in [*reader(text)["input_ids"], 0]]
    size = tales.data.size("test")
    assert size == len(stream) // 32
    batch = tales.data.batch("test", range(size))
    assert batch["input_ids"].flatten().tolist() == stream[: 32 * size]
    assert batch["attention_mask"].min() == 1
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert torch.equal(batch["labels"][:, :-1], batch["input_ids"][:, 1:])
    assert (batch["labels"][:, -1] == NO_LABEL).all()
    some = tales.data.batch("test", [5, 0])
    assert torch.equal(some["input_ids"], batch["input_ids"][[5, 0]])
    assert some["rows"].tolist() == [5, 0]


def test_what_a_file_promises(tales: Tales) -> None:
    interface = tales.data.interface
    assert interface.per_token
    assert [(value.name, value.shape, value.dtype, value.variable) for value in interface.inputs] == [
        ("input_ids", (32,), "int64", True),
        ("attention_mask", (32,), "int64", True),
    ]
    assert (interface.text.vocabulary_size, interface.text.max_length, interface.text.pad_id) == (352, 32, 2)


def test_a_model_may_have_more_tokens_than_its_tokenizer(tales: Tales, tmp_path: Path) -> None:
    shutil.copytree(tales.root / "tokenizer", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "vocab_size": 384}', encoding="utf-8")
    assert tales.task.open(tmp_path / "model").interface.text.vocabulary_size == 384


def test_with_a_stride_every_token_counts_once(tales: Tales) -> None:
    data = changed(tales.task, stride=9).open()
    batch = data.batch("test", range(data.size("test")))
    whole = tales.data.batch("test", range(tales.data.size("test")))["input_ids"].flatten()
    counted = batch["labels"][batch["labels"] != NO_LABEL]
    assert torch.equal(counted[: len(whole) - 1], whole[1:])
    assert len(batch["labels"][0][batch["labels"][0] != NO_LABEL]) == 31
    assert {int((labels != NO_LABEL).sum()) for labels in batch["labels"][1:]} == {9}
    assert data.size("train") == tales.data.size("train")
    with pytest.raises(ValidationError, match="stride 33 is above max_length 32"):
        changed(tales.task, stride=33)


def test_a_token_before_every_text_is_before_every_window(tales: Tales, tmp_path: Path) -> None:
    folder = beginning_with(tales, tmp_path, "<|im_start|>")
    data = changed(tales.task, tokenizer=str(folder)).open()
    batch = data.batch("test", range(data.size("test")))
    assert (batch["input_ids"][:, 0] == 1).all()
    stream = tales.data.batch("test", range(tales.data.size("test")))["input_ids"].flatten()
    ours = batch["input_ids"][:, 1:].flatten()
    shorter = min(len(ours), len(stream))
    assert torch.equal(ours[:shorter], stream[:shorter])
    assert torch.equal(batch["labels"][:, :-1], batch["input_ids"][:, 1:])


def beginning_with(tales: Tales, tmp_path: Path, token: str) -> Path:
    """The tokenizer, changed so that it puts a token before every text."""
    from tokenizers import Tokenizer, processors

    folder = Path(shutil.copytree(tales.root / "tokenizer", tmp_path / "beginning"))
    content = Tokenizer.from_file(str(folder / tokenizer.MAIN))
    index = content.token_to_id(token)
    content.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, index)])
    content.save(str(folder / tokenizer.MAIN))
    return folder


def test_few_windows_for_evaluation_are_evenly_spread(tales: Tales) -> None:
    data = changed(tales.task, evaluation_windows=5).open()
    assert data.size("test") == 5
    assert data.size("train") == tales.data.size("train")
    last = tales.data.size("test") - 1
    places = [round(last * part / 4) for part in range(5)]
    whole = tales.data.batch("test", places)["input_ids"]
    assert torch.equal(data.batch("test", range(5))["input_ids"], whole)
    assert changed(tales.task, evaluation_windows=10_000).open().size("test") == last + 1


# -- splits


def test_validation_documents_are_not_trained_on(tales: Tales) -> None:
    sizes = {split: tales.data.size(split) for split in ("train", "validation", "transfer")}
    assert sizes["train"] == sizes["transfer"]
    assert 0.05 < sizes["validation"] / (sizes["train"] + sizes["validation"]) < 0.15
    train = tales.data.batch("train", range(sizes["train"]))
    assert torch.equal(tales.data.batch("transfer", range(sizes["train"]))["input_ids"], train["input_ids"])
    documents = ids_of_documents(tales, "train")
    learnt = list_of_documents(train["input_ids"])
    kept = list_of_documents(tales.data.batch("validation", range(sizes["validation"]))["input_ids"])
    assert learnt and kept
    assert all(document in documents for document in [*learnt, *kept])
    once = {document for document in kept if documents.count(document) == 1}
    assert once and not once & set(learnt)


def ids_of_documents(tales: Tales, part: str) -> list[tuple[int, ...]]:
    reader = tokenizer.read(tales.root / "tokenizer")
    return [tuple(reader(text)["input_ids"]) for text in texts_of(tales, part)]


def list_of_documents(ids: torch.Tensor) -> list[tuple[int, ...]]:
    """The whole documents in windows: all between two ends."""
    found: list[list[int]] = [[]]
    for token in ids.flatten().tolist():
        if token == 0:
            found.append([])
        else:
            found[-1].append(token)
    return [tuple(document) for document in found[1:-1]]


def test_of_few_documents_the_end_is_kept_apart(tales: Tales, tmp_path: Path) -> None:
    data = changed(tales.task, data=files(tmp_path, [MANY_TALES], [MANY_TALES[:-1]])).open()
    train, kept = data.size("train"), data.size("validation")
    assert (train, kept) == (train, max(1, round(0.1 * (train + kept))))
    ids = tokenizer.read(tales.root / "tokenizer")(MANY_TALES)["input_ids"]
    assert data.batch("train", range(train))["input_ids"].flatten().tolist() == ids[: 32 * train]
    assert data.batch("validation", [0])["input_ids"].tolist() == [ids[32 * train : 32 * (train + 1)]]


# -- chats


def test_of_chats_only_the_answers_are_learnt(tales: Tales, tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What colour is the fox?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "And the frog?"},
        {"role": "assistant", "content": "green"},
    ]
    for part in ("train", "test"):
        lines = [{"messages": chat}, {"text": "The lion is yellow."}] * 4 + [{"text": f"A {part}."}]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    source = Jsonl(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"))
    data = changed(tales.task, data=source, answers_only=True, max_length=128).open()
    batch = data.batch("test", [0])
    reader = tokenizer.read(tales.root / "tokenizer")
    learnt = batch["labels"][0] != NO_LABEL
    runs = np.split(np.arange(128), np.flatnonzero(np.diff(learnt.numpy())) + 1)
    said = [reader.decode(batch["labels"][0][run]) for run in runs if learnt[run[0]]]
    assert said[:2] == ["red<|im_end|>\n", "green<|im_end|>\n"]
    everything = changed(tales.task, data=source, max_length=128).open().batch("test", [0])["labels"]
    assert (everything != NO_LABEL).sum() == 127
    texts = data.batch("test", range(data.size("test")))
    assert "The lion is yellow.<|endoftext|>" in reader.decode(texts["labels"][texts["labels"] != NO_LABEL])


def test_answers_are_those_that_transformers_finds(tales: Tales, tmp_path: Path) -> None:
    """Its way needs a template that marks them; what is rendered is the same with it and without."""
    folder = Path(shutil.copytree(tales.root / "tokenizer", tmp_path / "marked"))
    marked = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(marked, encoding="utf-8")
    reader = tokenizer.read(folder)
    wanted_ids: list[int] = []
    wanted: list[bool] = []
    for line in (tales.root / "test.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        if "messages" in sample:
            found = reader.apply_chat_template(
                sample["messages"],
                chat_template=marked,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            wanted += [bool(mask) for mask in found["assistant_masks"]] + [False]
            wanted_ids += [*found["input_ids"], 0]
        else:
            ids = reader(sample["text"])["input_ids"]
            wanted += [True] * (len(ids) + 1)
            wanted_ids += [*ids, 0]
    for own in (folder, tales.root / "tokenizer"):
        stream = changed(tales.task, tokenizer=str(own), answers_only=True).open().splits["test"].stream
        assert stream.ids.tolist() == wanted_ids
        assert stream.wanted.tolist() == wanted


def test_windows_without_an_answer_are_left_out(tales: Tales, tmp_path: Path) -> None:
    question = [{"role": "user", "content": MANY_TALES}]
    for part in ("train", "test"):
        lines = [{"messages": question}, {"messages": [*question, {"role": "assistant", "content": part}]}]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    source = Jsonl(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"))
    with pytest.raises(DataError, match="no window of the test split holds anything that the assistant says"):
        changed(tales.task, data=source, answers_only=True).open()
    (tmp_path / "train.jsonl").write_text(
        "\n".join(json.dumps({"messages": [*question, {"role": "assistant", "content": "yes"}]}) for _ in range(40)),
        encoding="utf-8",
    )
    (tmp_path / "test.jsonl").write_text(
        "\n".join(json.dumps({"messages": [*question, *more]}) for more in ([], [ANSWER], [])), encoding="utf-8"
    )
    data = changed(tales.task, data=source, answers_only=True).open()
    batch = data.batch("train", range(data.size("train")))
    assert (batch["labels"] != NO_LABEL).any(dim=1).all()
    assert data.size("test") == 1


# -- the loss


def test_the_loss_is_transformers_own(tales: Tales, tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    model = tiny_lm("llama")
    batch = tales.data.batch("train", range(4))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits
        own = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    assert tales.task.loss(logits, batch).item() == pytest.approx(own.item(), rel=1e-6)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], NO_LABEL)}
    assert tales.task.loss(logits, nothing).item() == 0


# -- evaluation


def plain_loop(model: PreTrainedModel, ids: list[int], length: int, stride: int) -> float:
    """Perplexity of a fixed-length model as transformers' documentation computes it, over whole windows."""
    total, count, counted_to = 0.0, 0, 0
    for begin in range(0, len(ids) - length + 1, stride):
        window = torch.tensor([ids[begin : begin + length]])
        labels = window.clone()
        labels[:, : max(0, counted_to - begin)] = -100
        tokens = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += model(input_ids=window, labels=labels).loss.item() * tokens
        count, counted_to = count + tokens, begin + length
    return math.exp(total / count)


@pytest.mark.parametrize("stride", [None, 8, 31])
def test_perplexity_is_that_of_a_plain_loop(
    tales: Tales, tiny_lm: Callable[[str], PreTrainedModel], stride: int | None
) -> None:
    task, model = changed(tales.task, stride=stride), tiny_lm("mistral")
    found = task.evaluate(asked(model), task.open(), "test")
    stream = [token for document in ids_of_documents(tales, "test") for token in [*document, 0]]
    assert next(iter(found.metrics)) == "perplexity"
    assert found.metrics["perplexity"] == pytest.approx(plain_loop(model, stream, 32, stride or 32), rel=1e-5)
    assert found.metrics["evaluated"]["stride"] == (stride or 32)
    assert found.metrics["evaluated"]["tokens"] == found.arrays["scored"].sum()
    assert found.arrays["nll"].shape == (found.metrics["evaluated"]["windows"], 32)
    assert (np.isnan(found.arrays["nll"]) == ~found.arrays["scored"]).all()


def test_divergence_and_agreement_are_scipys(tales: Tales, tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    model, reference = tiny_lm("llama"), tiny_lm("qwen2")
    found = tales.task.evaluate(asked(model), tales.data, "test", reference=asked(reference))
    batch = tales.data.batch("test", range(tales.data.size("test")))
    scored = batch["labels"].numpy() != NO_LABEL
    with torch.no_grad():
        ours, theirs = (one(input_ids=batch["input_ids"]).logits.double().numpy()[scored] for one in (model, reference))
    p, q = scipy_softmax(ours, axis=-1), scipy_softmax(theirs, axis=-1)
    kld = rel_entr(q, p).sum(axis=-1)
    assert kld.mean() > 0.1
    assert found.metrics["mean_kld"] == pytest.approx(kld.mean(), rel=1e-5)
    assert found.metrics["p99_kld"] == pytest.approx(np.percentile(kld, 99), rel=1e-4)
    assert found.metrics["top1_agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    truth = batch["labels"].numpy()[scored]
    assert found.metrics["next_token_accuracy"] == pytest.approx((p.argmax(-1) == truth).mean())
    assert found.arrays["kld"][scored] == pytest.approx(kld, rel=1e-3, abs=1e-5)
    assert found.arrays["top1"].sum() == (p.argmax(-1) == q.argmax(-1)).sum()
    assert (found.arrays["likeliest"][scored] == p.argmax(-1)).all()
    assert "reasons" not in found.metrics
    same = tales.task.evaluate(asked(model), tales.data, "test", reference=asked(model)).metrics
    assert (same["mean_kld"], same["p99_kld"], same["top1_agreement"]) == (0, 0, 1)


def test_bits_per_byte_count_the_bytes_of_the_text(
    tales: Tales, tiny_lm: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    text = "The fox ran 12 miles to the café ☃."
    ids = tokenizer.read(tales.root / "tokenizer")(text)["input_ids"]
    source = files(tmp_path, [MANY_TALES], [text])
    task = changed(tales.task, data=source, max_length=len(ids) + 1)
    found = task.evaluate(asked(tiny_lm("llama")), task.open(), "test")
    counted = len(text.encode()) - len("The")  # of which nothing predicts the first token
    assert found.metrics["evaluated"] == {
        "windows": 1,
        "window": len(ids) + 1,
        "stride": len(ids) + 1,
        "tokens": len(ids),
        "bytes": counted,
    }
    bits = np.nansum(found.arrays["nll"]) / math.log(2)
    assert found.metrics["bits_per_byte"] == pytest.approx(bits / counted)


def test_few_windows_and_tokens_are_in_memory_at_a_time(
    tales: Tales, tiny_lm: Callable[[str], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes, told = tiny_lm("qwen3"), [], []

    def logits(batch: Batch) -> torch.Tensor:
        sizes.append(len(batch["input_ids"]))
        return asked(model).logits(batch)

    whole = tales.task.evaluate(asked(model), tales.data, "test", reference=asked(tiny_lm("llama")))
    monkeypatch.setattr(_token_scores, "WINDOW_BYTES", 3 * 4 * 32 * 352)
    monkeypatch.setattr(_token_scores, "CHUNK_VALUES", 5 * 352)
    found = tales.task.evaluate(
        Answers(logits),
        tales.data,
        "test",
        reference=asked(tiny_lm("llama")),
        progress=lambda done, total: told.append((done, total)),
    )
    assert set(sizes[:-1]) == {3}
    assert told[-1] == (tales.data.size("test"),) * 2
    for name, value in whole.metrics.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-5), name


def test_what_cannot_be_compared_has_a_reason(tales: Tales, tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    model = asked(tiny_lm("llama"))
    alone = tales.task.evaluate(model, tales.data, "test").metrics
    assert alone["mean_kld"] is alone["p99_kld"] is alone["top1_agreement"] is None
    assert alone["reasons"]["mean_kld"] == "there is no reference model"
    other = Answers(lambda batch: torch.zeros(*batch["input_ids"].shape, 360))
    found = tales.task.evaluate(model, tales.data, "test", reference=other)
    assert found.metrics["mean_kld"] is None
    assert (
        found.metrics["reasons"]["top1_agreement"]
        == "the vocabularies differ: the reference has 360 tokens, this model 352"
    )
    assert "kld" not in found.arrays
    assert found.metrics["perplexity"] == pytest.approx(alone["perplexity"])


def test_outputs_that_are_no_numbers_or_of_another_model(tales: Tales) -> None:
    bad = Answers(lambda batch: torch.full((*batch["input_ids"].shape, 352), math.nan))
    assert tales.task.evaluate(bad, tales.data, "test").metrics == {"reason": "the outputs hold NaN or infinity"}
    even = Answers(lambda batch: torch.zeros(*batch["input_ids"].shape, 352))
    found = tales.task.evaluate(even, tales.data, "test", reference=bad).metrics
    assert found["perplexity"] == pytest.approx(352)
    assert "of the reference, the outputs hold NaN" in found["reasons"]["mean_kld"]
    with pytest.raises(ModelError, match=r"gives outputs of \d+ x 3\n"):
        tales.task.evaluate(Answers(lambda batch: torch.zeros(len(batch["input_ids"]), 3)), tales.data, "test")
    with pytest.raises(ModelError, match=r"ids up to \d+ the model gives outputs of \d+ x 32 x 9\n"):
        tales.task.evaluate(Answers(lambda batch: torch.zeros(*batch["input_ids"].shape, 9)), tales.data, "test")


# -- prompts


def prompts(folder: Path, *lines: Any) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


def test_the_share_of_prompts_that_a_model_passes(tales: Tales, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "What colour is the fox?"}]
    path = prompts(
        tmp_path,
        {"prompt": "What colour is the fox?", "answer": "red"},
        {"messages": chat, "answer": "Red"},
        {"messages": chat, "pattern": "^r.d\\b"},
        {"prompt": "Where is the café?", "answer": "by  the\nsea "},
        {"prompt": "And the frog?", "pattern": "green|blue"},
    )
    reader = tokenizer.read(tales.root / "tokenizer")
    written = ["\n red  ", "red", "red it is", "by the sea<|im_end|>", "yellow"]
    seen: list[Any] = []

    def generate(ids: Any, most: int) -> list[list[int]]:
        seen.extend([ids, most])
        return [reader(text)["input_ids"] for text in written]

    task = changed(tales.task, prompts=path, max_new_tokens=7)
    even = Answers(lambda batch: torch.zeros(*batch["input_ids"].shape, 352), generate)
    found = task.evaluate(even, task.open(), "test")
    assert found.metrics["prompts_passed"] == pytest.approx(3 / 5)
    assert found.arrays["prompts"].tolist() == [True, False, True, True, False]
    assert seen[1] == 7
    reader.chat_template = (tales.root / "tokenizer" / "chat_template.jinja").read_text(encoding="utf-8")
    rendered = reader.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
    assert seen[0][0] == seen[0][1] == list(rendered)
    mute = task.evaluate(Answers(even.logits), task.open(), "test").metrics
    assert mute["prompts_passed"] is None
    assert "writes no texts" in mute["reasons"]["prompts_passed"]
    assert "prompts_passed" not in task.evaluate(even, task.open(), "validation").metrics


def test_a_prompt_without_a_template_is_a_text(tales: Tales, tmp_path: Path) -> None:
    folder = beginning_with(tales, tmp_path, "<|im_start|>")
    (folder / "chat_template.jinja").unlink()
    seen: list[Any] = []

    def generate(ids: Any, most: int) -> list[list[int]]:
        seen.extend(ids)
        return [[] for _ in ids]

    data = files(tmp_path, [MANY_TALES], [MANY_TALES[:-1]])
    task = changed(
        tales.task,
        data=data,
        tokenizer=str(folder),
        prompts=prompts(tmp_path, {"prompt": "The fox is", "answer": "red"}),
    )
    even = Answers(lambda batch: torch.zeros(*batch["input_ids"].shape, 352), generate)
    assert task.evaluate(even, task.open(), "test").metrics["prompts_passed"] == 0
    assert seen == [tokenizer.read(folder)("The fox is")["input_ids"]]
    assert seen[0][0] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the file has no prompt"),
        ("{", "not JSON"),
        ("[1]", "not an object but a list"),
        ({"answer": "red"}, "one of 'prompt' and 'messages'"),
        ({"prompt": "x", "messages": [], "answer": "red"}, "one of 'prompt' and 'messages'"),
        ({"prompt": "x"}, "one of 'answer' and 'pattern'"),
        ({"prompt": "x", "answer": 2}, "'answer' is not a text"),
        ({"prompt": "", "answer": "red"}, "'prompt' is not a text, or empty"),
        ({"prompt": "x", "pattern": "("}, "'pattern' is no regular expression"),
        ({"messages": [{"role": "assistant", "content": "red"}], "answer": "x"}, "has the last word already"),
        ({"messages": [{"role": "usr", "content": "red"}], "answer": "x"}, "perhaps you meant 'user'"),
    ],
)
def test_mistakes_in_prompts_are_found_before_any_work(tales: Tales, tmp_path: Path, line: Any, message: str) -> None:
    path = prompts(tmp_path, line)
    with pytest.raises(DataError, match=message) as caught:
        changed(tales.task, prompts=path).digest()
    assert str(caught.value.where).startswith(path)
    with pytest.raises(DataError, match="there is no such file"):
        changed(tales.task, prompts=str(tmp_path / "none")).digest()


# -- where the tokenizer and the model come from


def test_texts_are_read_once_for_all_models_of_one_tokenizer(tales: Tales, tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(tales.root / "tokenizer", tmp_path / name)) for name in ("a", "b")]
    first, second = (tales.task.open(folder) for folder in folders)
    assert first.splits is second.splits
    assert (first.tokenizer, second.tokenizer) == tuple(folders)
    assert tales.task.open(folders[0]) is first


def test_other_architectures_are_refused_by_name(tales: Tales, tmp_path: Path) -> None:
    assert tales.task.completed(None) == tales.task
    alone = changed(tales.task, tokenizer=None)
    own = alone.completed(tales.torch("llama").path)
    assert own.tokenizer == str(tales.torch("llama").path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(IncompatiblePlanError, match=r"is gpt2, .* llama, mistral, qwen2, qwen3") as caught:
        alone.completed(tmp_path)
    assert caught.value.exit_code == 4
    with pytest.raises(ModelError, match="brings no tokenizer"):
        alone.digest()


def test_tiny_models_of_every_family_are_read_again(tales: Tales, tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    batch = tales.data.batch("test", [0])
    for family in tales.tiny:
        model = loading.load(tales.torch(family).path)
        ours, wanted = asked(model).logits(batch_inputs(batch)), asked(tiny_lm(family)).logits(batch_inputs(batch))
        assert torch.allclose(ours, wanted, atol=1e-5)
        assert tokenizer.digest(tales.torch(family).path) == tokenizer.digest(tales.root / "tokenizer")


def batch_inputs(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def test_the_digest_covers_data_tokenizer_prompts_and_choices(tales: Tales, tmp_path: Path) -> None:
    source = tales.task.data
    other = Jsonl(train=source.test, test=source.train)  # type: ignore[attr-defined]
    path = prompts(tmp_path, {"prompt": "x", "answer": "y"})
    digests = [
        tales.task.digest(),
        changed(tales.task, data=other).digest(),
        changed(tales.task, max_length=33).digest(),
        changed(tales.task, answers_only=True).digest(),
        changed(tales.task, tokenizer=str(beginning_with(tales, tmp_path, "<|im_start|>"))).digest(),
        changed(tales.task, prompts=path).digest(),
    ]
    prompts(tmp_path, {"prompt": "x", "answer": "z"})
    digests.append(changed(tales.task, prompts=path).digest())
    assert len(set(digests)) == len(digests)
    moved = shutil.copytree(tales.root / "tokenizer", tmp_path / "moved")
    assert changed(tales.task, tokenizer=str(moved)).digest() == digests[0]


def test_batches_are_translated_for_a_model_of_another_vocabulary(tales: Tales, tmp_path: Path) -> None:
    folder, task = tales.root / "tokenizer", changed(tales.task, data=files(tmp_path, [MANY_TALES], [MANY_TALES[:-1]]))
    whole = task.open()
    ids = tokenizer.read(folder)(MANY_TALES)["input_ids"]
    counts = np.bincount(ids, minlength=352)
    cut = vocabulary.choose(folder, counts, [0, 1, 2], max_size=None, characters="all")
    vocabulary.write(folder, tmp_path / "cut", cut)
    small = changed(task, tokenizer=str(tmp_path / "cut")).open()
    assert small.interface.text.vocabulary_size < 352
    ours, wanted = small.batch("test", range(4)), whole.batch("test", range(4))
    assert not torch.equal(ours["input_ids"], wanted["input_ids"])
    found = small.for_model(folder)(ours)
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in wanted.items()
    }
    without = small.for_model(folder)(batch_inputs(ours))
    assert set(without) == {"input_ids", "attention_mask"}
    assert whole.for_model(folder)(wanted) is wanted


# -- bad input


def test_too_little_text_says_how_much_is_needed(tales: Tales, tmp_path: Path) -> None:
    short, whole = "The fox is red.", MANY_TALES
    count = len(tokenizer.read(tales.root / "tokenizer")(short)["input_ids"]) + 1
    with pytest.raises(DataError, match=f"the test part has {count} tokens, and 32 are needed"):
        changed(tales.task, data=files(tmp_path, [whole], [short])).open()
    with pytest.raises(DataError, match=f"the training part has {count} tokens, and 64 are needed") as caught:
        changed(tales.task, data=files(tmp_path, [short], [whole])).open()
    assert "max_length" in str(caught.value.remedy)


def test_texts_are_read_a_few_at_a_time(tales: Tales, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, folder = tales.task.data.documents().train, tales.root / "tokenizer"
    whole = _windows.joined(_windows.streams(documents, folder, answers_only=True))
    for name, value in (("CHARACTERS_AT_ONCE", 150), ("TEXTS_AT_ONCE", 7), ("TEXTS_AT_ONCE", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(_windows, name, value)
            found = _windows.joined(_windows.streams(documents, folder, answers_only=True))
        assert (found.ids == whole.ids).all()
        assert (found.wanted == whole.wanted).all()
    counted = sum(len(document.text.encode()) for document in documents)
    texts = [document for document in documents if document.text]
    assert _windows.joined(_windows.streams(texts, folder, answers_only=True)).size_bytes.sum() == counted


def test_chats_need_a_template(tales: Tales, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tales.root / "tokenizer", tmp_path / "plain"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template, and the data holds messages"):
        changed(tales.task, tokenizer=str(folder)).open()
