"""The reference runtime: which packages it opens and refuses, images and labels, what float16 shows, its errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

pytest.importorskip("coremltools")

import coremltools as ct
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.proto import Model_pb2

from edgeforge.core.artifact import hash_folder
from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.runtimes import runtime_for
from edgeforge.runtimes.coreml_reference import CoremlReference, open_model

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
WEIGHT = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
Write = Callable[..., Path]


def a_spec(*shape: int) -> Any:
    return mb.TensorSpec(shape=shape, dtype=types.fp32)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, save_program_to: Write) -> Path:
    """y = tanh(x W), with the weight in a file."""
    path = tmp_path_factory.mktemp("original") / "m.mlpackage"
    return save_program_to(lambda x: mb.tanh(x=mb.linear(x=x, weight=WEIGHT), name="y"), [a_spec(2, 16)], path)


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(original, tmp_path / "copy.mlpackage")
    return tmp_path / "copy.mlpackage"


X = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)


def edit(package: Path, change: Callable[[Any], None]) -> None:
    spec = Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    change(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())


def operations(spec: Any) -> Any:
    main = spec.mlProgram.functions["main"]
    return main.block_specializations[main.opset].operations


# -- which runtime


def test_it_answers_everywhere_and_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CoremlReference().available() is None
    assert not CoremlReference.measures_speed
    monkeypatch.setattr("sys.platform", "linux")
    chosen = runtime_for("coreml", timed=False)
    assert isinstance(chosen, CoremlReference)
    timed = runtime_for("coreml")
    assert timed is not None
    assert timed.kind == "coreml"
    monkeypatch.setattr("sys.platform", "darwin")
    on_a_mac = runtime_for("coreml", timed=False)
    assert on_a_mac is not None
    assert on_a_mac.kind == "coreml"
    assert runtime_for("gone", timed=False) is None


def test_opening_changes_nothing(original: Path) -> None:
    before = hash_folder(original)
    found = open_model(original).predict({"x": X})["y"]
    np.testing.assert_allclose(found, np.tanh(X @ WEIGHT.T), rtol=1e-5, atol=1e-6)
    assert hash_folder(original) == before


def test_a_list_of_samples(original: Path) -> None:
    model = open_model(original)
    both = model.predict([{"x": X}, {"x": -X}])
    assert np.array_equal(both[0]["y"], -both[1]["y"])


def test_a_package_of_another_author_is_no_session(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "model.mlpackage")
    with pytest.raises(
        ModelError, match=r"its metadata is not that of a package written by EdgeForge: .*edgeforge.labels"
    ):
        CoremlReference().open(tmp_path)


# -- inputs


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({}, "its inputs are x, and given are none"),
        ({"X": X}, "its inputs are x, and given are X"),
        ({"x": X, "z": X}, "its inputs are x, and given are x, z"),
        ({"x": X[:1]}, r"'x' does not take the shape \(1, 16\)"),
        ({"x": np.array([["a"] * 16] * 2)}, "'x' takes numbers, not"),
    ],
)
def test_inputs_that_do_not_fit(original: Path, data: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        open_model(original).predict(data)
    assert str(original) in str(caught.value)


def test_whole_numbers_stay_whole(write_package: Write) -> None:
    spec = mb.TensorSpec(shape=(3,), dtype=types.int32)
    model = open_model(write_package(lambda i: mb.mul(x=i, y=np.int32(2), name="y"), [spec]))
    assert model.predict({"i": np.int64([1, -2, 3])})["y"].tolist() == [2, -4, 6]
    with pytest.raises(ModelError, match="'i' takes whole numbers, not float32"):
        model.predict({"i": np.float32([1, 2, 3])})
    with pytest.raises(ModelError, match="'i' takes numbers of 32 bits"):
        model.predict({"i": np.int64([1, 2, 2**31])})


@pytest.mark.parametrize("layout", ["RGB", "BGR", "GRAYSCALE"])
def test_images_with_scale_bias_and_order_of_colours(layout: str, tmp_path: Path) -> None:
    channels = 1 if layout == "GRAYSCALE" else 3
    bias = [-0.1, -0.2, -0.3][:channels]
    program = mb.program(input_specs=[a_spec(1, channels, 2, 4)], opset_version=ct.target.iOS17)(
        lambda image: mb.identity(x=image, name="y")
    )
    kind = ct.ImageType(
        name="image",
        shape=(1, channels, 2, 4),
        scale=1 / 127.5,
        bias=bias if channels > 1 else bias[0],
        color_layout=getattr(ct.colorlayout, layout),
    )
    model = ct.convert(
        program, inputs=[kind], compute_precision=ct.precision.FLOAT32, minimum_deployment_target=ct.target.iOS17,
        skip_model_load=True,
    )  # fmt: skip
    model.save(str(tmp_path / "m.mlpackage"))
    opened = open_model(tmp_path / "m.mlpackage")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, channels)).astype(np.uint8)
    image = Image.fromarray(pixels if channels > 1 else pixels[..., 0])
    ordered = pixels[..., ::-1] if layout == "BGR" else pixels
    expected = ordered.transpose(2, 0, 1)[None] / 127.5 + np.reshape(bias, (1, channels, 1, 1))
    np.testing.assert_allclose(opened.predict({"image": image})["y"], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ModelError, match=r"'image' takes (RGB|L) images, not CMYK"):
        opened.predict({"image": image.convert("CMYK")})
    with pytest.raises(ModelError, match=r"'image' does not take the shape \(1, \d, 4, 4\)"):
        opened.predict({"image": image.resize((4, 4))})


def test_labels_and_probabilities(write_package: Write, tmp_path: Path) -> None:
    program = mb.program(input_specs=[a_spec(1, 3)], opset_version=ct.target.iOS17)(lambda x: mb.softmax(x=x, axis=-1))
    model = ct.convert(
        program,
        classifier_config=ct.ClassifierConfig(["north", "east", "south"]),
        minimum_deployment_target=ct.target.iOS17,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "m.mlpackage"))
    answer = open_model(tmp_path / "m.mlpackage").predict({"x": np.log(np.float32([[2, 5, 3]]))})
    assert answer["classLabel"] == "east"
    (name,) = set(answer) - {"classLabel"}
    assert answer[name] == pytest.approx({"north": 0.2, "east": 0.5, "south": 0.3}, rel=1e-5)


def adding(amount: float) -> Callable[[Any], Any]:
    return lambda x: mb.add(x=x, y=np.float32(amount), name="y")


def test_the_default_function_of_several(write_package: Write, tmp_path: Path) -> None:
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, amount in (("one", 1.0), ("two", 2.0)):
        path = write_package(adding(amount), [a_spec(2)], name=name)
        descriptor.add_function(str(path), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = "two"
    ct.utils.save_multifunction(descriptor, str(tmp_path / "both.mlpackage"))
    assert open_model(tmp_path / "both.mlpackage").predict({"x": np.zeros(2)})["y"].tolist() == [2, 2]


# -- float16


def overflowing(x: Any) -> Any:
    return mb.mul(x=mb.mul(x=x, y=np.float32(300.0)), y=np.float32(0.01), name="y")


@pytest.mark.parametrize("precision", ["FLOAT16", "FLOAT32"])
def test_overflow_shows_in_float16_only(write_package: Write, precision: str) -> None:
    """300 x 300 is more than float16 holds (65504), and a float32 program is treated as if it had been converted."""
    path = write_package(overflowing, [a_spec(2)], precision=precision)
    x = {"x": np.float32([1, 300])}
    np.testing.assert_allclose(open_model(path).predict(x)["y"], [3, 900], rtol=1e-3)
    found = open_model(path, precision="float16").predict(x)["y"]
    np.testing.assert_allclose(found, [3, np.inf], rtol=1e-3)


def test_what_the_file_keeps_in_float32_is_not_rounded(write_package: Write) -> None:
    def mixed(x: Any) -> Any:
        half = mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32")
        return mb.mul(x=half, y=np.float32(300.0), name="y")

    path = write_package(mixed, [a_spec(2)])
    found = open_model(path, precision="float16").predict({"x": np.float32([1 / 3, 300])})["y"]
    assert found.tolist() == [np.float32(np.float16(1 / 3)) * np.float32(300), 90000]


def test_every_operation_is_rounded(write_package: Write) -> None:
    """2048 + 1 - 2048 is 0 in float16, whose numbers are two apart there."""
    path = write_package(lambda x: mb.sub(x=mb.add(x=x, y=np.float32(1)), y=np.float32(2048), name="y"), [a_spec(1)])
    assert open_model(path).predict({"x": np.float32([2048])})["y"].tolist() == [1]
    assert open_model(path, precision="float16").predict({"x": np.float32([2048])})["y"].tolist() == [0]


# -- operations that are not there, and programs that do not fit together


def test_an_unknown_operation_is_named_with_its_place(write_package: Write) -> None:
    def program(x: Any) -> Any:
        small = mb.crop(x=mb.relu(x=x), crop_height=[1, 1], crop_width=[1, 1], name="small")
        return mb.local_response_norm(x=small, size=3, name="y")

    path = write_package(program, [a_spec(1, 4, 6, 6)])
    with pytest.raises(ModelError) as caught:
        open_model(path)
    said = str(caught.value)
    assert "the operation 'crop' (output 'small') is not known here" in said
    assert "unknown in all: crop, local_response_norm" in said
    assert f"{path}: main, operation" in said
    assert "check this package on a Mac" in said


def rename_argument(spec: Any) -> None:
    linear = next(operation for operation in operations(spec) if operation.type == "linear")
    linear.inputs["dilation"].CopyFrom(linear.inputs["x"])


def read_nothing(spec: Any) -> None:
    next(one for one in operations(spec) if one.type == "tanh").inputs["x"].arguments[0].name = "gone"


def declare_another_shape(spec: Any) -> None:
    linear = next(operation for operation in operations(spec) if operation.type == "linear")
    linear.outputs[0].type.tensorType.dimensions[1].constant.size = 9


def declare_another_type(spec: Any) -> None:
    next(one for one in operations(spec) if one.type == "tanh").outputs[0].type.tensorType.dataType = 23


def shorten_the_weight(spec: Any) -> None:
    constant = next(one for one in operations(spec) if one.attributes["val"].WhichOneof("value") == "blobFileValue")
    constant.attributes["val"].type.tensorType.dimensions[1].constant.size = 15


def lose_an_output(spec: Any) -> None:
    main = spec.mlProgram.functions["main"]
    main.block_specializations[main.opset].outputs[0] = "gone"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (rename_argument, "'linear' has other arguments: .*dilation"),
        (read_nothing, "it reads 'gone', which nothing before it makes"),
        (declare_another_shape, r"'linear' gives float32 \(2, 8\), and the file declares float32 \(2, 9\)"),
        (declare_another_type, r"'tanh' gives float32 \(2, 8\), and the file declares int32 \(2, 8\)"),
        (shorten_the_weight, "an array of weights is not whole: 128 numbers are there, and 120 should be"),
        (lose_an_output, "its output 'gone' is made by nothing"),
        (lambda spec: spec.mlProgram.functions.pop("main"), "it has no function 'main'"),
        (
            lambda spec: setattr(spec.description.input[0], "name", "z"),
            r"names the inputs \['z'\], its program \['x'\]",
        ),
        (lambda spec: setattr(spec.description.output[0], "name", "z"), r"does not make the outputs \['z'\]"),
    ],
)
def test_a_program_that_does_not_fit_together(package: Path, change: Callable[[Any], None], reason: str) -> None:
    edit(package, change)
    with pytest.raises(ModelError, match=reason) as caught:
        open_model(package).predict({"x": X})
    assert str(package) in str(caught.value)


# -- files that are refused


def test_old_models_are_refused(tmp_path: Path) -> None:
    for kind in ("neuralNetwork", "neuralNetworkClassifier"):
        spec = Model_pb2.Model(specificationVersion=4)
        getattr(spec, kind).layers.add(name="a").activation.ReLU.SetInParent()
        (tmp_path / "old.mlmodel").write_bytes(spec.SerializeToString())
        with pytest.raises(
            ModelError, match=rf"it is a model of the old kind \({kind}\), and only ML Programs"
        ) as caught:
            open_model(tmp_path / "old.mlmodel")
        assert caught.value.remedy == "convert it to an ML Program (iOS 15 or later)"


def test_other_models_are_refused(package: Path) -> None:
    edit(package, lambda spec: spec.pipeline.models.add())
    with pytest.raises(ModelError, match="it is a model of the kind pipeline, and only ML Programs"):
        open_model(package)


def test_a_single_file_without_weights(write_package: Write, tmp_path: Path) -> None:
    path = write_package(adding(1), [a_spec(2)])
    shutil.copy(path / MODEL, tmp_path / "single.mlmodel")
    assert open_model(tmp_path / "single.mlmodel").predict({"x": np.zeros(2)})["y"].tolist() == [1, 1]


def test_a_single_file_whose_weights_are_elsewhere(original: Path, tmp_path: Path) -> None:
    shutil.copy(original / MODEL, tmp_path / "single.mlmodel")
    with pytest.raises(ModelError, match=r"it keeps weights in '@model_path/weights/weight.bin'"):
        open_model(tmp_path / "single.mlmodel")


def test_encrypted_compiled_and_missing_packages(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it does not exist"):
        open_model(tmp_path / "gone.mlpackage")
    with pytest.raises(ModelError, match=r"it is no Core ML package: it has no Manifest.json"):
        open_model(tmp_path)
    (package / "Data/encryptionInfo").mkdir()
    with pytest.raises(ModelError, match="it is encrypted"):
        open_model(package)
    (tmp_path / "m.mlmodelc").mkdir()
    with pytest.raises(ModelError, match="it is compiled for a device"):
        open_model(tmp_path / "m.mlmodelc")


def manifest(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    change(content)
    (package / "Manifest.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("item", ["root", "other"])
@pytest.mark.parametrize(
    "name", ["../../outside", "com.apple.CoreML/../../../outside", "/etc/hostname", "..\\outside", "C:outside", "link"]
)
def test_paths_that_leave_the_package_are_refused(package: Path, name: str, item: str) -> None:
    outside = package.parent / "outside"
    shutil.copy(package / MODEL, outside)
    (package / "Data/link").symlink_to(outside)

    def change(content: dict[str, Any]) -> None:
        root = content["rootModelIdentifier"]
        key = root if item == "root" else next(key for key in content["itemInfoEntries"] if key != root)
        content["itemInfoEntries"][key]["path"] = name

    manifest(package, change)
    with pytest.raises(ModelError, match="which leaves the package") as caught:
        open_model(package)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["@model_path/../../../outside", "/etc/hostname", "@model_path//etc/hostname"])
def test_weights_outside_the_package_are_refused(package: Path, name: str) -> None:
    shutil.copy(package / WEIGHTS, package.parent / "outside")

    def change(spec: Any) -> None:
        for operation in operations(spec):
            if operation.type == "const" and operation.attributes["val"].WhichOneof("value") == "blobFileValue":
                operation.attributes["val"].blobFileValue.fileName = name

    edit(package, change)
    with pytest.raises(ModelError, match=r"which leaves the package|is not a file of the package"):
        open_model(package)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"itemInfoEntries": {}, "rootModelIdentifier": "a"}', "[" * 100_000]
)
def test_a_spoiled_manifest(package: Path, content: str) -> None:
    (package / "Manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"Manifest.json cannot be read"):
        open_model(package)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_specification(package: Path, share: float) -> None:
    content = (package / MODEL).read_bytes()
    (package / MODEL).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match="truncated"):
        open_model(package)


@pytest.mark.parametrize("left", [0, 7, 64, 100, 128, -1])
def test_truncated_weights(package: Path, left: int) -> None:
    content = (package / WEIGHTS).read_bytes()
    (package / WEIGHTS).write_bytes(content[:left])
    with pytest.raises(ModelError, match=r"not whole|truncated"):
        open_model(package)


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (4, 1, "has version 1, and only 2 is known"),
        (64, 0, "there is no description of an array"),
        (68, 1, "its type has the code 1, and fp32 has 2"),
        (72, 4, "1 numbers are there, and 128 should be"),
        (72, 3, "not whole"),
        (80, 129, "it starts at byte 129, which is no multiple of 64"),
        (80, 1 << 40, "it ends behind the end of the file"),
    ],
)
def test_a_spoiled_description_of_weights(package: Path, at: int, value: int, reason: str) -> None:
    content = bytearray((package / WEIGHTS).read_bytes())
    width = 8 if at >= 72 else 4
    content[at : at + width] = value.to_bytes(width, "little")
    (package / WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(ModelError, match=reason):
        open_model(package)


def test_spoiled_bytes_never_end_in_another_error(package: Path) -> None:
    """Any one byte of the specification changed: it still answers, or a ModelError says why not."""
    content = (package / MODEL).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place, value in zip(rng.integers(len(content), size=400), rng.integers(1, 256, size=400), strict=True):
        spoiled = bytearray(content)
        spoiled[place] ^= value
        (package / MODEL).write_bytes(bytes(spoiled))
        try:
            open_model(package).predict({"x": X})
        except ModelError:
            refused += 1
    assert 100 < refused < 400


def test_a_file_larger_than_the_memory_is_refused(write_package: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_package(lambda x: mb.linear(x=x, weight=WEIGHT, name="y"), [a_spec(2, 16)], precision="FLOAT16")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * WEIGHT.size - 1))
    with pytest.raises(EnvironmentProblem, match=r"its weights take 0.0 GB of memory here, and 0.0 GB are free"):
        open_model(path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * WEIGHT.size + 1000))
    open_model(path)
