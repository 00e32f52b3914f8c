"""The sizes of a decoder, in GGUF metadata and in Hugging Face configs, both ways."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeforge import gguf_names
from edgeforge.architectures._decoder import rotary
from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig

    from edgeforge.gguf_file import GgufFile

Shapes = Mapping[str, tuple[int, ...]]

ORIGINAL_CONTEXT = 8192
"""What Llama 3.1 was first trained on; the file does not say it."""

_ANOTHER = "use a model of the Llama, Mistral, Qwen2 or Qwen3 family"
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Sizes:
    """One decoder; what may differ from layer to layer has a number for each."""

    architecture: str
    vocabulary: int
    hidden: int
    head_size: int
    heads: tuple[int, ...]
    key_value_heads: tuple[int, ...]
    neurons: tuple[int, ...]
    context: int
    theta: float
    epsilon: float
    tied: bool
    biases: frozenset[str] = frozenset()
    """Modules of a block that have biases, by their Hugging Face names."""
    scaling: Mapping[str, Any] | None = field(default=None)

    @property
    def model_type(self) -> str:
        """Hugging Face's word for the family."""
        return gguf_names.MODEL_TYPES[self.architecture]

    @property
    def uniform(self) -> bool:
        """Whether every layer has the same widths."""
        return all(len(set(widths)) == 1 for widths in (self.heads, self.key_value_heads, self.neurons))

    # -- tensors

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by its Hugging Face name."""
        found = {"model.embed_tokens.weight": (self.vocabulary, self.hidden), "model.norm.weight": (self.hidden,)}
        if not self.tied:
            found["lm_head.weight"] = (self.vocabulary, self.hidden)
        for layer in range(len(self.heads)):
            for name, shape in self._block(layer):
                found[f"model.layers.{layer}.{name}.weight"] = shape
                if name in self.biases:
                    found[f"model.layers.{layer}.{name}.bias"] = shape[:1]
        return found

    def _block(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        queries = self.heads[layer] * self.head_size
        keys = self.key_value_heads[layer] * self.head_size
        neurons = self.neurons[layer]
        yield "input_layernorm", (self.hidden,)
        yield "self_attn.q_proj", (queries, self.hidden)
        yield "self_attn.k_proj", (keys, self.hidden)
        yield "self_attn.v_proj", (keys, self.hidden)
        yield "self_attn.o_proj", (self.hidden, queries)
        if self.model_type == "qwen3":
            yield "self_attn.q_norm", (self.head_size,)
            yield "self_attn.k_norm", (self.head_size,)
        yield "post_attention_layernorm", (self.hidden,)
        yield "mlp.gate_proj", (neurons, self.hidden)
        yield "mlp.up_proj", (neurons, self.hidden)
        yield "mlp.down_proj", (self.hidden, neurons)

    def check(self, held: Shapes, *, where: str) -> None:
        """Raise ModelError unless `held`, by Hugging Face names, are this decoder's tensors."""
        wanted = self.tensors()
        for what, names in (
            ("missing", wanted.keys() - held.keys()),
            ("no tensor of this architecture", held.keys() - wanted.keys()),
            ("not of the shape that its sizes say", {n for n in wanted.keys() & held.keys() if wanted[n] != held[n]}),
        ):
            if names:
                name = gguf_names.to_gguf(min(names)) or min(names)
                raise ModelError(f"{name} is {what}", where=where, remedy="use a whole file of this family")

    # -- the Hugging Face side

    def config(self, **ids: Any) -> PretrainedConfig:
        """The config of this shape, the widest layer's widths where they differ; `ids` are special tokens'."""
        from transformers import CONFIG_MAPPING

        groups = max(self.key_value_heads)
        fields = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": len(self.heads),
            "num_attention_heads": -(-max(self.heads) // groups) * groups,
            "num_key_value_heads": groups,
            "head_dim": self.head_size,
            "intermediate_size": max(self.neurons),
            "max_position_embeddings": self.context,
            "rope_theta": self.theta,
            "rms_norm_eps": self.epsilon,
            "tie_word_embeddings": self.tied,
            **({"rope_scaling": dict(self.scaling)} if self.scaling else {}),
            **({"attention_bias": _ATTENTION[0] in self.biases} if self.model_type != "qwen2" else {}),
            **({"mlp_bias": _FEED_FORWARD[0] in self.biases} if self.model_type == "llama" else {}),
        }
        config = CONFIG_MAPPING[self.model_type](**fields, **ids)
        config.architectures = [f"{self.model_type.capitalize()}ForCausalLM"]
        return config

    # -- the GGUF side

    def metadata(self) -> dict[str, Any]:
        """What llama.cpp reads, under its own names."""
        layers: dict[str, Any] = {
            "feed_forward_length": self.neurons,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.key_value_heads,
        }
        said = {
            "block_count": len(self.heads),
            "context_length": self.context,
            "embedding_length": self.hidden,
            **{name: widths[0] if self.uniform else list(widths) for name, widths in layers.items()},
            "rope.freq_base": self.theta,
            "attention.layer_norm_rms_epsilon": self.epsilon,
            "attention.key_length": self.head_size,
            "attention.value_length": self.head_size,
            "rope.dimension_count": self.head_size,
            "vocab_size": self.vocabulary,
        }
        if self.scaling and self.scaling["rope_type"] == "linear":
            said |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(self.scaling["factor"])}
        return {f"{self.architecture}.{name}": value for name, value in said.items()}

    def rope_factors(self) -> np.ndarray | None:
        """What divides each rotary frequency where the config says ``llama3``, float32, (head size / 2,); else None.

        As `transformers` computes it (Llama 3.1): high frequencies stay, low ones are divided by the factor, and those
        between go smoothly from one to the other.
        """
        if not self.scaling or self.scaling["rope_type"] != "llama3":
            return None
        import numpy as np

        said = self.scaling
        exponents = np.arange(0, self.head_size, 2, dtype=np.float32) / np.float32(self.head_size)
        wavelengths = 2 * math.pi * np.float32(self.theta) ** exponents
        periods = said["original_max_position_embeddings"] / wavelengths
        low, high = said["low_freq_factor"], said["high_freq_factor"]
        smooth = np.clip((periods - low) / (high - low), 0, 1)
        stretched: np.ndarray = (1 / ((1 - smooth) / said["factor"] + smooth)).astype(np.float32)
        return stretched


