"""Faults of GGUF files: floats, integers of a quantizer of models, and those of llama.cpp's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from injected.cases import Case
from injected.editing import GgufEdit, edit_json
from injected.registry import fault

from edgeforge import gguf_names
from edgeforge.exporters.gguf import Gguf
from edgeforge.gguf_file import MODEL
from edgeforge.models import loading

FLOAT, INT4, INT8, OWN4 = "llama-gguf-float", "llama-gguf-int4", "llama-gguf-int8", "llama-gguf-q4_0"
HEAD, BLOCK = 16, 32
KEYS, UP, TABLE = "blk.1.attn_k.weight", "blk.0.ffn_up.weight", "token_embd.weight"


def edit(case: Case) -> GgufEdit:
    return GgufEdit(case.folder)


def _blocks(stored: np.ndarray) -> np.ndarray:
    """Rows of blocks, (rows, blocks, bytes): a float16 scale, then the integers."""
    return stored.reshape(len(stored), -1, 18 if stored.shape[1] % 18 == 0 else 34)


# -- numbers


@fault("permuted rope", FLOAT, INT4, OWN4, sizes=(2, 1), unit="heads whose rows stand in another order", quick=True)
def rows_as_hugging_face_has_them(case: Case, size: int) -> None:
    """Keys of heads were not turned to llama.cpp's order of rows."""
    with edit(case) as found:

        def turn(stored: np.ndarray) -> None:
            stored[: size * HEAD] = gguf_names.unpaired(stored[: size * HEAD], HEAD)

        found.change(KEYS, turn)


@fault("flipped block", INT4, INT8, OWN4, sizes=(8, 1), unit="blocks")
def flipped_block(case: Case, size: int) -> None:
    """Integers of a block are inverted."""
    with edit(case) as found:

        def flip(stored: np.ndarray) -> None:
            _blocks(stored)[:size, 0, 2:] ^= 0xFF

        found.change(UP, flip)


@fault("flipped block", INT4)
def halves_of_every_byte(case: Case, _: None) -> None:
    """The two integers of each byte in each other's places."""
    with edit(case) as found:

        def swap(stored: np.ndarray) -> None:
            blocks = _blocks(stored)
            blocks[:, :, 2:] = blocks[:, :, 2:] >> 4 | blocks[:, :, 2:] << 4

        found.change(UP, swap)


@fault("wrong integer", INT4, INT8, sizes=(4, 1), unit="steps of one integer", quick=True)
def one_integer_of_a_block(case: Case, size: int) -> None:
    """A single integer is off."""
    with edit(case) as found:

        def change(stored: np.ndarray) -> None:
            byte = _blocks(stored)[3, 0, 5:6]
            byte[:] = (byte & 0xF0) | (byte + size & 15) if "int4" in case.name else byte + size

        found.change(UP, change)


@fault("swapped scale", INT4, INT8, OWN4, sizes=("every row", "one row"), unit="")
def scales_of_each_other(case: Case, size: str) -> None:
    """Two blocks of a row have each other's scales."""
    with edit(case) as found:

        def swap(stored: np.ndarray) -> None:
            blocks = _blocks(stored)
            scales = np.abs(blocks[:, :, :2].copy().view(np.float16)[:, :, 0].astype(np.float32))
            most_unlike = int(np.abs(np.log(scales[:, 0] / scales[:, 1])).argmax())
            rows = slice(None) if size == "every row" else slice(most_unlike, most_unlike + 1)
            blocks[rows, :, :2] = blocks[rows, ::-1, :2].copy()

        found.change(UP, swap)


def _scaled(case: Case, factor: float) -> None:
    with edit(case) as found:

        def scale(stored: np.ndarray) -> None:
            place = _blocks(stored)[5, 1, :2]
            place[:] = (place.copy().view(np.float16) * np.float16(factor)).view(np.uint8)

        found.change(UP, scale)


@fault("wrong scale", INT4, INT8, sizes=(2.0, 1.01, 1.001), unit="factor of one scale")
def scale_of_a_block(case: Case, size: float) -> None:
    """A single scale is off."""
    _scaled(case, size)


@fault("wrong scale", OWN4, sizes=(4.0, 2.0), unit="factor of one scale")
def scale_that_llama_cpp_chose(case: Case, size: float) -> None:
    """A single scale is off in a file whose numbers llama.cpp chose: it may choose others than the nearest."""
    _scaled(case, size)


