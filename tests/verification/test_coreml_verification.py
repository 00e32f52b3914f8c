"""Core ML packages that are right pass, and no broken one does."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgeforge.core.artifact import Artifact, hash_folder
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface, Pixels
from edgeforge.exporters.coreml import Coreml
from edgeforge.models import loading
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_weights import Int8Weights
from edgeforge.runtimes import coreml as runtime
from edgeforge.verification.coreml import verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytest.importorskip("coremltools")

SCHEMES: dict[str, Quantizer | None] = {
    "float": None,
    "int8": Int8Weights(min_elements=64),
    "int4": Int4Weights(min_elements=64, block_size=8),
    "palettes": Int4Weights(min_elements=64, method="palettize", group_size=8),
}


@dataclass(frozen=True)
class Photos:
    """Validation images of random pixels, normalised as the interface says."""

    interface: Interface

    def size(self, split: str) -> int:
        return 12

    def batch(self, split: str, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        assert split == "validation"
        pixels = torch.randint(0, 256, (12, *self.interface.image_shape), generator=torch.Generator().manual_seed(0))
        assert self.interface.pixels is not None
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in vars(self.interface.pixels).values())
        return {
            "pixel_values": ((pixels / 255 - mean) / std)[list(indices)],
            "labels": torch.zeros(len(indices), dtype=torch.int64),
        }


def job(interface: Interface, folder: Path) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    task = SimpleNamespace(
        open=lambda model=None: Photos(interface), metrics=lambda logits, labels: {"accuracy": float(len(labels))}
    )
    silent = SimpleNamespace(update=lambda *_: None, warn=lambda _: None)
    return Job(task=task, folder=folder, seed=0, make_accelerator=lambda: None, progress=silent)  # type: ignore[arg-type,return-value]


def artifact(folder: Path, key: str = "0" * 64) -> Artifact:
    return Artifact(key=key, kind="", format="", path=folder, digest="", files={}, parents={}, recipe={})


@dataclass(frozen=True)
class Case:
    """A written package, what it was made of, and for which interface."""

    reference: Path
    file: Path
    interface: Interface

    @property
    def package(self) -> Path:
        return self.file / runtime.PACKAGE

    def verify(self, **changes: Any) -> dict[str, Any]:
        interface = replace(self.interface, **changes)
        reference = artifact(self.reference)
        inputs = {"file": artifact(self.file), "reference": reference, "model": reference}
        return dict(verify(inputs, job(interface, self.file.parent / "verify")))


def make(
    model: PreTrainedModel, interface: Interface, folder: Path, quantizer: Quantizer | None, **options: Any
) -> Case:
    reference = folder / "model"
    loading.save(model, reference)
    if quantizer is not None:
        quantizer.quantize(artifact(reference), job(interface, folder / "quantized"))
        reference = folder / "quantized"
    Coreml(**options).export(artifact(reference), job(interface, folder / "file"))
    return Case(reference, folder / "file", interface)


_CASES: dict[str, Case] = {}


@pytest.fixture
def case(
    tiny_model: Callable[[str], PreTrainedModel],
    tiny_interface: Interface,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Case]:
    """Family and scheme -> a fresh copy of its package (written once for all tests)."""

    def copy(family: str = "resnet", scheme: str = "int4") -> Case:
        name = f"{family}-{scheme}"
        if name not in _CASES:
            folder = tmp_path_factory.mktemp(name)
            _CASES[name] = make(tiny_model(family), tiny_interface, folder, SCHEMES[scheme])
        original = _CASES[name]
        file = tmp_path / name
        shutil.copytree(original.file, file)
        return replace(original, file=file)

    return copy


def failed(outcome: dict[str, Any]) -> list[str]:
    return [check["name"] for check in outcome["checks"] if not check["passed"]]


# -- what is right


def assert_passes(clean: Case) -> None:
    before = hash_folder(clean.file)
    outcome = clean.verify()
    assert outcome["passed"], outcome["reason"]
    assert outcome["reason"] is None
    assert outcome["parity"]["passed"] is True
    assert outcome["parity"]["reference"] == "the torch model, on the reference evaluator"
    assert 0 <= outcome["parity"]["max_abs_error"] <= outcome["parity"]["tolerance"]
    assert outcome["parity"]["agreement"] > 0.9
    assert json.loads(json.dumps(outcome)) == outcome
    assert hash_folder(clean.file) == before


FAST = [("resnet", scheme) for scheme in SCHEMES] + [("vit", "int4")]
SLOW = [
    (name, scheme) for name in ("mobilenet_v2", "vit", "convnext") for scheme in SCHEMES if (name, scheme) not in FAST
]


@pytest.mark.parametrize(("name", "scheme"), FAST)
def test_a_clean_package_passes(name: str, scheme: str, case: Callable[..., Case]) -> None:
    assert_passes(case(name, scheme))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme"), SLOW)
def test_every_clean_package_passes(name: str, scheme: str, case: Callable[..., Case]) -> None:
    assert_passes(case(name, scheme))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["float", "int4"])
def test_float32_packages_pass_nearly_exactly(
    scheme: str, tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    exact = make(tiny_model("resnet"), tiny_interface, tmp_path, SCHEMES[scheme], precision="float32")
    outcome = exact.verify()
    assert outcome["passed"], outcome["reason"]
    assert outcome["parity"]["max_abs_error"] < 1e-5


# -- damaged weights


def spec_of(package: Path) -> Any:
    return runtime.load_coremltools().utils.load_spec(str(package / runtime.MODEL_FILE))


def edit_spec(package: Path, edit: Callable[[Any], None]) -> None:
    spec = spec_of(package)
    edit(spec)
    (package / runtime.MODEL_FILE).write_bytes(spec.SerializeToString())


def operations_of(spec: Any) -> Any:
    main = spec.mlProgram.functions["main"]
    return main.block_specializations[main.opset].operations


def blobs(package: Path, kind: str, argument: str) -> list[tuple[int, int]]:
    """(start, size) in weight.bin of the data behind one argument of every operation of a type."""
    found = []
    content = (package / runtime.WEIGHTS_FILE).read_bytes()
    for operation in operations_of(spec_of(package)):
        if operation.type != kind:
            continue
        values = [operation.attributes[argument]] if argument in operation.attributes else []
        if argument in operation.inputs:
            values += [binding.value for binding in operation.inputs[argument].arguments]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                _, _, size, start = struct.unpack_from("<IIQQ", content, value.blobFileValue.offset)
                found.append((start, size))
    return found


def edit_weights(package: Path, edit: Callable[[bytearray], None]) -> None:
    content = bytearray((package / runtime.WEIGHTS_FILE).read_bytes())
    edit(content)
    (package / runtime.WEIGHTS_FILE).write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("scheme", "kind", "argument"),
    [
        ("float", "const", "val"),
        ("int4", "const", "val"),
        ("int8", "constexpr_blockwise_shift_scale", "data"),
        ("int4", "constexpr_blockwise_shift_scale", "data"),
        ("int4", "constexpr_blockwise_shift_scale", "scale"),
        ("palettes", "constexpr_lut_to_dense", "indices"),
        ("palettes", "constexpr_lut_to_dense", "lut"),
    ],
)
def test_a_flipped_bit_of_any_weight_is_found(scheme: str, kind: str, argument: str, case: Callable[..., Case]) -> None:
    broken = case("resnet", scheme)
    rng = np.random.default_rng(0)
    whole = (broken.package / runtime.WEIGHTS_FILE).read_bytes()
    places = blobs(broken.package, kind, argument)
    assert places
    for start, size in [places[0], places[-1], places[rng.integers(len(places))]]:
        content = bytearray(whole)
        # The lowest bit of a float16 may be undone by rounding; the third lowest of anything may not.
        content[start + 2 * int(rng.integers(size // 2))] ^= 4
        (broken.package / runtime.WEIGHTS_FILE).write_bytes(bytes(content))
        outcome = broken.verify()
        assert failed(outcome) == ["layers"], (start, size)
        assert outcome["passed"] is False
        assert outcome["parity"]["passed"] is None


def test_a_flipped_block_is_found(case: Callable[..., Case]) -> None:
    broken = case("resnet", "int4")
    start, _ = blobs(broken.package, "constexpr_blockwise_shift_scale", "data")[1]

    def invert(content: bytearray) -> None:
        content[start : start + 32] = bytes(255 - byte for byte in content[start : start + 32])

    edit_weights(broken.package, invert)
    outcome = broken.verify()
    assert failed(outcome) == ["layers"]
    assert "64 of" in outcome["reason"]
    assert "integers of" in outcome["reason"]


def test_two_swapped_scales_are_found(case: Callable[..., Case]) -> None:
    broken = case("resnet", "int4")
    start, _ = blobs(broken.package, "constexpr_blockwise_shift_scale", "scale")[0]

    def swap(content: bytearray) -> None:
        content[start : start + 4] = content[start + 2 : start + 4] + content[start : start + 2]

    edit_weights(broken.package, swap)
    outcome = broken.verify()
    assert failed(outcome) == ["layers"]
    assert "2 of" in outcome["reason"]
    assert "scales of" in outcome["reason"]


def test_indices_off_by_one_are_found(case: Callable[..., Case]) -> None:
    broken = case("resnet", "palettes")
    start, _ = blobs(broken.package, "constexpr_lut_to_dense", "indices")[0]

    def next_index(content: bytearray) -> None:
        content[start] = (content[start] & 0xF0) | ((content[start] + 1) & 0x0F)

    edit_weights(broken.package, next_index)
    outcome = broken.verify()
    assert failed(outcome) == ["layers"]
    assert "1 of" in outcome["reason"]
    assert "indices of" in outcome["reason"]


def test_a_weight_that_is_no_number_is_found(case: Callable[..., Case]) -> None:
    broken = case("resnet", "float")
    start, _ = blobs(broken.package, "const", "val")[-1]
    edit_weights(broken.package, lambda content: content.__setitem__(slice(start, start + 2), b"\xff\x7f"))
    outcome = broken.verify()
    assert failed(outcome) == ["layers"]
    assert outcome["parity"]["max_abs_error"] is None
    json.dumps(outcome, allow_nan=False)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, -1])
def test_truncated_weights_are_found(keep: float, case: Callable[..., Case]) -> None:
    broken = case("resnet", "int4")
    weights = broken.package / runtime.WEIGHTS_FILE
    whole = weights.read_bytes()
    _, size = last = max(blobs(broken.package, "constexpr_blockwise_shift_scale", "scale"))
    end = sum(last)
    assert size
    weights.write_bytes(whole[: end - 1 if keep < 0 else int(keep * len(whole))])
    outcome = broken.verify()
    assert failed(outcome) == ["opens"]
    assert "weight.bin" in outcome["reason"]


def swap_weights(spec: Any, kind: str) -> None:
    """Exchange what two operations of a type read, where both have the same shape."""
    shapes: dict[str, Any] = {}
    types = {output.name: str(output.type) for operation in operations_of(spec) for output in operation.outputs}
    for operation in operations_of(spec):
        if operation.type == kind:
            shape = types[operation.inputs["weight"].arguments[0].name]
            if shape in shapes:
                first, second = shapes[shape].inputs["weight"], operation.inputs["weight"]
                name = first.arguments[0].name
                first.arguments[0].name = second.arguments[0].name
                second.arguments[0].name = name
                return
            shapes[shape] = operation
    raise AssertionError("no two alike")


@pytest.mark.parametrize(
    ("name", "kind", "scheme"), [("resnet", "conv", "float"), ("resnet", "conv", "int4"), ("vit", "linear", "int4")]
)
def test_swapped_layers_are_found(name: str, kind: str, scheme: str, case: Callable[..., Case]) -> None:
    broken = case(name, scheme)

    def edit(spec: Any) -> None:
        operations = operations_of(spec)
        order = sorted(operations, key=lambda operation: not operation.type.startswith("const"))
        copies = [type(operation).FromString(operation.SerializeToString()) for operation in order]
        del operations[:]
        operations.extend(copies)
        swap_weights(spec, kind)

    edit_spec(broken.package, edit)
    assert failed(broken.verify()) == ["layers"]


def test_swapped_norms_are_found(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    model = tiny_model("vit")
    for position, layer in enumerate(model.vit.encoder.layer):
        layer.layernorm_before.weight.data.fill_(1 + position)
    clean = make(model, tiny_interface, tmp_path, None)
    assert_passes(clean)

    def edit(spec: Any) -> None:
        norms = [operation for operation in operations_of(spec) if operation.type == "layer_norm"]
        constants = [operation for operation in operations_of(spec) if operation.type == "const"]
        by_name = {operation.outputs[0].name: operation for operation in constants}
        first, third = (norms[index].inputs["gamma"].arguments[0] for index in (0, 2))
        one, two = by_name[first.name].attributes["val"], by_name[third.name].attributes["val"]
        kept = type(one).FromString(one.SerializeToString())
        one.CopyFrom(two)
        two.CopyFrom(kept)

    edit_spec(clean.package, edit)
    outcome = clean.verify()
    assert failed(outcome) == ["other weights"]
    assert "layernorm_before.weight" in outcome["reason"]


def drop_input(kind: str, argument: str) -> Callable[[Any], None]:
    def edit(spec: Any) -> None:
        operation = next(operation for operation in operations_of(spec) if operation.type == kind)
        del operation.inputs[argument]

    return edit


@pytest.mark.parametrize(("kind", "name"), [("conv", "resnet"), ("linear", "resnet")])
def test_a_dropped_bias_is_found(kind: str, name: str, case: Callable[..., Case]) -> None:
    broken = case(name, "float")
    edit_spec(broken.package, drop_input(kind, "bias"))
    outcome = broken.verify()
    assert failed(outcome) == ["layers"]
    assert "bias" in outcome["reason"]


# -- another interface


def classify(spec: Any) -> Any:
    return next(operation for operation in operations_of(spec) if operation.type == "classify")


def shuffle_labels(spec: Any) -> None:
    values = classify(spec).inputs["classes"].arguments[0].value.immediateValue.list.values
    first = type(values[0]).FromString(values[0].SerializeToString())
    values[0].CopyFrom(values[1])
    values[1].CopyFrom(first)


def wrong_colour(spec: Any) -> None:
    image = spec.description.input[0].type.imageType
    image.colorSpace = type(image).ColorSpace.Value("RGB")


def wrong_size(spec: Any) -> None:
    spec.description.input[0].type.imageType.width = 17


def no_normalisation(spec: Any) -> None:
    """Whatever reads the normalised image reads the image itself."""
    operations = operations_of(spec)
    cast = next(operation for operation in operations if operation.type == "cast")
    steps = [op for op in operations if op.type in ("mul", "add", "batch_norm")][:2]
    outputs = {step.outputs[0].name for step in steps}
    for operation in operations:
        if operation.type == "conv":
            for argument in operation.inputs["x"].arguments:
                if argument.name in outputs:
                    argument.name = cast.outputs[0].name
                    return
    raise AssertionError("no convolution reads the normalised image")


def half_normalisation(spec: Any) -> None:
    """The factor alone."""
    operations = operations_of(spec)
    multiply = next(op for op in operations if op.type == "mul")
    add = next(op for op in operations if op.type == "add")
    conv = next(op for op in operations if op.type == "conv")
    assert conv.inputs["x"].arguments[0].name == add.outputs[0].name
    conv.inputs["x"].arguments[0].name = multiply.outputs[0].name


def no_softmax(spec: Any) -> None:
    operations = operations_of(spec)
    softmax = next(operation for operation in operations if operation.type == "softmax")
    for operation in operations:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.name == softmax.outputs[0].name:
                    binding.name = softmax.inputs["x"].arguments[0].name


def rename_input(spec: Any) -> None:
    spec.description.input[0].name = "picture"


def drop_output(spec: Any) -> None:
    del spec.description.output[1]


def change_metadata(key: str, value: str) -> Callable[[Any], None]:
    return lambda spec: spec.description.metadata.userDefined.update({key: value})


@pytest.mark.parametrize(
    ("edit", "check"),
    [
        (shuffle_labels, "labels"),
        (no_softmax, "labels"),
        (wrong_colour, "color layout"),
        (wrong_size, "image size"),
        (rename_input, "input"),
        (drop_output, "outputs"),
        (no_normalisation, "normalisation"),
        (half_normalisation, "normalisation"),
        (change_metadata(runtime.LABELS_KEY, '["a"]'), "labels in metadata"),
        (change_metadata(runtime.RECIPE_KEY, "1" * 64), "recipe"),
        (change_metadata(runtime.PREPROCESSING_KEY, "{}"), "preprocessing in metadata"),
    ],
)
def test_another_interface_is_found(edit: Callable[[Any], None], check: str, case: Callable[..., Case]) -> None:
    broken = case("resnet", "float")
    edit_spec(broken.package, edit)
    outcome = broken.verify()
    assert check in failed(outcome)
    assert not outcome["passed"]


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"labels": ("east", "north", "south", "west")}, "labels"),
        ({"pixels": Pixels((0.45,), (0.25,))}, "normalisation"),
        ({"pixels": Pixels((0.5,), (0.26,))}, "normalisation"),
        ({"pixels": Pixels((0.0,), (1.0,))}, "normalisation"),
    ],
)
def test_a_package_made_for_another_task_is_found(
    change: dict[str, Any], check: str, case: Callable[..., Case]
) -> None:
    assert check in failed(case("resnet", "int4").verify(**change))


def test_another_models_package_is_found(case: Callable[..., Case], tmp_path: Path) -> None:
    first, second = case("resnet", "float"), case("resnet", "int8")
    assert "layers" in failed(replace(first, file=second.file).verify())
    assert "layers" in failed(replace(second, file=first.file).verify())


def other_end(spec: Any) -> None:
    """The program answers with what should be looked at by the choice of a label."""
    main = spec.mlProgram.functions["main"]
    block = main.block_specializations[main.opset]
    softmax = next(operation for operation in block.operations if operation.type == "softmax")
    del block.outputs[:]
    block.outputs.append(softmax.outputs[0].name)


def two_inputs(spec: Any) -> None:
    main = spec.mlProgram.functions["main"]
    main.inputs.add().CopyFrom(main.inputs[0])
    main.inputs[1].name = "second"


def no_outputs(spec: Any) -> None:
    main = spec.mlProgram.functions["main"]
    del main.block_specializations[main.opset].outputs[:]


@pytest.mark.parametrize("edit", [other_end, two_inputs, no_outputs])
def test_another_program_is_found(edit: Callable[[Any], None], case: Callable[..., Case]) -> None:
    broken = case("resnet", "float")
    edit_spec(broken.package, edit)
    assert not broken.verify()["passed"]


@pytest.mark.slow
def test_any_damage_to_the_specification_is_answered(case: Callable[..., Case]) -> None:
    """Never an exception; most of it is found (what does not touch weights or interface is not, for now)."""
    broken = case("resnet", "int4")
    whole = (broken.package / runtime.MODEL_FILE).read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(60):
        content = bytearray(whole)
        content[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        (broken.package / runtime.MODEL_FILE).write_bytes(bytes(content))
        found += not broken.verify()["passed"]
    assert found > 20


# -- packages that are none


def remove(name: str) -> Callable[[Path], None]:
    return lambda package: (package / name).unlink()


def truncate(name: str) -> Callable[[Path], None]:
    return lambda package: (package / name).write_bytes((package / name).read_bytes()[:-100])


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda package: (package / name).write_bytes(content)


def damage_header(package: Path) -> None:
    content = bytearray((package / runtime.WEIGHTS_FILE).read_bytes())
    content[64:68] = b"\0\0\0\0"  # the first blob's sentinel
    (package / runtime.WEIGHTS_FILE).write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        *(remove(name) for name in (runtime.MANIFEST, runtime.MODEL_FILE, runtime.WEIGHTS_FILE)),
        *(truncate(name) for name in (runtime.MANIFEST, runtime.MODEL_FILE)),
        overwrite(runtime.MANIFEST, b"[]"),
        overwrite(runtime.MANIFEST, b'{"itemInfoEntries": {}, "rootModelIdentifier": "x"}'),
        overwrite(runtime.MODEL_FILE, b""),
        overwrite(runtime.MODEL_FILE, b"\x08\x07"),
        damage_header,
        shutil.rmtree,
    ],
)
def test_what_cannot_be_opened_fails(damage: Callable[[Path], None], case: Callable[..., Case]) -> None:
    broken = case("resnet", "int4")
    damage(broken.package)
    outcome = broken.verify()
    assert failed(outcome) == ["opens"]
    assert outcome["reason"].startswith("opens: ")
    assert outcome["parity"] == {**outcome["parity"], "passed": None, "max_abs_error": None}
