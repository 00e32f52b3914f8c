"""Core ML packages (``model.mlpackage``), written on any machine."""

from __future__ import annotations

import functools
import json
import math
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import edgeforge
from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.exporters import Exporter
from edgeforge.exporters._coreml_weights import Placed, pipeline_with
from edgeforge.runtimes import coreml as runtime

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Coreml(Exporter):
    """A Core ML ML Program for iPhone, iPad and Mac: it takes an image and answers with a label and probabilities.

    Normalisation is inside the program, so an app hands over camera pixels as they are. Weights that a quantizer
    turned into integers are written as those integers. Needs iOS 17 or macOS 14; with quantized weights iOS 18 or
    macOS 15.
    """

    kind: Literal["coreml"] = "coreml"
    precision: Literal["float16", "float32"] = Field(
        default="float16", description="Of arithmetic and unquantized weights; the Neural Engine has float16 only."
    )

    needs: ClassVar[tuple[str, ...]] = ("coremltools", "numpy", "torch", "transformers")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.exporters._coreml_weights",
        "edgeforge.models.loading",
        "edgeforge.models.quantized_weights",
        "edgeforge.runtimes.coreml",
    )

    def export(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Exporter. Raises ModelError where the model or its quantization cannot be said in Core ML."""
        from edgeforge.models import loading, quantized_weights

        interface = job.task.open().interface
        network = loading.load(model.path)
        quantized = quantized_weights.read(model.path)
        if quantized is not None:
            quantized_weights.check_model(quantized, network, where=str(model.path))
        placed = Placed(quantized.weights if quantized is not None else {})
        target = "iOS18" if placed.weights else "iOS17"
        converted = self._convert(_pixels_to_probabilities(network, interface), interface, target, placed)
        placed.check()
        spec = converted.get_spec()
        _describe(spec, interface, recipe=model.key)
        _renumber_transposes(spec)
        package = job.folder / runtime.PACKAGE
        _write_package(package, spec, Path(converted.weights_dir))
        main = spec.mlProgram.functions["main"]
        operations = main.block_specializations[main.opset].operations
        return {
            "bytes": sum(path.stat().st_size for path in package.rglob("*") if path.is_file()),
            "minimum_deployment_target": target,
            "precision": self.precision,
            "operations": sum(not operation.type.startswith("const") for operation in operations),
            "coverage_percent": _coverage(network, placed),
        }

    def _convert(self, network: torch.nn.Module, interface: Interface, target: str, placed: Placed) -> Any:
        """torch -> MLModel; neither loaded nor compiled, which only macOS could."""
        import torch

        coremltools = runtime.load_coremltools()
        shape = (1, *interface.input_shape)
        layout = coremltools.colorlayout.RGB if shape[1] == 3 else coremltools.colorlayout.GRAYSCALE
        labels = coremltools.ClassifierConfig(list(interface.labels), predicted_feature_name=runtime.LABEL)
        try:
            with _quiet(), torch.no_grad():
                program = torch.export.export(network, (torch.zeros(shape),)).run_decompositions({})
                return coremltools.convert(
                    program,
                    inputs=[coremltools.ImageType(name=runtime.IMAGE, shape=shape, color_layout=layout)],
                    classifier_config=labels,
                    minimum_deployment_target=getattr(coremltools.target, target),
                    compute_precision=getattr(coremltools.precision, self.precision.upper()),
                    convert_to="mlprogram",
                    pass_pipeline=pipeline_with(placed),
                    skip_model_load=True,
                )
        except Exception as error:  # a converter meets a model it does not know: anything may come
            reason = next(iter(str(error).splitlines()), "")
            raise ModelError(
                f"coremltools cannot convert it: {type(error).__name__}: {reason}", remedy="export to onnx instead"
            ) from error


def _pixels_to_probabilities(network: PreTrainedModel, interface: Interface) -> torch.nn.Module:
    """The model behind its own normalisation: pixels (1, C, H, W) of 0 to 255 -> probabilities (1, labels).

    Raises ModelError where no Core ML classifier can be made of it.
    """
    import torch

    channels = interface.input_shape[0]
    if channels not in (1, 3):
        raise ModelError(f"Core ML images have 1 or 3 channels, this model takes {channels}", remedy="export to onnx")
    if len(set(interface.labels)) != len(interface.labels):
        raise ModelError("two labels have the same name, and Core ML answers by name", remedy="rename one of them")
    if network.config.num_labels != len(interface.labels):
        raise ModelError(f"the model has {network.config.num_labels} labels, the task {len(interface.labels)}")

    class Classifier(torch.nn.Module):
        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            mean, std = (torch.tensor(values, dtype=torch.float64) for values in (interface.mean, interface.std))
            self.network = network
            self.register_buffer("scale", (1 / (255 * std)).float().reshape(1, -1, 1, 1))
            self.register_buffer("shift", (-mean / std).float().reshape(1, -1, 1, 1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            normalised = image * self.scale + self.shift
            return self.network(**{network.main_input_name: normalised}).logits.softmax(dim=-1)  # type: ignore[no-any-return]

    return Classifier().eval()


def _coverage(network: PreTrainedModel, placed: Placed) -> float:
    """Per cent of the model's numbers that are written as integers."""
    quantized = sum(math.prod(placed.weights[name].shape) for name in placed.names)
    return 100 * quantized / int(sum(parameter.numel() for parameter in network.parameters()))


def _describe(spec: Any, interface: Interface, *, recipe: str) -> None:
    """What Xcode and an app's developer are shown. Author and licence are the user's to fill in."""
    channels, height, width = interface.input_shape
    description = spec.description
    metadata = description.metadata
    metadata.shortDescription = f"Classifies an image as one of {len(interface.labels)} labels."
    metadata.versionString = recipe[:12]
    metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)  # the same file tomorrow
    metadata.userDefined[runtime.RECIPE_KEY] = recipe
    metadata.userDefined[runtime.VERSION_KEY] = edgeforge.__version__
    metadata.userDefined[runtime.LABELS_KEY] = json.dumps(interface.labels)
    metadata.userDefined[runtime.PREPROCESSING_KEY] = json.dumps({"mean": interface.mean, "std": interface.std})
    colour = "RGB" if channels == 3 else "grayscale"
    description.input[0].shortDescription = f"{colour} image, {width} x {height}; the model normalises it itself"
    for output in description.output:
        if output.name == runtime.LABEL:
            output.shortDescription = "most probable label"
        else:
            output.shortDescription = "probability of each label"


