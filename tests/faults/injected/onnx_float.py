"""Faults of ONNX files whose arithmetic is float, of images and of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from injected.cases import Case
from injected.editing import OnnxEdit, edit_json
from injected.registry import fault
from onnx import helper

IMAGES, TEXTS, COLOURS = "resnet-onnx-float", "bert-onnx-float", "colours-onnx-float"
WORDS, WIDTH = 128, 32


def edit(case: Case) -> OnnxEdit:
    return OnnxEdit(case.folder)


def conv(found: OnnxEdit, index: int) -> Any:
    return found.of("Conv")[index]


@fault("transposed weight", IMAGES, sizes=(1.0, 0.25, 0.05), unit="share of the output channels", quick=True)
def transposed_kernels(case: Case, size: float) -> None:
    """Kernels with rows and columns exchanged."""
    with edit(case) as found:
        name = conv(found, 5).input[1]
        weight = found.get(name)
        count = max(1, int(size * len(weight)))
        weight[:count] = weight[:count].swapaxes(2, 3)
        found.set(name, weight)


@fault("transposed weight", TEXTS)
def transposed_query(case: Case, _: None) -> None:
    """A square matrix of attention the wrong way round: every shape still fits."""
    with edit(case) as found:
        found.change(found.layers()[0].input[1], lambda weight: weight.T.copy())


@fault("flipped block", IMAGES, sizes=(8, 2), unit="output channels in reverse order")
def flipped_channels(case: Case, size: int) -> None:
    """Output channels of a convolution in reverse order."""
    with edit(case) as found:

        def flip(weight: np.ndarray) -> None:
            weight[:size] = weight[:size][::-1].copy()

        found.change(conv(found, 3).input[1], flip)


@fault("dropped bias", IMAGES, sizes=(1.0, 0.1, 0.01, 0.001), unit="share of the bias that is lost", quick=True)
def dropped_bias(case: Case, size: float) -> None:
    """A convolution without (part of) its bias."""
    with edit(case) as found:
        found.change(conv(found, 4).input[2], lambda bias: bias * (1 - size))


@fault("dropped bias", TEXTS, sizes=(1.0, 0.01), unit="share of the bias that is lost")
def dropped_classifier_bias(case: Case, size: float) -> None:
    """The classifier's bias is (partly) lost."""
    with edit(case) as found:
        gemm = found.of("Gemm")[-1]
        found.change(gemm.input[2], lambda bias: bias * (1 - size))


@fault("wrong number", IMAGES, sizes=(0.5, 0.01, 0.001, 1e-5), unit="relative change of one weight", quick=True)
def one_wrong_weight(case: Case, size: float) -> None:
    """A single weight of the classifier is off."""
    with edit(case) as found:

        def change(weight: np.ndarray) -> None:
            weight[0, 0] *= 1 + size

        found.change(found.of("Gemm")[0].input[1], change)


@fault("wrong number", IMAGES, sizes=(1e38, np.nan, np.inf), unit="what stands in the bias")
def not_a_number(case: Case, size: float) -> None:
    """A bias holds what is no usable number."""
    with edit(case) as found:

        def change(bias: np.ndarray) -> None:
            bias[3] = size

        found.change(found.of("Gemm")[0].input[2], change)


@fault("batch normalization", IMAGES, quick=True)
def batch_statistics(case: Case, _: None) -> None:
    """Batch normalization was left in training mode: the batch's statistics instead of the model's."""
    with edit(case) as found:
        node = conv(found, 1)
        inner, size = f"{node.output[0]}_raw", len(found.get(node.input[1]))
        numbers = [found.add(f"bn{i}", np.full(size, fill, np.float32)) for i, fill in enumerate((1, 0, 0, 1))]
        norm = helper.make_node("BatchNormalization", [inner, *numbers], [node.output[0], "m", "v"], training_mode=1)
        node.output[0] = inner
        found.nodes.insert(list(found.nodes).index(node) + 1, norm)


@fault("batch normalization", IMAGES, sizes=(0.5, 0.01, 1e-4), unit="relative change of a channel's variance")
def stale_statistics(case: Case, size: float) -> None:
    """A folded batch normalization of other statistics: one channel's factor is off."""
    with edit(case) as found:

        def change(weight: np.ndarray) -> None:
            weight[2] *= (1 + size) ** -0.5

        found.change(conv(found, 2).input[1], change)