@fault("embedding", FLOAT, INT4, OWN4, sizes=("used", "unused"), unit="which two rows", quick=True)
def rows_of_the_table(case: Case, size: str) -> None:
    """Two rows of the table of tokens in each other's places."""
    rows = [70, 71] if size == "used" else [3, 4]
    with edit(case) as found:
        found.change(TABLE, lambda stored: stored.__setitem__(rows, stored[rows[::-1]]))


@fault("swapped layers", FLOAT, INT4, sizes=("all tensors", "one tensor"), unit="of two blocks", quick=True)
def blocks_of_each_other(case: Case, size: str) -> None:
    """Two blocks have each other's weights."""
    with edit(case) as found:
        names = [name for name in found.tensors if name.startswith("blk.0.")] if size == "all tensors" else [UP]
        for name in names:
            other = name.replace("blk.0.", "blk.1.")
            found.tensors[name], found.tensors[other] = found.tensors[other], found.tensors[name]


@fault("transposed weight", FLOAT)
def transposed_projection(case: Case, _: None) -> None:
    """A square weight the wrong way round."""
    with edit(case) as found:
        found.floats("blk.1.attn_output.weight", lambda weight: weight.T)


@fault("dropped norm", FLOAT, INT4, sizes=(1.0, 0.001), unit="share of the way to 1", quick=True)
def norm_that_does_nothing(case: Case, size: float) -> None:
    """The weights of a normalization are lost: all are (nearly) 1."""
    with edit(case) as found:
        found.floats("blk.1.attn_norm.weight", lambda weight: weight + np.float32(size) * (1 - weight))


@fault("dropped norm", FLOAT)
def norm_left_out(case: Case, _: None) -> None:
    """The last normalization is not in the file."""
    with edit(case) as found:
        del found.tensors["output_norm.weight"]


@fault("wrong number", FLOAT, sizes=(0.1, 0.001), unit="relative change of one weight")
def one_number_of_a_file(case: Case, size: float) -> None:
    """A single weight is off."""
    with edit(case) as found:

        def change(weight: np.ndarray) -> None:
            row, column = np.unravel_index(np.abs(weight).argmax(), weight.shape)
            weight[row, column] *= 1 + size

        found.floats("blk.2.ffn_down.weight", change)


@fault("wrong number", FLOAT, sizes=(float("nan"), float("inf")), unit="what stands there")
def no_number_in_a_file(case: Case, size: float) -> None:
    """A weight holds what is no usable number."""
    with edit(case) as found:
        found.floats("blk.0.attn_v.weight", lambda weight: weight.__setitem__((0, 0), size))


