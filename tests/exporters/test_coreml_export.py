"""Core ML packages: what an app sees, what coremltools itself reads back, and the same bytes twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgeforge.core.artifact import Artifact, hash_folder
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Input, Interface, Pixels
from edgeforge.exporters.coreml import Coreml
from edgeforge.models import loading, quantized_weights
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_weights import Int8Weights
from edgeforge.runtimes import coreml as runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytest.importorskip("coremltools")

KEY = "0123456789abcdef" * 4


class Silent:
    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def job(interface: Interface, folder: Path) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    task = SimpleNamespace(open=lambda model=None: SimpleNamespace(interface=interface))
    return Job(task=task, folder=folder, seed=0, make_accelerator=lambda: None, progress=Silent())  # type: ignore[arg-type,return-value]


def artifact(folder: Path) -> Artifact:
    return Artifact(key=KEY, kind="train", format="torch", path=folder, digest="", files={}, parents={}, recipe={})


def export(
    model: PreTrainedModel, interface: Interface, folder: Path, quantizer: Quantizer | None = None, **options: Any
) -> tuple[Path, dict[str, Any], Path]:
    """The package, the exporter's facts, and the torch artifact it was made of."""
    source = folder / "model"
    loading.save(model, source)
    if quantizer is not None:
        quantizer.quantize(artifact(source), job(interface, folder / "quantized"))
        source = folder / "quantized"
    facts = Coreml(**options).export(artifact(source), job(interface, folder / "file"))
    return folder / "file" / runtime.PACKAGE, dict(facts), source


def spec_of(package: Path) -> Any:
    return runtime.load_coremltools().utils.load_spec(str(package))


def operations(package: Path) -> list[Any]:
    main = spec_of(package).mlProgram.functions["main"]
    return list(main.block_specializations[main.opset].operations)