@fault("wiring", IMAGES)
def missing_activation(case: Case, _: None) -> None:
    """A ReLU is left out."""
    with edit(case) as found:
        found.of("Relu")[2].op_type = "Identity"


@fault("wiring", IMAGES)
def missing_residual(case: Case, _: None) -> None:
    """A residual connection adds the same branch twice."""
    with edit(case) as found:
        node = found.of("Add")[1]
        node.input[1] = node.input[0]


@fault("wrong semantics", IMAGES, quick=True)
def old_opset(case: Case, _: None) -> None:
    """The file names an operator set whose ReduceMean and Reshape mean something else."""
    with edit(case) as found:
        found.model.opset_import[0].version = 11


@fault("wrong semantics", IMAGES)
def other_padding(case: Case, _: None) -> None:
    """Padding at the other side of a strided convolution, as another framework has it."""
    with edit(case) as found:
        node = next(
            one for one in found.of("Conv") if list(_ints(one, "strides")) == [2, 2] and any(_ints(one, "pads"))
        )
        found.attribute(node, "pads", [0, 0, 2, 2])


def _ints(node: Any, name: str) -> list[int]:
    return next((list(item.ints) for item in node.attribute if item.name == name), [])


@fault("wrong semantics", TEXTS)
def approximate_gelu(case: Case, _: None) -> None:
    """GELU by its tanh approximation."""
    with edit(case) as found:
        for node in found.of("Gelu"):
            found.attribute(node, "approximate", "tanh")


@fault("wrong semantics", TEXTS, quick=True)
def softmax_over_queries(case: Case, _: None) -> None:
    """Softmax over the wrong axis."""
    with edit(case) as found:
        found.attribute(found.of("Softmax")[0], "axis", 2)


@fault("wrong number", TEXTS, sizes=(0.1, 1e-3, 1e-5), unit="epsilon of every LayerNormalization")
def other_epsilon(case: Case, size: float) -> None:
    """LayerNormalization with another model's epsilon."""
    with edit(case) as found:
        for node in found.of("LayerNormalization"):
            found.attribute(node, "epsilon", size)


@fault("wrong scale", TEXTS, sizes=(1.4, 1.01, 1.001), unit="factor")
def attention_scale(case: Case, size: float) -> None:
    """Attention scores are divided by another number than the root of a head's width."""
    with edit(case) as found:
        node = next(one for one in found.of("Mul") if one.input[1] in found.tensors)
        found.instead(node.input[1], found.add("scale", found.get(node.input[1]) * np.float32(size)))


@fault("attention mask", TEXTS, quick=True)
def ignored_mask(case: Case, _: None) -> None:
    """Padding is attended to like any token."""
    with edit(case) as found:
        first = next(node for node in found.nodes if "attention_mask" in node.input and node.op_type == "Unsqueeze")
        found.insert(helper.make_node("Sub", ["attention_mask", "attention_mask"], ["zeros"]), before=first)
        one = found.add("one", np.asarray(1, np.int64))
        found.insert(helper.make_node("Add", ["zeros", one], ["all_ones"]), before=first)
        first.input[0] = "all_ones"


@fault("attention mask", TEXTS, sizes=(-1.0, -10.0), unit="what is added to the scores of padding")
def weak_mask(case: Case, size: float) -> None:
    """The number that masks is too small to mask."""
    with edit(case) as found:
        node = found.of("Where")[0]
        node.input[1] = found.add("weak", np.asarray(size, np.float32))


@fault("embedding", TEXTS, sizes=("all", "used", "unused"), unit="which rows", quick=True)
def swapped_rows(case: Case, size: str) -> None:
    """Rows of the word table in each other's places; the smallest: two words that no text has."""
    with edit(case) as found:
        (name,) = found.with_shape(WORDS, WIDTH)

        def swap(table: np.ndarray) -> Any:
            if size == "all":
                return np.roll(table, 1, axis=0)
            rows = (90, 91) if size == "used" else _unused(case)
            table[list(rows)] = table[list(rows)[::-1]]
            return table

        found.change(name, swap)