@fault("rotary positions", FLOAT, sizes=(8.0, 1.01), unit="factor of the slowest frequency")
def frequencies_scaled_beside(case: Case, size: float) -> None:
    """The file carries factors of rotary frequencies that the model has not."""
    with edit(case) as found:
        factors = np.ones(HEAD // 2, dtype=np.float32)
        factors[-1] = size
        found.tensors[gguf_names.ROPE_FACTORS] = ("F32", factors.view(np.uint8))


@fault("rotary positions", FLOAT, sizes=(4.0, 1.01), unit="factor")
def stretched_positions(case: Case, size: float) -> None:
    """The file stretches positions as another model's texts need it."""
    with edit(case) as found:
        found.metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": size}


# -- what the file says of itself


def _says(key: str, change: Callable[[Any], Any]) -> Callable[[Case], None]:
    def inject(case: Case) -> None:
        with edit(case) as found:
            found.metadata[key] = change(found.metadata[key])

    return inject


@fault("rotary positions", FLOAT, INT4, sizes=(10.0, 1.001), unit="factor", quick=True)
def other_rope_base(case: Case, size: float) -> None:
    """Positions are turned on another base."""
    _says("llama.rope.freq_base", lambda base: base * size)(case)


@fault("wrong number", FLOAT, OWN4, sizes=(1000.0, 1.01), unit="factor")
def other_norm_epsilon(case: Case, size: float) -> None:
    """Normalizations use another epsilon."""
    _says("llama.attention.layer_norm_rms_epsilon", lambda epsilon: epsilon * size)(case)


@fault("metadata", FLOAT, sizes=("head_count", "head_count_kv", "key_length"), unit="")
def other_heads(case: Case, size: str) -> None:
    """The file says another number, or another width, of attention heads."""
    _says(f"llama.attention.{size}", lambda count: count // 2)(case)


@fault("metadata", FLOAT, sizes=("block_count", "feed_forward_length", "embedding_length", "context_length"), unit="")
def other_size(case: Case, size: str) -> None:
    """The file says another size of the model by one."""
    _says(f"llama.{size}", lambda count: count - 1)(case)


SPECIAL = {"eos": "eos_token_id", "bos": "bos_token_id", "pad": "padding_token_id"}


@fault("special tokens", FLOAT, INT4, sizes=tuple(SPECIAL), unit="", quick=True)
def other_special_token(case: Case, size: str) -> None:
    """Texts end, begin or are filled up with another token."""
    _says(f"tokenizer.ggml.{SPECIAL[size]}", lambda token: token + 3)(case)


@fault("special tokens", FLOAT, INT4, sizes=("bos", "eos"), unit="")
def token_put_around_texts(case: Case, size: str) -> None:
    """llama.cpp puts a token before, or behind, every text that the model's tokenizer does not put there."""
    _says(f"tokenizer.ggml.add_{size}_token", lambda added: not added)(case)


@fault("chat template", FLOAT, sizes=("another", "a blank more"), unit="")
def other_template(case: Case, size: str) -> None:
    """Chats are written in another form than the model learnt."""
    change = (lambda _: "{{ messages }}") if size == "another" else (lambda text: text.replace("\n", " \n", 1))
    _says("tokenizer.chat_template", change)(case)


# -- the tokenizer


@fault("tokenizer", FLOAT, sizes=(50, 2), unit="tokens in another order")
def tokens_in_another_order(case: Case, size: int) -> None:
    """Ids stand for other tokens."""
    _says(
        "tokenizer.ggml.tokens", lambda tokens: [*tokens[:300], *tokens[300 : 300 + size][::-1], *tokens[300 + size :]]
    )(case)


@fault("tokenizer", FLOAT, sizes=("all", "the first"), unit="of its merges")
def lost_merges(case: Case, size: str) -> None:
    """The tokenizer cuts words into other pieces."""
    _says("tokenizer.ggml.merges", lambda merges: merges[:1] if size == "all" else merges[1:])(case)


@fault("tokenizer", FLOAT)
def words_cut_in_another_way(case: Case, _: None) -> None:
    """The tokenizer cuts texts into words as another model's does."""
    _says("tokenizer.ggml.pre", lambda _: "default")(case)


@fault("tokenizer", FLOAT, OWN4)
def tokenizer_of_another_file(case: Case, _: None) -> None:
    """The tokenizer beside the file has two tokens in each other's places."""

    def change(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        one, other = sorted(words, key=lambda word: words[word])[-2:]
        words[one], words[other] = words[other], words[one]

    edit_json(case.folder / "tokenizer.json", change)


# -- files that are not whole, and files of other models


@fault("truncated file", FLOAT, INT4, sizes=(0.5, 0.999, -1), unit="share that is left, or a byte less", quick=True)
def truncated_model(case: Case, size: float) -> None:
    """The file ends early."""
    path = case.folder / MODEL
    content = path.read_bytes()
    path.write_bytes(content[:-1] if size < 0 else content[: int(size * len(content))])


@fault("stale cache", FLOAT, sizes=(1.0, 0.01), unit="share of every weight that is noise")
def file_of_other_weights(case: Case, size: float) -> None:
    """The file is that of another state of the model."""
    import torch

    network = loading.load(case.inputs["model"].path)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in network.parameters():
            parameter += size * parameter.std() * torch.randn_like(parameter)
    loading.save(network, case.root / "stale", tokenizer_from=case.inputs["model"].path)
    made = case.bench.artifact(case.root / "stale", "torch")
    folder = case.root / "stale.file"
    Gguf().export(made, case.bench.job(folder))
    case.put("file", case.bench.artifact(folder, "gguf"))


@fault("stale cache", OWN4)
def parent_of_another_model(case: Case, _: None) -> None:
    """What llama.cpp quantized has one block twice; the quantized file follows it to the last bit."""
    with GgufEdit(case.own("unquantized")) as parent, edit(case) as found:
        for name in [name for name in found.tensors if name.startswith("blk.1.")]:
            for file in (parent, found):
                file.tensors[name] = file.tensors[name.replace("blk.1.", "blk.2.")]
