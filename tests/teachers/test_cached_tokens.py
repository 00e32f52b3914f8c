"""A language model's answers, kept: against the live teacher and the formula, killed, refused, translated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import NO_LABEL, model_inputs
from edgeforge.losses.dist import Dist
from edgeforge.losses.jensen_shannon import JensenShannon
from edgeforge.losses.reverse_kl import ReverseKl
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.models import loading
from edgeforge.stages import cache as cache_module
from edgeforge.stages.cache import Cache
from edgeforge.stages.distill import Distill
from edgeforge.store import CHECKPOINT
from edgeforge.students.layers import Layers
from edgeforge.teachers import cached as cached_module
from edgeforge.teachers._kept import OFFSETS, TOKENS, Answers
from edgeforge.teachers.cached import Cached
from edgeforge.teachers.model import Model
from edgeforge.training import stream

if TYPE_CHECKING:
    from conftest import Tales

    from edgeforge.core.artifact import Artifact

CPU = torch.device("cpu")
VOCABULARY = 352
ROWS = [4, 0, 7]


def job(tales: Tales, folder: Path, stop_after: int | None = None) -> Job:
    made = tales.job(folder)
    return Job(made.task, folder, 0, made.make_accelerator, Stopping(stop_after), tales.torch("llama").path)


class Stopping:
    """Progress that stops the work after so many updates, as a kill would."""

    def __init__(self, stop_after: int | None) -> None:
        self.left = stop_after

    def update(self, done: int, total: int, note: str = "") -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def cache(tales: Tales, folder: Path, top_k: int | None) -> tuple[Artifact, dict[str, Any]]:
    inputs = {"model": tales.torch("llama")}
    facts = Cache(precision="float32", top_k=top_k).run(inputs, job(tales, folder))
    return tales.artifact(folder, "logits"), dict(facts)


def live_logits(tales: Tales, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = loading.load(tales.torch("llama").path)(**model_inputs(batch)).logits
    return logits


@pytest.mark.parametrize("top_k", [VOCABULARY, 60_000, None])
def test_with_the_whole_vocabulary_it_is_the_live_teacher(tales: Tales, tmp_path: Path, top_k: int | None) -> None:
    kept, facts = cache(tales, tmp_path, top_k)
    batch = tales.data.batch("transfer", ROWS)
    live = Model().open({"teacher": tales.torch("llama")}, CPU, tales.data)(batch, frozenset())
    found = Cached(top_k=top_k).open({"logits": kept}, CPU, tales.data)(batch, frozenset())
    labelled = batch["labels"] != NO_LABEL
    wanted = live.logits.log_softmax(-1)[labelled]
    # float16 has eleven bits: half of the last one, of numbers below 16 here.
    torch.testing.assert_close(found.logits[labelled], wanted, rtol=2**-11, atol=1e-4)
    assert (facts["top_k"], facts["bytes_per_token"], facts["kept_mass"]["p5"]) == (VOCABULARY, 4 * VOCABULARY, 1.0)
    student = type(live)(
        logits=live.logits + torch.randn(live.logits.shape, generator=torch.Generator().manual_seed(0))
    )
    for loss in (SoftTargets(temperature=4), ReverseKl(), JensenShannon(), Dist()):
        ours = loss.compute(student, found, batch, None)
        assert float(ours) == pytest.approx(float(loss.compute(student, live, batch, None)), rel=2e-3), loss.kind


def test_a_few_answers_and_their_tail_are_the_formula(tales: Tales, tmp_path: Path) -> None:
    kept, facts = cache(tales, tmp_path, 5)
    batch = tales.data.batch("transfer", ROWS)
    answer = Cached(top_k=5).open({"logits": kept}, CPU, tales.data)(batch, frozenset())
    labelled = (batch["labels"] != NO_LABEL).numpy()
    expected = log_softmax(live_logits(tales, batch).numpy().astype(float)[labelled], axis=-1)
    ids = np.argsort(-expected, axis=-1, kind="stable")[:, :5]
    np.testing.assert_array_equal(answer.bucket_ids, ids)
    top = np.take_along_axis(expected, ids, axis=-1)
    np.testing.assert_allclose(answer.bucket_log_probabilities[:, :5], top, rtol=2**-11, atol=1e-4)
    tail = np.log(1 - np.exp(top).sum(axis=-1))
    np.testing.assert_allclose(answer.bucket_log_probabilities[:, 5], tail, rtol=2**-11, atol=1e-4)
    tokens = sum(
        int((tales.data.batch("transfer", [row])["labels"] != NO_LABEL).sum()) for row in range(facts["samples"])
    )
    assert (facts["tokens"], facts["bytes_per_token"], facts["size_bytes"]) == (tokens, 4 * 5 + 2, 22 * tokens)
    assert 0 <= (kept.path / TOKENS).stat().st_size - facts["size_bytes"] < 512
    everything = tales.data.batch("transfer", range(facts["samples"]))
    logits = live_logits(tales, everything)[everything["labels"] != NO_LABEL]
    mass = logits.softmax(-1).topk(5).values.sum(-1).numpy()
    assert facts["kept_mass"]["mean"] == pytest.approx(float(mass.mean()), abs=2e-3)
    assert facts["kept_mass"]["p5"] == pytest.approx(float(np.percentile(mass, 5)), abs=2e-3)
    assert isinstance(Answers(kept.path).tokens, np.memmap), "it may be larger than the memory"


@pytest.mark.parametrize("stop_after", [1, 2])
def test_killed_it_goes_on_to_the_same_bytes(
    stop_after: int, tales: Tales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "LOGITS_AT_ONCE", 8 * 32 * VOCABULARY)
    whole, _ = cache(tales, tmp_path / "whole", 5)
    monkeypatch.setattr(stream, "FLUSH_SECONDS", 0)
    inputs = {"model": tales.torch("llama")}
    folder = tmp_path / "killed"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        Cache(precision="float32", top_k=5).run(inputs, job(tales, folder, stop_after))
    unflushed = folder / CHECKPOINT / TOKENS
    with unflushed.open("ab") as file:
        file.write(b"what had not reached the disk's books")
    asked: list[int] = []
    teacher = Model.open

    def counting(self: Model, *arguments: Any) -> Any:
        answer = teacher(self, *arguments)
        return lambda batch, outputs: asked.extend(batch["rows"].tolist()) or answer(batch, outputs)

    monkeypatch.setattr(Model, "open", counting)
    Cache(precision="float32", top_k=5).run(inputs, job(tales, folder))
    assert asked[0] == (stop_after + 1) * 8
    for name in (TOKENS, OFFSETS):
        assert (folder / name).read_bytes() == (whole.path / name).read_bytes()


# -- refusals


def test_a_cache_that_would_fill_the_disk_is_refused_before_any_work(
    tales: Tales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_module, "MOST_BYTES", 1000)
    size = tales.data.size("transfer") * 32 * VOCABULARY * 4 / 1e9
    model = loading.load(tales.torch("llama").path)
    stage = Distill(student=Layers(every=2), teacher=Cached(), losses=(SoftTargets(temperature=1),))
    with pytest.raises(IncompatiblePlanError, match=rf"would take {size:,.0f} GB(.|\n)*top_k: 64"):
        stage.rehearse(model, tales.task)
    Cached(top_k=64).check_data(tales.data)


def test_how_many_gigabytes_a_real_teacher_would_take() -> None:
    from edgeforge.core.task import Input, Interface, Tokens

    class Million:
        interface = Interface((Input("input_ids", (512,)),), "logits", (), tokens=Tokens(49152, 512, 0))

        def size(self, split: str) -> int:
            return 2000

    with pytest.raises(IncompatiblePlanError, match=r"201 GB(.|\n)*0.26 GB"):
        Cached().check_data(Million())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (["soft_targets"], "temperature other than 1"),
        (["dist"], "`dist` reads every logit"),
        (["decoupled"], "`decoupled` reads every logit"),
        (["hidden_states"], "reads the teacher's layers"),
    ],
)
def test_losses_that_need_more_than_buckets_are_refused_from_the_spec_alone(losses: list[str], said: str) -> None:
    stage = Distill.model_validate({"kind": "distill", "teacher": {"kind": "cached", "top_k": 64}, "losses": losses})
    with pytest.raises(IncompatiblePlanError, match=said):
        stage.check()
    fine = [{"kind": "soft_targets", "temperature": 1}, "reverse_kl", "jensen_shannon", "hard_labels"]
    Distill.model_validate({**stage.model_dump(), "losses": fine}).check()


def test_top_k_is_for_models_that_answer_per_token(mails: Any) -> None:
    with pytest.raises(IncompatiblePlanError, match="2 labels a sample"):
        Cached(top_k=4).check_data(mails.data)


def test_answers_over_another_vocabulary_are_refused(tales: Tales, tmp_path: Path) -> None:
    kept, _ = cache(tales, tmp_path, 5)
    (tmp_path / "answers.json").write_text('{"vocabulary": 400}')
    with pytest.raises(ModelError, match=r"vocabulary of 400(.|\n)*`generate`"):
        Cached(top_k=5).open({"logits": kept}, CPU, tales.data)


def test_a_teacher_that_answers_no_numbers_is_refused(tales: Tales, tmp_path: Path) -> None:
    model = loading.load(tales.torch("llama").path)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    loading.save(model, tmp_path / "broken", tokenizer_from=tales.torch("llama").path)
    with pytest.raises(ModelError, match="not all numbers"):
        Cache(top_k=5).run({"model": tales.artifact(tmp_path / "broken", "torch")}, job(tales, tmp_path / "draft"))


# -- vocabularies


def test_a_teacher_with_another_tokenizer_is_refused_with_another_way(tales: Tales, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    loading.save(loading.load(tales.torch("llama").path), tmp_path, tokenizer_from=tales.torch("llama").path)
    reader = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reader.normalizer = __import__("tokenizers").normalizers.Lowercase()
    reader.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"different tokenizers(.|\n)*`generate`(.|\n)*`finetune`"):
        Model().open({"teacher": tales.artifact(tmp_path, "torch")}, CPU, tales.data)


def test_a_student_with_a_part_of_the_vocabulary_is_taught_about_that_part(tales: Tales) -> None:
    """Ids 0, 2, 4, ... of the teacher are the student's 0, 1, 2, ..."""
    whole, kept = tales.data, torch.arange(0, VOCABULARY, 2)

    class Cut:
        interface = whole.interface.__class__(
            whole.interface.inputs,
            "logits",
            (),
            tokens=whole.interface.text.__class__(len(kept), 32, 1),
        )

        def for_model(self, folder: Path) -> Any:
            return lambda batch: {**batch, "input_ids": kept[batch["input_ids"]]}

    ids = torch.randint(0, len(kept), (2, 9), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "rows": torch.arange(2)}
    found = Model().open({"teacher": tales.torch("llama")}, CPU, Cut())(batch, frozenset()).logits  # type: ignore[arg-type]
    p = live_logits(tales, {**batch, "input_ids": kept[ids]}).double().softmax(-1)[..., kept]
    torch.testing.assert_close(found.double().softmax(-1), p / p.sum(-1, keepdim=True), rtol=1e-4, atol=1e-7)


