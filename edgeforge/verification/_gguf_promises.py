"""What a GGUF file says of the model and its tokenizer, against the model's config and the tokenizer in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge import gguf_names
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.gguf_file import MODEL, GgufFile
from edgeforge.models import chat, gguf_tokenizer, tokenizer
from edgeforge.models.folder import read_json, tensor_shapes
from edgeforge.runtimes._llama.session import LlamaCppSession
from edgeforge.verification import Check
from edgeforge.verification._promises import paths

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SAMPLES = (
    "It was 1851; 24,601 whales (3.14159 of them white) didn't care.",
    'def f(x: int) -> str:\n\treturn f"{x:>8}"  # \\n stays\n\n\n',
    "naïve café, Ærøskøbing, ½ €, 東京と大阪, Привет мир, שלום, नमस्ते, 🐋🏳️‍🌈",
    "  leading blanks, trailing ones   \r\n and a tab\t.",
    "I'LL SAY: we've, you're, he'd, it's!!! ...?!",
)
"""Texts on which tokenizers differ: digits, code, other scripts, blanks, apostrophes."""

WINDOWS = 8
"""Validation windows whose text is tokenized too."""

ANGLE = 1e-4
"""How far an angle may be from the torch model's, as a share of it: both are computed in float32."""

SPECIAL = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "unk_token_id": "tokenizer.ggml.unknown_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def file_promises(file: GgufFile, inputs: Mapping[str, Artifact]) -> list[Check]:
    """What can be read off without llama.cpp."""
    folder = inputs["reference"].path
    checks = [_same("the metadata say the config's sizes", _sizes(file, folder))]
    checks += [_same("the tensors are the model's, by name and shape", _tensors(file, folder))]
    checks += [_same("the metadata list the tokenizer's tokens", _tokens(file, folder))]
    checks += [_same("the special tokens are the tokenizer's", _special_tokens(file, folder))]
    template = {"the chat template": (file.metadata.get("tokenizer.chat_template"), chat.template(folder) or None)}
    checks += [_same("the chat template is the tokenizer's", template.items())]
    checks.append(_files(inputs))
    return checks


def tokenizer_checks(session: LlamaCppSession, inputs: Mapping[str, Artifact], job: Job) -> list[Check]:
    """Texts become the same ids in llama.cpp as with the tokenizer in the folder."""
    name = "llama.cpp and the tokenizer make the same ids of a text"
    reader = tokenizer.read(inputs["file"].path)
    counted = 0
    for text in (*SAMPLES, *_window_texts(reader, job)):
        expected = reader(text, add_special_tokens=False)["input_ids"]
        try:
            found = session.tokenize(text)
        except ModelError as error:
            return [Check(name, False, error.what)]
        if found != expected:
            return [Check(name, False, f"of {text[:40]!r} {_first_difference(found, expected)}")]
        counted += len(found)
    return [Check(name, True, f"{counted} tokens")]


def _first_difference(found: list[int], expected: list[int]) -> str:
    pairs = enumerate(zip(found, expected, strict=False))
    place = next((place for place, (one, other) in pairs if one != other), min(len(found), len(expected)))
    ours, theirs = found[place : place + 3], expected[place : place + 3]
    return f"llama.cpp makes {ours} where the tokenizer makes {theirs}, {place} tokens from the beginning"


def _window_texts(reader: Any, job: Job) -> Iterator[str]:
    data = job.data
    size = data.size("validation")
    for row in np.linspace(0, size - 1, num=min(WINDOWS, size), dtype=np.int64).tolist():
        yield reader.decode(data.batch("validation", [row])["input_ids"][0].tolist())


