"""Whole programs against the torch models they were converted from: classifiers, encoders, decoders with a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("coremltools")

from edgeforge.core.errors import ModelError
from edgeforge.exporters.coreml import Coreml
from edgeforge.models import loading
from edgeforge.runtimes.coreml_reference import CoremlReference, open_model

if TYPE_CHECKING:
    Digits = Any

LENGTH, STEPS = 16, 64
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the range of the expected numbers."""
    return float(np.abs(found - expected).max() / (expected.max() - expected.min()))


def convert(network: torch.nn.Module, examples: tuple[torch.Tensor, ...], path: Path, **options: Any) -> Path:
    """By way of torch.export, and saved; `options` are those of ``coremltools.convert``."""
    import coremltools as ct

    shapes = options.pop("dynamic_shapes", None)
    with torch.no_grad():
        program = torch.export.export(network.eval(), examples, dynamic_shapes=shapes).run_decompositions({})
    defaults: dict[str, Any] = {
        "minimum_deployment_target": ct.target.iOS18,
        "compute_precision": ct.precision.FLOAT32,
        "skip_model_load": True,
    }
    ct.convert(program, **{**defaults, **options}).save(str(path))
    return path


# -- image classifiers


FAMILIES = ["resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v2", "vit", "convnext"))]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_classifier_answers_as_torch_does(family: str, digits: Digits, tmp_path: Path) -> None:
    artifact = digits.torch(family)
    Coreml(precision="float32").export(artifact, digits.job(tmp_path / "file"))
    images = digits.data.batch("validation", range(6))["pixel_values"]
    with torch.no_grad():
        expected = loading.load(artifact.path)(images).logits.log_softmax(-1).numpy()
    found = CoremlReference().open(tmp_path / "file").run({"pixel_values": images.numpy()})
    assert relative_error(found, expected) <= 1e-5
    rounded = CoremlReference(precision="float16").open(tmp_path / "file").run({"pixel_values": images.numpy()})
    assert 1e-5 < relative_error(rounded, expected) < 0.05


# -- encoders


class Encoder(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if int(transformers.__version__.partition(".")[0]) >= 5:  # coremltools cannot convert the mask it makes itself
            attention_mask = (1 - attention_mask[:, None, None, :].float()) * -1e4
        logits: torch.Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def encoder(kind: str) -> Encoder:
    torch.manual_seed(0)
    shared = {"vocab_size": 100, "max_position_embeddings": 64, "num_labels": 3}
    if kind == "distilbert":
        config: Any = transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **shared)
    else:
        config = transformers.BertConfig(**shared, **(TINY | {"num_hidden_layers": 6 if kind == "minilm" else 2}))
    network = transformers.AutoModelForSequenceClassification.from_config(config)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_normal_(parameter)
    return Encoder(network).eval()