def of_config(config: PretrainedConfig, held: Shapes, *, where: str) -> Sizes:
    """The sizes of a model from its config and the shapes of its tensors. Raises ModelError where no GGUF says them."""
    if config.model_type not in gguf_names.ARCHITECTURES:
        raise ModelError(f"a {config.model_type} is not written as GGUF", where=where, remedy=_ANOTHER)
    theta, scaling = rotary(config)
    if scaling and scaling["rope_type"] not in ("linear", "llama3"):
        raise ModelError(
            f"rotary positions stretched by {scaling['rope_type']!r} are not written as GGUF",
            where=where,
            remedy="remove rope_scaling from its config and use shorter texts",
        )
    if config.hidden_act != "silu":
        raise ModelError(f"llama.cpp computes silu, the config says {config.hidden_act}", where=where, remedy=_ANOTHER)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = range(config.num_hidden_layers)
    table = "model.embed_tokens.weight"
    if missing := [name for name in (table, *map(_up, layers), *map(_query, layers)) if name not in held]:
        raise ModelError(f"{missing[0]} is missing from the weights", where=where, remedy="use a whole checkpoint")
    made = Sizes(
        architecture=gguf_names.ARCHITECTURES[config.model_type],
        vocabulary=held[table][0],
        hidden=held[table][1],
        head_size=size,
        heads=tuple(held[_query(n)][0] // size for n in layers),
        key_value_heads=tuple(held[_query(n).replace("q_proj", "k_proj")][0] // size for n in layers),
        neurons=tuple(held[_up(n)][0] for n in layers),
        context=_context(config),
        theta=theta,
        epsilon=config.rms_norm_eps,
        tied="lm_head.weight" not in held,
        biases=_biased(held),
        scaling=scaling,
    )
    if not made.uniform:
        made = _non_uniform(made, config.model_type, where)
    made.check(held, where=where)
    return made


def _non_uniform(made: Sizes, model_type: str, where: str) -> Sizes:
    from dataclasses import replace

    if gguf_names.ARCHITECTURES[model_type] != "llama":
        raise ModelError(
            f"its layers differ in width, which llama.cpp does not read of a {model_type}",
            where=where,
            remedy="use a model whose layers are alike",
        )
    return replace(made, architecture=gguf_names.NON_UNIFORM)


def attention_window(config: PretrainedConfig) -> int | None:
    """How many tokens each token sees; None: all before it."""
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def _context(config: PretrainedConfig) -> int:
    """The longest text: llama.cpp lets every token see all before it, so a window must not be left."""
    return int(min(config.max_position_embeddings, attention_window(config) or config.max_position_embeddings))


def _query(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.q_proj.weight"


def _up(layer: int) -> str:
    return f"model.layers.{layer}.mlp.up_proj.weight"


def _biased(held: Shapes) -> frozenset[str]:
    start = "model.layers.0."
    return frozenset(
        name.removeprefix(start).removesuffix(".bias")
        for name in held
        if name.startswith(start) and name.endswith(".bias")
    )


def of_file(file: GgufFile) -> Sizes:
    """The sizes of the model in a file. Raises ModelError where it is of another family, or not whole."""
    where = str(file.path)
    if file.architecture not in gguf_names.MODEL_TYPES:
        known = ", ".join(sorted(gguf_names.MODEL_TYPES))
        raise ModelError(f"its architecture is {file.architecture!r}; known are {known}", where=where, remedy=_ANOTHER)
    if file.said("expert_count"):
        raise ModelError("it is a mixture of experts", where=where, remedy=_ANOTHER)
    held = {name: tensor.shape for name, tensor in _named(file).items()}
    hidden, layers = _number(file, "embedding_length"), _number(file, "block_count")
    if layers > len(file.tensors) or "model.embed_tokens.weight" not in held:
        raise ModelError("its layers are not whole", where=where, remedy="download or export the file again")
    heads = _per_layer(file, "attention.head_count", layers)
    size = file.said("attention.key_length") or hidden // max(heads)
    if any(file.said(name, size) != size for name in ("attention.value_length", "rope.dimension_count")):
        raise ModelError("its heads are of several widths, or turned in part", where=where, remedy=_ANOTHER)
    made = Sizes(
        architecture=file.architecture,
        vocabulary=held["model.embed_tokens.weight"][0],
        hidden=hidden,
        head_size=size,
        heads=heads,
        key_value_heads=_per_layer(file, "attention.head_count_kv", layers, default=heads),
        neurons=_per_layer(file, "feed_forward_length", layers),
        context=_number(file, "context_length"),
        theta=_shortest(file.said("rope.freq_base", 10000.0)),
        epsilon=_shortest(file.said("attention.layer_norm_rms_epsilon")),
        tied="lm_head.weight" not in held,
        biases=_biased(held),
    )
    _check_biases(made, where)
    made.check(held, where=where)
    return _with_scaling(made, file)


def _named(file: GgufFile) -> dict[str, Any]:
    """The file's tensors by their Hugging Face names; unknown ones by their own."""
    kept = {name: tensor for name, tensor in file.tensors.items() if name != gguf_names.ROPE_FACTORS}
    return {gguf_names.to_hugging_face(name) or name: tensor for name, tensor in kept.items()}


def _number(file: GgufFile, name: str) -> int:
    value = file.said(name)
    if not isinstance(value, int) or not 0 < value < 2**31:
        raise ModelError(f"{file.architecture}.{name} is {value!r}", where=str(file.path), remedy=_ANOTHER)
    return value


def _per_layer(file: GgufFile, name: str, layers: int, *, default: Sequence[int] | None = None) -> tuple[int, ...]:
    value = file.said(name, default)
    found = tuple(value) if isinstance(value, list | tuple) else (value,) * layers
    if len(found) != layers or not all(isinstance(width, int) and 0 < width < 2**31 for width in found):
        raise ModelError(
            f"{file.architecture}.{name} does not give each of {layers} layers a width",
            where=str(file.path),
            remedy=_ANOTHER,
        )
    return found


def _shortest(value: Any) -> float:
    """The decimal number that a float32 was written for: 9.999999747378752e-06 -> 1e-05."""
    import numpy as np

    return float(str(np.float32(value if isinstance(value, int | float) else "nan")))


def _check_biases(made: Sizes, where: str) -> None:
    known: dict[str, list[frozenset[str]]] = {
        "llama": [frozenset(), frozenset(_ATTENTION), frozenset(_FEED_FORWARD), frozenset(_ATTENTION + _FEED_FORWARD)],
        "qwen2": [frozenset(_ATTENTION[:3])],
        "qwen3": [frozenset(), frozenset(_ATTENTION)],
    }
    if made.biases not in known[made.model_type] or not math.isfinite(made.epsilon):
        raise ModelError(
            f"no {made.model_type} of transformers has these biases, or this epsilon", where=where, remedy=_ANOTHER
        )


def _with_scaling(made: Sizes, file: GgufFile) -> Sizes:
    from dataclasses import replace

    import numpy as np

    where = str(file.path)
    kind = file.said("rope.scaling.type", "none")
    if kind == "linear":
        factor = _shortest(file.said("rope.scaling.factor"))
        return replace(made, scaling={"rope_type": "linear", "factor": factor})
    if kind != "none":
        raise ModelError(f"its rotary positions are stretched by {kind!r}", where=where, remedy=_ANOTHER)
    if gguf_names.ROPE_FACTORS not in file.tensors:
        return made
    factors = file.dequantized(gguf_names.ROPE_FACTORS)
    said = {
        "rope_type": "llama3",
        "factor": _shortest(float(factors.max())),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    }
    scaled = replace(made, scaling=said)
    expected = scaled.rope_factors()
    if expected is None or expected.shape != factors.shape or not np.allclose(expected, factors, rtol=1e-4):
        raise ModelError("its rotary positions are stretched in a way of its own", where=where, remedy=_ANOTHER)
    return scaled