def _same(name: str, pairs: Any) -> Check:
    """(what, (found, expected)) of everything that must be equal."""
    for what, (found, expected) in pairs:
        if found != expected:
            return Check(name, False, f"{what} is {_short(found)}, expected {_short(expected)}")
    return Check(name, True)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sizes(file: GgufFile, folder: Path) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """From the config and the weights' shapes, without what the exporter reads them with."""
    from edgeforge.architectures._decoder import rotary
    from edgeforge.models import loading

    config, shapes = loading.read_config(folder), tensor_shapes(folder)
    layers = range(config.num_hidden_layers)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def by_layer(name: str, unit: int) -> Any:
        return [shapes[f"model.layers.{layer}.{name}.weight"][0] // unit for layer in layers]

    table = shapes["model.embed_tokens.weight"]
    yield "block_count", (file.said("block_count"), len(layers))
    yield "context_length", (file.said("context_length"), _longest_text(config))
    yield "embedding_length", (file.said("embedding_length"), table[1])
    yield "vocab_size", (file.said("vocab_size", table[0]), table[0])
    yield "attention.key_length", (file.said("attention.key_length"), size)
    yield "rope.dimension_count", (file.said("rope.dimension_count"), size)
    theta, _ = rotary(config)
    yield "rope.freq_base", (np.float32(file.said("rope.freq_base", 0)), np.float32(theta))
    found_angles, angles = _angles(file, size), _rotary_angles(folder)
    same = found_angles.shape == angles.shape and np.allclose(found_angles, angles, rtol=ANGLE)
    yield (
        "the angles that a position is turned by",
        (found_angles.tolist(), (found_angles if same else angles).tolist()),
    )
    epsilon = np.float32(file.said("attention.layer_norm_rms_epsilon", 0))
    yield "attention.layer_norm_rms_epsilon", (epsilon, np.float32(config.rms_norm_eps))
    for said, name, unit in (
        ("attention.head_count", "self_attn.q_proj", size),
        ("attention.head_count_kv", "self_attn.k_proj", size),
        ("feed_forward_length", "mlp.up_proj", 1),
    ):
        found, expected = file.said(said), by_layer(name, unit)
        yield said, (found if isinstance(found, list) else [found] * len(layers), expected)


def _longest_text(config: PretrainedConfig) -> int:
    """Tokens up to which llama.cpp, where every token sees all before it, computes what torch does: a window's."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return int(config.max_position_embeddings if window is None else min(window, config.max_position_embeddings))


def _angles(file: GgufFile, size: int) -> np.ndarray:
    """What llama.cpp turns each pair of a head by for one position (radians): base, factors beside, and stretching."""
    angles = float(file.said("rope.freq_base", 10000.0)) ** (-np.arange(0, size, 2) / size)
    if (beside := file.tensors.get(gguf_names.ROPE_FACTORS)) is not None:
        if beside.type != "F32" or beside.count != angles.size:
            return np.zeros(0)
        angles = angles / file.dequantized(gguf_names.ROPE_FACTORS).reshape(-1)
    if file.said("rope.scaling.type", "none") != "none":
        angles = angles / float(file.said("rope.scaling.factor", 1.0))
    return angles


def _rotary_angles(folder: Path) -> np.ndarray:
    """The same as the torch model computes it."""
    from edgeforge.models import loading

    network = loading.load(folder)
    return next(buffer.numpy() for name, buffer in network.named_buffers() if name.endswith("inv_freq"))


def _tensors(file: GgufFile, folder: Path) -> Iterator[tuple[str, tuple[Any, Any]]]:
    from edgeforge.models import loading

    tied = loading.read_config(folder).tie_word_embeddings
    wanted = {
        gguf_names.to_gguf(name): shape
        for name, shape in tensor_shapes(folder).items()
        if not (tied and name == "lm_head.weight")
    }
    found = {name: tensor.shape for name, tensor in file.tensors.items() if name != gguf_names.ROPE_FACTORS}
    for name in sorted(wanted.keys() | found.keys(), key=str):
        yield str(name), (found.get(str(name)), wanted.get(name))


def _tokens(file: GgufFile, folder: Path) -> Iterator[tuple[str, tuple[Any, Any]]]:
    where = str(folder / tokenizer.MAIN)
    way = gguf_tokenizer.way_named(read_json(folder / tokenizer.MAIN), where=where)
    yield "how texts are cut into words", (file.metadata.get("tokenizer.ggml.pre"), way)
    listed = file.metadata.get("tokenizer.ggml.tokens", [])
    for index, token in enumerate(tokenizer.tokens(folder)):
        if token:  # an id that stands for nothing may be called anything
            yield f"the token {index}", (listed[index] if index < len(listed) else None, token)


def _special_tokens(file: GgufFile, folder: Path) -> Iterator[tuple[str, tuple[Any, Any]]]:
    reader = tokenizer.read(folder)
    for role, key in SPECIAL.items():
        yield role, (file.metadata.get(key), getattr(reader, role))
    plain, whole = reader("a", add_special_tokens=False)["input_ids"], reader("a")["input_ids"]
    place = next((place for place in range(len(whole)) if whole[place : place + len(plain)] == plain), 0)
    added = {"bos": place > 0, "eos": place + len(plain) < len(whole)}
    for role, around in added.items():
        key = f"add_{role}_token"
        yield key, (file.metadata.get(f"tokenizer.ggml.{key}", False), around)


def _files(inputs: Mapping[str, Artifact]) -> Check:
    """The tokenizer beside the file is the model's, and no file tells where it was made."""
    name = "the tokenizer beside the file is the model's"
    try:
        same = tokenizer.digest(inputs["file"].path) == tokenizer.digest(inputs["reference"].path)
    except ModelError as error:
        return Check(name, False, error.what)
    if not same:
        return Check(name, False, "its files differ")
    strays = sorted(set(inputs["file"].files) - {MODEL, *tokenizer.FILES})
    if strays:
        return Check(name, False, f"{strays[0]} does not belong to a GGUF file")
    return paths(inputs["file"])