def _unused(case: Case) -> tuple[int, int]:
    ids = {int(one) for part in ("train", "test") for row in case.bench.data.ids(part) for one in row}
    return tuple([row for row in range(WORDS) if row not in ids][:2])  # type: ignore[return-value]


@fault("embedding", TEXTS, sizes=(1, 0.01), unit="share of the shift to the next position")
def shifted_positions(case: Case, size: float) -> None:
    """Positions begin at the second row of their table."""
    with edit(case) as found:
        name = next(one for one in found.with_shape(16, WIDTH))
        found.change(name, lambda table: (1 - size) * table + size * np.roll(table, -1, axis=0))


@fault("embedding", TEXTS)
def other_token_type(case: Case, _: None) -> None:
    """The other row of token types."""
    with edit(case) as found:
        name = next(node.input[0] for node in found.of("Gather") if node.input[0] in found.with_shape(2, WIDTH))
        found.change(name, lambda table: table[::-1].copy())


@fault("permuted heads", TEXTS, sizes=("all", "two"), unit="heads")
def permuted_heads(case: Case, size: str) -> None:
    """Heads of the value projection in another order than those of query and key."""
    with edit(case) as found:
        name = next(node.input[1] for node in found.layers() if node.name.endswith("0.attention.self.value"))

        def permute(weight: np.ndarray) -> np.ndarray:
            heads = weight.reshape(WIDTH, 4, 8)
            order = [1, 2, 3, 0] if size == "all" else [1, 0, 2, 3]
            return heads[:, order].reshape(WIDTH, WIDTH)

        found.change(name, permute)


@fault("wiring", TEXTS)
def pooled_from_another_token(case: Case, _: None) -> None:
    """The classifier reads the second token instead of [CLS]."""
    with edit(case) as found:
        node = [
            one for one in found.of("Gather") if one.input[1] in found.tensors and found.get(one.input[1]).ndim == 0
        ]
        node[-1].input[1] = found.add("second", np.asarray(1, np.int64))


# -- what the file and its companions say


@fault("labels", IMAGES, sizes=(10, 2), unit="labels out of place", quick=True)
def shuffled_labels_in_metadata(case: Case, size: int) -> None:
    """The file's own labels in another order."""
    with edit(case) as found:
        found.say("labels", lambda labels: [*labels[1:size], labels[0], *labels[size:]])


@fault("labels", IMAGES)
def shuffled_labels_in_config(case: Case, _: None) -> None:
    """`id2label` beside the file in another order."""

    def change(config: dict[str, Any]) -> None:
        labels = config["id2label"]
        labels["3"], labels["4"] = labels["4"], labels["3"]

    edit_json(case.folder / "config.json", change)


@fault("labels", TEXTS)
def shuffled_numbers_of_labels(case: Case, _: None) -> None:
    """`label2id` says the opposite of `id2label`."""

    def change(config: dict[str, Any]) -> None:
        config["label2id"] = {label: 1 - number for label, number in config["label2id"].items()}

    edit_json(case.folder / "config.json", change)


@fault("preprocessing", IMAGES, sizes=(0.5, 0.01, 1e-6), unit="change of the mean", quick=True)
def other_mean_in_metadata(case: Case, size: float) -> None:
    """The file names another mean than it was made for; the largest: no normalisation."""
    with edit(case) as found:
        found.say("preprocessing", lambda said: {**said, "mean": [value - size for value in said["mean"]]})


@fault("preprocessing", IMAGES, sizes=(4.0, 1.01), unit="factor")
def other_std_beside_the_file(case: Case, size: float) -> None:
    """`preprocessor_config.json` divides by another number."""
    edit_json(
        case.folder / "preprocessor_config.json",
        lambda said: said.update(image_std=[value * size for value in said["image_std"]]),
    )


@fault("preprocessing", IMAGES)
def made_colourful(case: Case, _: None) -> None:
    """`preprocessor_config.json` makes images RGB for a file that takes gray ones."""
    edit_json(case.folder / "preprocessor_config.json", lambda said: said.update(do_convert_rgb=True))