def _renumber_transposes(spec: Any) -> None:
    """Number ``transpose_0``, ``transpose_1``, ... in the order in which they stand.

    coremltools' pass that moves them numbers them in the order of a set, which is another at every run.
    """
    main = spec.mlProgram.functions["main"]
    block = main.block_specializations[main.opset]
    numbered = re.compile(r"transpose_(\d+)(?!\d)")
    order: dict[str, str] = {}

    def renamed(name: str) -> str:
        found = numbered.match(name)
        if found is None:
            return name
        return f"transpose_{order.setdefault(found[1], str(len(order)))}{name[found.end() :]}"

    for operation in block.operations:
        for output in operation.outputs:
            output.name = renamed(output.name)
        if "name" in operation.attributes:
            texts = operation.attributes["name"].immediateValue.tensor.strings.values
            texts[:] = [renamed(text) for text in texts]
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.name:
                    binding.name = renamed(binding.name)
    block.outputs[:] = [renamed(name) for name in block.outputs]


def _write_package(package: Path, spec: Any, weights: Path) -> None:
    """Write a package that is the same to the byte for the same program; coremltools' own holds random identifiers."""
    (package / runtime.WEIGHTS_FOLDER).mkdir(parents=True)
    (package / runtime.MODEL_FILE).write_bytes(spec.SerializeToString(deterministic=True))
    (package / runtime.WEIGHTS_FILE).write_bytes((weights / Path(runtime.WEIGHTS_FILE).name).read_bytes())
    content = digest_files(hash_folder(package))
    items = {
        "model.mlmodel": "CoreML Model Specification",
        "weights": "CoreML Model Weights",
    }
    identifiers = {name: str(uuid.uuid5(uuid.NAMESPACE_OID, f"{content}/{name}")) for name in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[name]: {
                "author": "com.apple.CoreML",
                "description": description,
                "name": name,
                "path": f"com.apple.CoreML/{name}",
            }
            for name, description in items.items()
        },
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
    # coremltools writes this file anew whenever it opens a package; in its own layout it stays the same.
    (package / runtime.MANIFEST).write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without coremltools' progress bars, and torch's warning about a call of its own. Other warnings are shown."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    init = tqdm.__init__
    tqdm.__init__ = functools.partialmethod(init, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)", category=FutureWarning)
            yield
    finally:
        tqdm.__init__ = init
