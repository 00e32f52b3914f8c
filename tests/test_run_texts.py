"""A text classifier through the whole chain: vocabulary, student, feed-forward width, three files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.models import tokenizer
from edgeforge.pipeline import parse
from edgeforge.plan import build
from edgeforge.run import Outcome, execute
from edgeforge.store import Store

if TYPE_CHECKING:
    from tests.conftest import Mails

TAUGHT = {"losses": ["soft_targets"], "batch_size": 16, "epochs": 2, "learning_rate": 2e-3}


class Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def pipeline(mails: Mails, **changes: Any) -> dict[str, Any]:
    task = mails.task.model_dump(mode="json", exclude={"labelled"})
    return {
        "name": "texts",
        "task": task,
        "model": {
            "kind": "config",
            "architecture": "bert",
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
        "stages": [
            {"kind": "train", "epochs": 6, "batch_size": 16, "learning_rate": 3e-3},
            {"kind": "prune", "name": "vocabulary", "structure": "vocabulary"},
            {
                "kind": "distill",
                "student": {"kind": "width", "multiple": 0.5, "weights": "teacher", "keep": [0, 2]},
                "teacher": "cached",
                **TAUGHT,
            },
            {
                "kind": "prune",
                "structure": {"kind": "ffn_width", "ratio": 0.5},
                "recover": {"teacher": {"kind": "cached", "stage": "vocabulary"}, **TAUGHT},
            },
        ],
        "targets": [
            {"name": "android", "quantize": "int8_dynamic", "export": "onnx", "devices": []},
            {
                "name": "ios",
                "quantize": {"kind": "int8_weights", "min_elements": 64},
                "export": "coreml",
                "devices": [],
            },
        ],
        **changes,
    }


def run(source: dict[str, Any], folder: Path) -> Outcome:
    plan = build(parse(yaml.safe_dump(source).encode(), "texts.yaml"))
    return execute(plan, Store(folder / "store"), folder / "out", watcher=Silent())  # type: ignore[arg-type]


def test_from_texts_to_files(mails: Mails, tmp_path: Path) -> None:
    outcome = run(pipeline(mails), tmp_path)
    assert outcome.error is None
    report = outcome.report
    assert {row.name: row.status for row in report.artifacts} == dict.fromkeys(
        ("baseline", "android", "ios"), "shipped"
    )
    for row in report.artifacts:
        assert row.metrics["macro_f1"] is not None
        assert row.metrics["macro_f1"] > 0.8, row.name
        assert row.parity.passed
        assert set(tokenizer.FILES) & set(row.companions) >= {"tokenizer.json", "tokenizer_config.json"}
    assert [row.metrics_runtime for row in report.artifacts][:2] == ["onnxruntime", "onnxruntime"]
    # One set of answers teaches both times.
    assert sum(path.name == "logits.safetensors" for path in (tmp_path / "store" / "sealed").rglob("*")) == 1
    whole, cut = (len(tokenizer.tokens(tmp_path / "out" / "artifacts" / name)) for name in ("baseline", "android"))
    assert cut < whole
    config = json.loads((tmp_path / "out" / "artifacts" / "android" / "config.json").read_text(encoding="utf-8"))
    assert (config["vocab_size"], config["hidden_size"], config["intermediate_size"]) == (cut, 16, 16)
    again = run(pipeline(mails), tmp_path)
    assert all(row.cached for row in again.report.stages)
    # The first metric is the headline, in what is read back as in what was just made.
    assert [next(iter(row.metrics)) for row in again.report.artifacts] == ["macro_f1"] * 3


def test_a_tokenizer_that_is_not_the_models(mails: Mails, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    source = pipeline(mails, model={"kind": "pretrained", "path": str(tmp_path / "model")}, stages=[])
    with pytest.raises(ModelError, match=r"its tokenizer has \d+ tokens, the model embeddings for 20"):
        run(source, tmp_path)


def test_a_teacher_that_reads_otherwise(mails: Mails, tmp_path: Path) -> None:
    from edgeforge.models import loading

    other = tmp_path / "other"
    loading.save(loading.load(mails.torch("bert").path), other)
    mails.data.write_reader(other)
    content = (other / tokenizer.MAIN).read_text(encoding="utf-8")
    (other / tokenizer.MAIN).write_text(content.replace('"lowercase": true', '"lowercase": false'), encoding="utf-8")
    teacher = {"kind": "model", "model": {"kind": "pretrained", "path": str(other)}}
    stages = [
        {"kind": "train", "steps": 1},
        {"kind": "finetune", "steps": 1, "teacher": teacher, "losses": ["soft_targets"]},
    ]
    with pytest.raises(IncompatiblePlanError, match=r"different tokenizers(.|\n)*by sequence") as error:
        build(parse(yaml.safe_dump(pipeline(mails, stages=stages, targets=[])).encode(), "texts.yaml"))
    assert error.value.where == "stages[1].teacher"


def test_a_cached_teacher_and_losses_on_its_layers(mails: Mails) -> None:
    stage = {"kind": "distill", "teacher": "cached", "losses": ["hidden_states"]}
    with pytest.raises(IncompatiblePlanError):
        build(parse(yaml.safe_dump(pipeline(mails, stages=[stage])).encode(), "texts.yaml"))


def test_a_classifier_is_not_written_as_gguf(mails: Mails) -> None:
    source = pipeline(mails, targets=[{"name": "phone", "export": "gguf"}])
    with pytest.raises(IncompatiblePlanError, match="text_classification are not written as gguf") as error:
        build(parse(yaml.safe_dump(source).encode(), "texts.yaml"))
    assert error.value.remedy == "export to one of coreml, onnx, openvino"