@fault("preprocessing", COLOURS)
def unscaled_pixels(case: Case, _: None) -> None:
    """`preprocessor_config.json` leaves out the division by 255."""
    edit_json(case.folder / "preprocessor_config.json", lambda said: said.update(do_rescale=False))


@fault("channel order", COLOURS, quick=True)
def stem_reads_bgr(case: Case, _: None) -> None:
    """The first convolution's input channels in the order blue, green, red."""
    with edit(case) as found:
        found.change(found.of("Conv")[0].input[1], lambda weight: weight[:, ::-1].copy())


@fault("channel order", COLOURS)
def statistics_in_bgr(case: Case, _: None) -> None:
    """Means and deviations beside the file in the order blue, green, red."""

    def change(said: dict[str, Any]) -> None:
        said["image_mean"], said["image_std"] = said["image_mean"][::-1], said["image_std"][::-1]

    edit_json(case.folder / "preprocessor_config.json", change)


@fault("interface", IMAGES)
def renamed_input(case: Case, _: None) -> None:
    """The input has another name."""
    with edit(case) as found:
        found.instead("pixel_values", "image")
        found.model.graph.input[0].name = "image"


@fault("interface", IMAGES)
def fixed_batch(case: Case, _: None) -> None:
    """The file takes single samples only."""
    with edit(case) as found:
        for value in (*found.model.graph.input, *found.model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1


@fault("interface", TEXTS)
def fixed_length(case: Case, _: None) -> None:
    """The file takes texts of the greatest length only."""
    with edit(case) as found:
        for value in found.model.graph.input:
            value.type.tensor_type.shape.dim[1].dim_value = 16


@fault("interface", IMAGES)
def fewer_labels(case: Case, _: None) -> None:
    """The classifier has lost its last label."""
    with edit(case) as found:
        for name in found.of("Gemm")[0].input[1:]:
            found.change(name, lambda array: array[:9])
        found.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9


# -- tokenizers


@fault("tokenizer", TEXTS, sizes=("shifted", "two"), unit="words with other ids", quick=True)
def other_vocabulary(case: Case, size: str) -> None:
    """The tokenizer of another model: the same words, other ids."""

    def change(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        ordered = sorted(words, key=words.__getitem__)
        plain = ordered[5:] if size == "shifted" else ordered[90:92]
        ids = [words[word] for word in plain]
        words.update(dict(zip(plain, [*ids[1:], ids[0]], strict=True)))

    edit_json(case.folder / "tokenizer.json", change)


@fault("tokenizer", TEXTS)
def cased_tokenizer(case: Case, _: None) -> None:
    """The tokenizer no longer makes letters small."""
    edit_json(case.folder / "tokenizer.json", lambda content: content["normalizer"].update(lowercase=False))


@fault("tokenizer", TEXTS, quick=True)
def wrong_pad_token(case: Case, _: None) -> None:
    """Texts are filled up with [MASK]."""
    edit_json(case.folder / "tokenizer_config.json", lambda said: said.update(pad_token="[MASK]"))


@fault("tokenizer", TEXTS, sizes=(512, 17), unit="tokens, where the model has 16 positions")
def longer_texts(case: Case, size: int) -> None:
    """The tokenizer's settings allow texts that the model has no positions for."""
    edit_json(case.folder / "tokenizer_config.json", lambda said: said.update(model_max_length=size))


@fault("tokenizer", TEXTS)
def padding_on_the_left(case: Case, _: None) -> None:
    """Texts are filled up in front."""
    edit_json(case.folder / "tokenizer_config.json", lambda said: said.update(padding_side="left"))


@fault("configuration", TEXTS)
def other_pad_id_in_config(case: Case, _: None) -> None:
    """`config.json` names another padding token than the model has."""
    edit_json(case.folder / "config.json", lambda said: said.update(pad_token_id=4))


# -- files that are not whole


@fault("truncated file", IMAGES, sizes=(0.0, 0.5, 0.999), unit="share that is left", quick=True)
def truncated_onnx(case: Case, size: float) -> None:
    """The file ends early."""
    path = case.folder / "model.onnx"
    content = path.read_bytes()
    path.write_bytes(content[: int(size * len(content))])
