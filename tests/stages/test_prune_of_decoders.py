"""Pruning of language models as a stage: on the task's own windows, with the tokenizer beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.models import loading
from edgeforge.stages.prune import Prune

if TYPE_CHECKING:
    from conftest import Tales


def pruned(tales: Tales, family: str, folder: Path, **said: Any) -> dict[str, Any]:
    stage = Prune.model_validate({"kind": "prune", **said})
    stage.check()
    rehearsed = stage.rehearse(loading.load(tales.torch(family).path), tales.task)
    job = tales.job(folder)
    made = Job(job.task, folder, 0, job.make_accelerator, job.progress, tales.torch(family).path)
    facts = dict(stage.run({"model": tales.torch(family)}, made))
    if said["structure"]["kind"] != "vocabulary":  # a rehearsal does not count tokens
        assert sum(one.numel() for one in rehearsed.parameters()) == facts["params"]
    return facts


@pytest.mark.parametrize(
    "said",
    [
        {"structure": {"kind": "layers", "count": 1}, "criterion": {"kind": "drop_loss", "samples": 4}},
        {"structure": {"kind": "layers", "count": 1}, "criterion": {"kind": "activation", "samples": 4}},
        {"structure": {"kind": "ffn_width", "ratio": 0.5, "round_to": 32}, "criterion": {"kind": "activation"}},
        {"structure": {"kind": "attention_heads", "ratio": 0.5}, "criterion": {"kind": "taylor", "samples": 4}},
        {"structure": {"kind": "vocabulary", "max_size": 300}},
    ],
    ids=lambda said: f"{said['structure']['kind']}-{said.get('criterion', {}).get('kind')}",
)
def test_the_library_alone_reads_and_writes_with_the_result(said: dict[str, Any], tales: Tales, tmp_path: Path) -> None:
    facts = pruned(tales, "llama", tmp_path, **said)
    assert facts["removed"]["params"][0] > facts["removed"]["params"][1] == facts["params"]
    reader, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    asked = [{"role": "user", "content": "What colour is the fox? ☃"}]
    ids = reader.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    said_ = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert ids.shape[1] < said_.shape[1]
    assert int(said_.max()) < model.config.vocab_size
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loading.load(tmp_path)(ids).logits)


def test_a_cut_vocabulary_reads_the_same_texts_in_more_tokens(tales: Tales, tmp_path: Path) -> None:
    whole_folder = tales.torch("mistral").path
    facts = pruned(tales, "mistral", tmp_path, structure={"kind": "vocabulary", "max_size": 300})
    assert facts["removed"]["tokens"] == [352, 300]
    ids, texts = [], []
    for folder in (whole_folder, tmp_path):
        data = tales.task.open(folder)
        batch = data.batch("transfer", range(data.size("transfer")))
        ids.append(batch["input_ids"][batch["attention_mask"].bool()])
        texts.append(AutoTokenizer.from_pretrained(folder).decode(ids[-1]))
    assert len(ids[1]) > len(ids[0])
    shortest = min(map(len, texts))  # what does not fill a window is left out, and the windows are other ones
    assert shortest > 10_000
    assert texts[0][:shortest] == texts[1][:shortest]
    data = tales.task.open(tmp_path)
    batch = data.batch("transfer", range(8))
    back = data.for_model(whole_folder)(batch)["input_ids"]
    for mine, theirs in zip(batch["input_ids"], back, strict=True):
        spoken = [
            AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(one)
            for folder, one in ((tmp_path, mine), (whole_folder, theirs))
        ]
        assert spoken[0] == spoken[1]


def test_a_vocabulary_smaller_than_the_bytes_is_refused(tales: Tales, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a vocabulary of 256 would lose(.|\n)*at least 2\d\d"):
        pruned(tales, "llama", tmp_path, structure={"kind": "vocabulary", "max_size": 256})


def test_facts_say_what_went(tales: Tales, tmp_path: Path) -> None:
    facts = pruned(tales, "qwen3", tmp_path, structure={"kind": "attention_heads", "keep": 2}, criterion="magnitude")
    removed = json.loads(json.dumps(facts["removed"]))
    assert (removed["heads"], removed["key_value_heads"]) == ([4, 2], [2, 1])
    assert set(removed["kept"]) == {f"model.layers.{block}" for block in range(3)}
