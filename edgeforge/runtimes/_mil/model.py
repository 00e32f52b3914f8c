"""An opened package that takes and gives what coremltools' MLModel does: dictionaries of arrays, images and labels."""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from edgeforge.core.errors import ModelError
from edgeforge.runtimes._mil.evaluator import Evaluator, Precision
from edgeforge.runtimes._mil.package import open_package
from edgeforge.runtimes._mil.program import Declared, read_function
from edgeforge.runtimes._mil.state import State

Feature = Any  # coremltools has no types: this is its protobuf message FeatureDescription

GRAYSCALE, RGB, BGR = 10, 20, 30
"""FeatureTypes.proto's ColorSpace, those of 8 bits."""

_MODES = {GRAYSCALE: "L", RGB: "RGB", BGR: "RGB"}


class ReferenceModel:
    """A package, ready to answer. `metadata` is what its author wrote into it; `features` describe its inputs."""

    def __init__(self, path: Path, *, precision: Precision = "float32") -> None:
        """Raises ModelError for a package that cannot be read or holds something that is not known here."""
        package = open_package(path)
        description = package.spec.description
        name = description.defaultFunctionName or "main"
        described = next((one for one in description.functions if one.name == name), description)
        self.path = path
        self.metadata: Mapping[str, str] = dict(package.spec.description.metadata.userDefined)
        self.features: tuple[Feature, ...] = tuple(described.input)
        self._outputs = tuple(output.name for output in described.output)
        self._evaluator = Evaluator(read_function(package, name), precision=precision)
        self._declared = {value.name: value for value in self._evaluator.function.inputs}
        self._check_description(described)

    @property
    def declared(self) -> Mapping[str, Declared]:
        """What the program says of its inputs, by name."""
        return self._declared

    @property
    def compressed(self) -> bool:
        """Whether weights or activations are not stored or computed as plain floats."""
        types = {operation.type for operation in self._evaluator.function.body.all_operations()}
        return any(name.startswith("constexpr_") or name in ("quantize", "dequantize") for name in types)

    def make_state(self) -> dict[str, State]:
        """Fresh states, all zeros, for `predict`."""
        return self._evaluator.new_states()

    def nudged(self, kept: Container[str] = ()) -> ReferenceModel:
        """The same package with its single numbers one step of float16 further; see `Evaluator.nudged`."""
        other = copy.copy(self)
        other._evaluator = self._evaluator.nudged(kept)
        return other

    @overload
    def predict(self, data: Mapping[str, Any], state: Mapping[str, State] | None = None) -> dict[str, Any]: ...
    @overload
    def predict(self, data: Sequence[Mapping[str, Any]], state: None = None) -> list[dict[str, Any]]: ...
    def predict(self, data: Any, state: Mapping[str, State] | None = None) -> Any:
        """Outputs by name for one sample (inputs by name), or for each of a list.

        An array comes and goes as numpy; an image comes as a PIL image, or as an array (1, C, H, W) of pixel values
        0 to 255 in the package's order of colours. A classifier gives its label and {label: probability}.
        Raises ModelError for an input that is missing, unknown, or of another shape or type, and where an operation
        does not run.
        """
        if isinstance(data, Mapping):
            return self._predict(data, state)
        return [self._predict(one, None) for one in data]

    def values(self, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Every array that one sample leads to, by the name of the value: constants, inputs, what is computed."""
        found = self._evaluator.values(self._inputs(data), self.make_state())
        return {name: value.numpy() for name, value in found.items() if isinstance(value, torch.Tensor)}

    def _predict(self, data: Mapping[str, Any], state: Mapping[str, State] | None) -> dict[str, Any]:
        states = self.make_state() if state is None else state
        results = self._evaluator.run(self._inputs(data), states)
        answers = {name: results[name] for name in self._outputs}
        return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in answers.items()}

    def _inputs(self, data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        names = [feature.name for feature in self.features]
        if set(data) != set(names):
            raise self._refused(f"its inputs are {', '.join(names)}, and given are {', '.join(data) or 'none'}")
        return {feature.name: self._input(feature, data[feature.name]) for feature in self.features}

    def _input(self, feature: Feature, value: Any) -> torch.Tensor:
        declared = self._declared[feature.name]
        array = self._pixels(feature, value) if feature.type.WhichOneof("Type") == "imageType" else np.asarray(value)
        floats = declared.element is not None and declared.element.is_float
        if array.dtype.kind not in ("fiub" if floats else "iub"):
            raise self._refused(f"'{feature.name}' takes {'' if floats else 'whole '}numbers, not {array.dtype}")
        if not _fits(array.shape, declared, feature):
            raise self._refused(f"'{feature.name}' does not take the shape {array.shape}")
        kind = np.dtype(np.float32 if floats else np.int32)
        if not floats and array.size and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
            raise self._refused(f"'{feature.name}' takes numbers of 32 bits")
        return torch.from_numpy(np.array(array, dtype=kind))

    def _pixels(self, feature: Feature, value: Any) -> np.ndarray:
        """(1, C, H, W), 0 to 255, in the order of colours that the package says."""
        image = feature.type.imageType
        if not hasattr(value, "mode"):
            return np.asarray(value)
        if value.mode != _MODES[image.colorSpace]:
            raise self._refused(f"'{feature.name}' takes {_MODES[image.colorSpace]} images, not {value.mode}")
        pixels = np.atleast_3d(np.asarray(value)).transpose(2, 0, 1)[None]
        return pixels[:, ::-1] if image.colorSpace == BGR else pixels

    def _check_description(self, described: Any) -> None:
        """The package's description and its program name the same inputs and outputs."""
        function = self._evaluator.function
        states = {value.name for value in function.states}
        named = {feature.name for feature in self.features}
        if named != set(self._declared) or states != {state.name for state in described.state}:
            reason = f"its description names the inputs {sorted(named)}, its program {sorted(self._declared)}"
            raise self._refused(f"{reason} and the states {sorted(states)}")
        if missing := set(self._outputs) - set(function.body.outputs):
            raise self._refused(f"its program does not make the outputs {sorted(missing)}")
        for feature in self.features:
            image = feature.type.WhichOneof("Type") == "imageType"
            if image and feature.type.imageType.colorSpace not in _MODES:
                raise self._refused(f"'{feature.name}' takes a kind of image that is not known here")
            if not image and feature.type.WhichOneof("Type") != "multiArrayType":
                raise self._refused(f"'{feature.name}' is neither an image nor an array")
        for output in described.output:
            if output.type.WhichOneof("Type") == "imageType":
                raise self._refused(f"'{output.name}' is an image, which is not known here")

    def _refused(self, reason: str) -> ModelError:
        return ModelError(reason, where=str(self.path))


def _fits(shape: tuple[int, ...], declared: Declared, feature: Feature) -> bool:
    """Whether the program and the description both take this shape."""
    program = len(shape) == len(declared.shape) and all(
        wanted in (None, size) for size, wanted in zip(shape, declared.shape, strict=True)
    )
    if not program or feature.type.WhichOneof("Type") == "imageType":
        return program
    return any(
        all(low <= size and (high < 0 or size <= high) for size, (low, high) in zip(shape, ranges, strict=True))
        for ranges in allowed_shapes(feature)
        if len(ranges) == len(shape)
    )


def allowed_shapes(feature: Feature) -> list[list[tuple[int, int]]]:
    """The shapes that an array input takes: each a list of (least, most) per axis, most is -1 where there is none."""
    array = feature.type.multiArrayType
    flexible = array.WhichOneof("ShapeFlexibility")
    if flexible == "enumeratedShapes":
        return [[(int(size), int(size)) for size in one.shape] for one in array.enumeratedShapes.shapes]
    if flexible == "shapeRange":
        return [[(int(one.lowerBound), int(one.upperBound)) for one in array.shapeRange.sizeRanges]]
    return [[(int(size), int(size)) for size in array.shape]]