def tokens(length: int, seed: int, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 100, (1, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    if padding:
        mask[:, -padding:] = 0
        ids[:, -padding:] = 0
    return ids, mask


def converted_encoder(kind: str, path: Path, **options: Any) -> tuple[Encoder, Path]:
    import coremltools as ct

    network = encoder(kind)
    options = {"outputs": [ct.TensorType(name="logits")], **options}
    return network, convert(network, tokens(LENGTH, 0), path, **options)


KINDS = ["distilbert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "minilm"))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_encoder_answers_as_torch_does(kind: str, tmp_path: Path) -> None:
    network, path = converted_encoder(kind, tmp_path / "m.mlpackage")
    model = open_model(path)
    for padding in (0, 5):
        ids, mask = tokens(LENGTH, padding, padding)
        with torch.no_grad():
            expected = network(ids, mask).numpy()
        found = model.predict({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["logits"]
        assert relative_error(found, expected) <= 1e-5


@pytest.mark.slow
def test_a_flexible_length(tmp_path: Path) -> None:
    length = torch.export.Dim("length", min=2, max=32)
    shapes = {"input_ids": {1: length}, "attention_mask": {1: length}}
    network, path = converted_encoder("bert", tmp_path / "m.mlpackage", dynamic_shapes=shapes)
    model = open_model(path)
    for count in (3, 16, 31):
        ids, mask = tokens(count, count)
        with torch.no_grad():
            expected = network(ids, mask).numpy()
        found = model.predict({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["logits"]
        assert relative_error(found, expected) <= 1e-5
    ids, mask = tokens(33, 0)
    with pytest.raises(ModelError, match=r"'input_ids' does not take the shape \(1, 33\)"):
        model.predict({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})


@pytest.mark.parametrize("family", ["distilbert"])
def test_a_text_classifier_as_a_session(family: str, tmp_path: Path) -> None:
    """Shorter texts are filled up to the length of the file, and the mask keeps them apart."""
    import coremltools as ct
    from coremltools.models.utils import load_spec, save_spec

    network = encoder(family)
    labelled = torch.nn.Sequential()
    labelled.forward = lambda input_ids, attention_mask: network(input_ids, attention_mask).softmax(-1)  # type: ignore[method-assign]
    labelled.network = network
    classes = ct.ClassifierConfig(["b", "a", "c"], predicted_feature_name="classLabel")
    path = convert(labelled, tokens(LENGTH, 0), tmp_path / "model.mlpackage", classifier_config=classes)
    spec = load_spec(str(path))
    spec.description.metadata.userDefined["edgeforge.labels"] = json.dumps(["b", "a", "c"])
    spec.description.metadata.userDefined["edgeforge.tokens"] = json.dumps({"pad_id": 7})
    save_spec(spec, str(path / "Data/com.apple.CoreML/model.mlmodel"))
    session = CoremlReference().open(tmp_path, threads=1)
    rows = [tokens(11, seed, padding=2 * seed) for seed in range(2)]
    ids, mask = (torch.cat(column) for column in zip(*rows, strict=True))
    with torch.no_grad():
        expected = network(ids, mask).log_softmax(-1).numpy()
    found = session.run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    assert found.shape == (2, 3)
    assert relative_error(found, expected) <= 1e-5
    with pytest.raises(ModelError, match="'input_ids' has 17 tokens, more than the package takes"):
        session.run({name: np.ones((1, 17), np.int64) for name in ("input_ids", "attention_mask")})
    with pytest.raises(ModelError, match="its inputs are input_ids, attention_mask, and given are input_ids"):
        session.run({"input_ids": ids.numpy()})


# -- decoders


def llama() -> Any:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=128,
        num_key_value_heads=2,
        max_position_embeddings=STEPS,
        attn_implementation="eager",
        use_cache=False,
        **TINY,
    )
    network = transformers.LlamaForCausalLM(config).eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_normal_(parameter)
        parameter.data = parameter.data.half().float()  # so that a float16 file holds the same weights
    return network


def traced(network: torch.nn.Module, examples: tuple[torch.Tensor, ...], path: Path, **options: Any) -> Path:
    import coremltools as ct

    with torch.no_grad():
        program = torch.jit.trace(network.eval(), examples, check_trace=False)
    outputs = [ct.TensorType(name="logits")]
    ct.convert(
        program, outputs=outputs, minimum_deployment_target=ct.target.iOS18, skip_model_load=True, **options
    ).save(str(path))
    return path


@pytest.mark.slow
def test_a_decoder_without_a_cache(tmp_path: Path) -> None:
    import coremltools as ct

    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = llama()

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(input_ids=ids, attention_mask=mask).logits
            return logits

    ids = torch.randint(0, 128, (1, LENGTH), dtype=torch.int32)
    mask = torch.full((1, 1, LENGTH, LENGTH), -1e4).triu(1)
    network = Masked().eval()
    inputs = [ct.TensorType(name="ids", shape=ids.shape, dtype=np.int32), ct.TensorType(name="mask", shape=mask.shape)]
    options = {"inputs": inputs, "compute_precision": ct.precision.FLOAT32}
    model = open_model(traced(network, (ids, mask), tmp_path / "m.mlpackage", **options))
    with torch.no_grad():
        expected = network.network(input_ids=ids).logits.numpy()
    found = model.predict({"ids": ids.numpy(), "mask": mask.numpy()})["logits"]
    assert relative_error(found, expected) <= 1e-5
    assert verified_against(network.network, tmp_path / "m.mlpackage", tmp_path / "torch").passed is True


class Cached(torch.nn.Module):
    """A Llama that takes one token and keeps keys and values of all before it in buffers of fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.network = llama()
        config = self.network.config
        shape = (1, config.num_key_value_heads, STEPS, config.hidden_size // config.num_attention_heads)
        for index in range(config.num_hidden_layers):
            self.register_buffer(f"keys_{index}", torch.zeros(shape))
            self.register_buffer(f"values_{index}", torch.zeros(shape))

    def forward(self, ids: torch.Tensor, position: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

        body = self.network.model
        hidden = body.embed_tokens(ids)
        cos, sin = body.rotary_emb(hidden, position[None])
        here = (torch.arange(STEPS, dtype=torch.int32)[:, None] == position[None]).float()
        for index, layer in enumerate(body.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            split = (1, 1, -1, attention.head_dim)
            query, key, value = (
                project(normed).view(split).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            kept = []
            for name, new in ((f"keys_{index}", key), (f"values_{index}", value)):
                buffer = getattr(self, name)
                updated = buffer * (1 - here) + here * new
                buffer[:] = updated
                kept.append(repeat_kv(updated, attention.num_key_value_groups))
            mixed = torch.nn.functional.scaled_dot_product_attention(query, *kept, attn_mask=mask)
            hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(1, 1, -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits: torch.Tensor = self.network.lm_head(body.norm(hidden))
        return logits


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The Llama behind it, and a float16 package with its cache as states."""
    import coremltools as ct

    network = Cached().eval()
    examples = (
        torch.zeros((1, 1), dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
        torch.full((1, 1, 1, STEPS), -1e4),
    )
    shapes = [("ids", np.int32), ("position", np.int32), ("mask", np.float32)]
    inputs = [
        ct.TensorType(name=name, shape=value.shape, dtype=kind)
        for (name, kind), value in zip(shapes, examples, strict=True)
    ]
    states = [
        ct.StateType(wrapped_type=ct.TensorType(shape=buffer.shape, dtype=np.float16), name=name)
        for name, buffer in network.named_buffers()
        if name.startswith(("keys_", "values_"))
    ]
    path = tmp_path_factory.mktemp("llama") / "m.mlpackage"
    return network.network, traced(network, examples, path, inputs=inputs, states=states)


def decode(model: Any, ids: torch.Tensor, state: Any) -> np.ndarray:
    found = []
    for step in range(ids.shape[1]):
        mask = np.where(np.arange(STEPS) <= step, 0.0, -1e4).astype(np.float32).reshape(1, 1, 1, STEPS)
        token = {"ids": ids[:, step : step + 1].numpy(), "position": np.int32([step]), "mask": mask}
        found.append(model.predict(token, state)["logits"][0, 0])
    return np.stack(found)


def test_a_decoder_with_its_cache_in_states(cached: tuple[Any, Path]) -> None:
    network, path = cached
    ids = torch.randint(0, 128, (1, STEPS), dtype=torch.int32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = network(input_ids=ids).logits[0].numpy()
    model = open_model(path)
    state = model.make_state()
    found = decode(model, ids, state)
    assert relative_error(found, expected) <= 1e-3
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))
    # The states belong to the caller: the same one goes on, a fresh one starts anew.
    assert any(bool(kept.value.abs().sum() > 0) for kept in state.values())
    assert np.array_equal(decode(model, ids[:, :3], model.make_state()), found[:3])


def test_a_decoder_of_another_author_against_torch(cached: tuple[Any, Path], tmp_path: Path) -> None:
    """Its inputs are told by name; it reads token by token, as its states want it."""
    network, path = cached
    assert verified_against(network, path, tmp_path / "torch").passed is True
    network.lm_head.weight.data[3] *= 1.5
    try:
        assert verified_against(network, path, tmp_path / "other").passed is False
    finally:
        network.lm_head.weight.data[3] /= 1.5


def verified_against(network: Any, package: Path, folder: Path) -> Any:
    from edgeforge.commands import verify

    loading.save(network, folder)
    (found,) = verify.check(package, against=folder)
    return next(check for check in found.checks if check.name == "parity with torch")


def test_an_exported_decoder_over_its_whole_state(tales: Any, tmp_path: Path) -> None:
    """EdgeForge's own package, token by token until its state is full; keys and values are float16."""
    model = tales.torch("llama")
    Coreml(precision="float32", context=STEPS).export(model, tales.job(tmp_path / "file"))
    session = CoremlReference().open(tmp_path / "file")
    ids = torch.randint(3, 352, (1, STEPS), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = loading.load(model.path)(input_ids=ids).logits[0].numpy()
    state = session.model.make_state()  # type: ignore[union-attr]
    steps = [session.read([int(token)], state, start=place) for place, token in enumerate(ids[0])]  # type: ignore[union-attr]
    found = np.concatenate(steps, axis=1)[0]
    assert relative_error(found, expected) <= 1e-3
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))