# -- students


def test_a_student_of_the_whole_vocabulary_kept_is_the_live_teachers(tales: Tales, tmp_path: Path) -> None:
    """To float16's rounding of what was kept; and of a few answers kept it learns the same, nearly."""
    fields: dict[str, Any] = {"steps": 8, "batch_size": 8, "precision": "float32", "optimizer": "sgd"}
    losses = [{"kind": "soft_targets", "temperature": 1}]
    found = {}
    for name, top_k in (("live", None), ("whole", VOCABULARY), ("few", 24)):
        inputs = {"model": tales.torch("llama"), "teacher": tales.torch("llama")}
        teacher: Any = "model"
        if top_k is not None:
            inputs["logits"], _ = cache(tales, tmp_path / f"{name}.cache", top_k)
            teacher = {"kind": "cached", "top_k": top_k}
        stage = Distill.model_validate(
            {
                "kind": "distill",
                "student": {"kind": "layers", "every": 2},
                "teacher": teacher,
                "losses": losses,
                **fields,
            }
        )
        stage.check()
        made = tales.job(tmp_path / name)
        facts = stage.run(inputs, made)
        found[name] = (facts["history"]["loss"], loading.load(tmp_path / name).state_dict())
    live, whole, few = (found[name] for name in ("live", "whole", "few"))
    assert whole[0] == pytest.approx(live[0], rel=1e-3)
    for name, value in live[1].items():
        torch.testing.assert_close(whole[1][name], value, rtol=1e-2, atol=1e-4, msg=name)
    assert few[0][0] < live[0][0], "buckets that are merged lie nearer to each other"
