"""The whole mission on a tiny Llama: written chats, pruning, a cached teacher, INT4 in three formats, one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from edgeforge import gguf_file
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.pipeline import parse
from edgeforge.plan import Plan, build
from edgeforge.run import Outcome, execute
from edgeforge.store import Store

if TYPE_CHECKING:
    from tests.conftest import Tales

TRAINED = {"batch_size": 16, "learning_rate": 3e-3}


class Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def pipeline(tales: Tales, **changes: Any) -> dict[str, Any]:
    task = tales.task.model_dump(mode="json")
    return {
        "name": "tales",
        "task": {**task, "prompts": str(tales.root / "prompts.jsonl"), "max_new_tokens": 8},
        "model": {
            "kind": "config",
            "architecture": "llama",
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 256,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
        },
        "stages": [
            {"kind": "train", "steps": 60, **TRAINED},
            {"kind": "generate", "name": "written", "prompt_tokens": 8, "max_new_tokens": 24},
            {"kind": "prune", "name": "shallow", "structure": {"kind": "layers", "count": 1}},
            {
                "kind": "prune",
                "name": "narrow",
                "structure": {"kind": "ffn_width", "width": 128},
                "criterion": "activation",
                "recover": {
                    "teacher": {"kind": "cached", "stage": "train", "top_k": 16},
                    "losses": [
                        {"kind": "soft_targets", "temperature": 1, "weight": 0.9},
                        {"kind": "hard_labels", "weight": 0.1},
                    ],
                    "mix": {"stage": "written", "share": 0.3},
                    "steps": 30,
                    **TRAINED,
                },
            },
        ],
        "targets": [
            {"name": "mixed", "quantize": {"kind": "gguf_k", "type": "iq4_nl"}, "export": "gguf", "devices": []},
            {"name": "gguf", "quantize": "int4_weights", "export": "gguf", "devices": []},
            {"name": "onnx", "quantize": "int4_weights", "export": "onnx", "devices": []},
            {"name": "ios", "quantize": "int4_weights", "export": "coreml", "devices": []},
        ],
        **changes,
    }


def planned(source: dict[str, Any]) -> Plan:
    return build(parse(yaml.safe_dump(source).encode(), "tales.yaml"))


@pytest.fixture(scope="module")
def outcome(tales: Tales, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("mission")
    return execute(
        planned(pipeline(tales)),
        Store(folder / "store"),
        folder / "out",
        watcher=Silent(),  # type: ignore[arg-type]
    )


def test_every_file_is_shipped(outcome: Outcome) -> None:
    rows = {row.name: (row.status, row.reason) for row in outcome.report.artifacts}
    assert rows == dict.fromkeys(["baseline", "mixed", "gguf", "onnx", "ios"], ("shipped", None))
    assert outcome.error is None


def test_each_file_has_metrics_of_its_own(outcome: Outcome) -> None:
    for row in outcome.report.artifacts:
        assert row.metrics["perplexity"] is not None
        assert row.metrics["perplexity"] < 12  # 352 for one that knows nothing
        assert row.parity.passed
        if row.name != "baseline":
            assert row.metrics["mean_kld"] is not None
            assert row.comparison is not None
            assert row.comparison.ci95 is not None
        assert row.evaluated["window"] == row.evaluated["stride"] == 32
        assert row.evaluated["tokens"] == 31 * row.evaluated["windows"]
    runtimes = {row.name: row.metrics_runtime for row in outcome.report.artifacts}
    assert (runtimes["gguf"], runtimes["onnx"], runtimes["ios"]) == ("llama_cpp", "onnxruntime", "coreml_reference")


def test_each_file_is_compared_with_the_model_that_taught(outcome: Outcome) -> None:
    assert outcome.report.teacher == "train"
    for row in outcome.report.artifacts:
        found = row.against_teacher
        assert found is not None and found.unit == "token"
        assert found.agreement == pytest.approx(row.metrics["top1_agreement"])
        assert found.agreement_ci95 is not None
        assert found.agreement_ci95[0] <= found.agreement <= found.agreement_ci95[1]


def test_three_formats_with_the_same_integers_answer_alike(outcome: Outcome) -> None:
    rows = {row.name: row for row in outcome.report.artifacts}
    found = [rows[name].metrics["perplexity"] for name in ("gguf", "onnx", "ios")]
    # Activations are rounded to 8 bits in two of the three runtimes.
    assert np.ptp(found) < 0.02 * np.mean(found)


def test_the_report_tells_what_was_written(outcome: Outcome) -> None:
    stage = next(row for row in outcome.report.stages if row.name == "written")
    facts = stage.facts.model_extra or {}
    assert facts["documents"] > 0
    assert facts["settings"]["max_new_tokens"] == 24
    json.loads(outcome.report.to_json())


def test_real_bits_per_weight_are_said(outcome: Outcome) -> None:
    row = next(row for row in outcome.report.artifacts if row.name == "mixed")
    assert 4.5 <= row.quantization["bits_per_weight"] < 9


def test_the_files_are_of_the_pruned_shape(outcome: Outcome, tmp_path_factory: pytest.TempPathFactory) -> None:
    folders = sorted(tmp_path_factory.getbasetemp().glob("mission*/out/artifacts/gguf"))
    file = gguf_file.read(folders[-1] / gguf_file.MODEL)
    assert (file.said("block_count"), file.said("feed_forward_length")) == (2, 128)


def test_a_mix_of_what_no_stage_writes_is_refused(tales: Tales) -> None:
    source = pipeline(tales)
    source["stages"][3]["recover"]["mix"]["stage"] = "shallow"
    with pytest.raises(IncompatiblePlanError, match="no earlier stage that writes texts is named"):
        planned(source)


def test_other_families_are_refused_by_name(tales: Tales, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    source = pipeline(tales, model={"kind": "pretrained", "path": str(tmp_path)})
    with pytest.raises(IncompatiblePlanError, match="gpt2"):
        planned(source)


@pytest.mark.parametrize("place", ["model", "stages[0].student"])
def test_encoders_are_no_language_models(tales: Tales, place: str) -> None:
    """The library has a BERT that predicts the next token, and sees it meanwhile."""
    bert = {"kind": "config", "architecture": "bert", "hidden_size": 32, "num_attention_heads": 2}
    student = {"kind": "distill", "student": bert, "losses": ["hard_labels"], "steps": 1}
    changes = {"model": bert} if place == "model" else {"stages": [student]}
    with pytest.raises(IncompatiblePlanError, match="is bert, and causal_lm takes llama, mistral") as caught:
        planned(pipeline(tales, targets=[], **changes))
    assert caught.value.where == f"{place}.architecture"


def test_a_language_model_is_not_written_for_openvino(tales: Tales) -> None:
    with pytest.raises(IncompatiblePlanError, match="causal_lm are not written as openvino"):
        planned(pipeline(tales, targets=[{"name": "laptop", "export": "openvino"}]))


def test_a_trained_model_is_not_compared_with_its_own_beginning(tales: Tales) -> None:
    plan = planned(pipeline(tales))
    assert plan.baseline == "train"
    assert "reference" not in plan.step("train.evaluate").inputs
    assert plan.step("narrow.recover.evaluate").inputs["reference"] == "train"