def test_an_app_sees_an_image_and_labels(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    package, facts, _ = export(tiny_model("resnet"), tiny_interface, tmp_path)
    spec = spec_of(package)
    description = spec.description
    (image,) = description.input
    assert image.name == "image"
    assert (image.type.imageType.width, image.type.imageType.height) == (16, 16)
    assert type(image.type.imageType).ColorSpace.Name(image.type.imageType.colorSpace) == "GRAYSCALE"
    assert [output.name for output in description.output] == ["classLabel", "classLabel_probs"]
    assert description.predictedFeatureName == "classLabel"
    assert description.predictedProbabilitiesName == "classLabel_probs"
    metadata = description.metadata
    assert metadata.author == metadata.license == ""
    assert metadata.versionString == KEY[:12]
    assert "4 labels" in metadata.shortDescription
    assert metadata.userDefined["edgeforge.recipe"] == KEY
    assert json.loads(metadata.userDefined["edgeforge.labels"]) == ["north", "east", "south", "west"]
    assert json.loads(metadata.userDefined["edgeforge.preprocessing"]) == {"mean": [0.5], "std": [0.25]}
    assert facts["minimum_deployment_target"] == "iOS17"
    assert spec.specificationVersion == 8
    assert facts["bytes"] == sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    assert facts["coverage_percent"] == 0
    assert facts["operations"] == sum(operation.type != "const" for operation in operations(package))


def test_colour_models_take_colour_images(tiny_interface: Interface, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    colour = replace(
        tiny_interface, inputs=(Input("pixel_values", (3, 16, 24)),), pixels=Pixels((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    )
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=(16, 24),
        patch_size=8,
        num_labels=4,
    )
    package, _, _ = export(ViTForImageClassification(config), colour, tmp_path)
    image = spec_of(package).description.input[0].type.imageType
    assert type(image).ColorSpace.Name(image.colorSpace) == "RGB"
    assert (image.width, image.height) == (24, 16)


QUANTIZERS = {
    "none": None,
    "int8": Int8Weights(min_elements=64),
    "int4": Int4Weights(min_elements=64, block_size=8),
    "palettes": Int4Weights(min_elements=64, method="palettize", group_size=8),
}


def dense_weights(package: Path) -> list[np.ndarray]:
    """Every weight of a convolution or linear layer, as coremltools itself multiplies it out."""
    coremltools = runtime.load_coremltools()
    model = coremltools.models.MLModel(str(package), skip_model_load=True)
    plain = coremltools.optimize.coreml.decompress_weights(model)
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = plain.get_spec()
    program = load(spec, spec.specificationVersion, plain.weights_dir)
    found = program.functions["main"].operations
    return [np.asarray(op.inputs["weight"].val) for op in found if op.op_type in ("conv", "linear")]


@pytest.mark.parametrize(
    ("scheme", "precision"),
    [("int8", "float16"), ("int4", "float16"), ("palettes", "float16"), ("int4", "float32"), ("palettes", "float32")],
)
def test_coremltools_multiplies_out_the_quantized_model(
    scheme: str,
    precision: str,
    tiny_model: Callable[[str], PreTrainedModel],
    tiny_interface: Interface,
    tmp_path: Path,
) -> None:
    package, facts, source = export(
        tiny_model("resnet"), tiny_interface, tmp_path, QUANTIZERS[scheme], precision=precision
    )
    sidecar = quantized_weights.read(source)
    assert sidecar is not None
    found = {array.tobytes() for array in dense_weights(package)}
    for weight in sidecar.weights.values():
        assert weight.dequantize().astype(precision).tobytes() in found
    kind = "constexpr_lut_to_dense" if scheme == "palettes" else "constexpr_blockwise_shift_scale"
    assert [operation.type for operation in operations(package)].count(kind) == len(sidecar.weights)
    model = loading.load(source)
    covered = sum(weight.dequantize().size for weight in sidecar.weights.values())
    assert facts["coverage_percent"] == pytest.approx(100 * covered / sum(p.numel() for p in model.parameters()))
    assert facts["minimum_deployment_target"] == "iOS18"


def test_fewer_bits_are_fewer_bytes(tmp_path: Path, tiny_interface: Interface) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=256,
        image_size=16,
        patch_size=8,
        num_channels=1,
        num_labels=4,
    )
    model = ViTForImageClassification(config)
    sizes = {}
    for scheme, quantizer in QUANTIZERS.items():
        package, _, _ = export(model, tiny_interface, tmp_path / scheme, quantizer)
        sizes[scheme] = (package / runtime.WEIGHTS_FILE).stat().st_size
    assert sizes["int8"] < 0.55 * sizes["none"]
    assert sizes["int4"] < 0.40 * sizes["none"]  # 4 bits and a float16 for every 8 of them
    assert sizes["palettes"] < 0.31 * sizes["none"]


def test_the_same_model_is_the_same_bytes(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    packages = [
        export(tiny_model("convnext"), tiny_interface, tmp_path / attempt, QUANTIZERS["int4"])[0] for attempt in "ab"
    ]
    assert hash_folder(packages[0]) == hash_folder(packages[1])
    spec_of(packages[1])  # coremltools rewrites the manifest of what it opens
    assert hash_folder(packages[0]) == hash_folder(packages[1])
    assert sorted(hash_folder(packages[0])) == [runtime.MODEL_FILE, runtime.WEIGHTS_FILE, "Manifest.json"]
    for path in hash_folder(packages[0]):
        content = (packages[0] / path).read_bytes()
        for trace in (b".py", b"site-packages", b"Traceback", str(tmp_path).encode(), str(Path.cwd()).encode()):
            assert trace not in content, (path, trace)


def test_nothing_is_printed(
    tiny_model: Callable[[str], PreTrainedModel],
    tiny_interface: Interface,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    export(tiny_model("resnet"), tiny_interface, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_loading_coremltools_is_quiet_about_linux_only() -> None:
    code = (
        "from edgeforge.runtimes.coreml import load_coremltools as load; import logging; load(); load()\n"
        "logging.getLogger('coremltools').warning('a real one')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "a real one\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": (Input("pixel_values", (2, 16, 16)),)}, "Core ML images have 1 or 3 channels, this model takes 2"),
        ({"labels": ("a", "b", "a", "c")}, "two labels have the same name"),
        ({"labels": ("a", "b")}, "the model has 4 labels, the task 2"),
    ],
)
def test_what_core_ml_cannot_say_is_refused(
    change: dict[str, Any],
    message: str,
    tiny_model: Callable[[str], PreTrainedModel],
    tiny_interface: Interface,
    tmp_path: Path,
) -> None:
    with pytest.raises(ModelError, match=message):
        export(tiny_model("resnet"), replace(tiny_interface, **change), tmp_path)


def test_a_model_that_is_not_its_sidecar_is_refused(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    _, _, source = export(tiny_model("resnet"), tiny_interface, tmp_path, QUANTIZERS["int8"])
    loading.save(tiny_model("resnet"), source)
    with pytest.raises(ModelError, match="is not its integers times its scales"):
        Coreml().export(artifact(source), job(tiny_interface, tmp_path / "again"))


def test_a_weight_the_conversion_changed_is_never_silently_float(
    tiny_model: Callable[[str], PreTrainedModel],
    tiny_interface: Interface,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, _, source = export(tiny_model("resnet"), tiny_interface, tmp_path, QUANTIZERS["int8"])
    monkeypatch.setattr("edgeforge.exporters._coreml_weights.CONSUMERS", {"linear": ("weight",)})
    with pytest.raises(ModelError, match=r"\.weight is quantized, but the Core ML program holds no weight equal to it"):
        Coreml().export(artifact(source), job(tiny_interface, tmp_path / "again"))


def test_what_coremltools_cannot_convert_is_a_model_error(
    tiny_model: Callable[[str], PreTrainedModel],
    tiny_interface: Interface,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("PyTorch convert function for op 'fancy' not implemented.")

    monkeypatch.setattr(runtime.load_coremltools(), "convert", refuse)
    with pytest.raises(ModelError, match=r"coremltools cannot convert it: NotImplementedError: .*'fancy'"):
        export(tiny_model("resnet"), tiny_interface, tmp_path)


def test_normalisation_is_in_the_program(tmp_path: Path, tiny_interface: Interface) -> None:
    """The first operations, run by hand on all pixel values, give what the task's preprocessing gives."""
    from transformers import ResNetConfig, ResNetForImageClassification

    interface = replace(tiny_interface, pixels=Pixels((0.1307,), (0.3081,)))
    model = ResNetForImageClassification(
        ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=4)
    )
    package, _, _ = export(model, interface, tmp_path)
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = spec_of(package)
    program = load(spec, spec.specificationVersion, str(package / runtime.WEIGHTS_FOLDER))
    values = np.arange(256, dtype=np.float64)
    for operation in program.functions["main"].operations:
        if operation.op_type == "conv":
            break
        given = {name: v.val for name, v in operation.inputs.items() if v.val is not None}
        if operation.op_type == "mul":
            values = values * float(given["y"].item())
        elif operation.op_type == "add":
            values = values + float(given["y"].item())
        elif operation.op_type == "batch_norm":
            values = (values - given["mean"]) / np.sqrt(given["variance"] + given["epsilon"])
            values = values * given["gamma"] + given["beta"]
    expected = (torch.arange(256).double() / 255 - 0.1307) / 0.3081
    assert np.abs(values - expected.numpy()).max() < 2e-3
