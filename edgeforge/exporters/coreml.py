"""Core ML packages (``model.mlpackage``), written on any machine."""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import edgeforge
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.exporters import Exporter
from edgeforge.exporters._companions import write_companions
from edgeforge.exporters._coreml_decoder import decoder
from edgeforge.exporters._coreml_inputs import Front, images, texts
from edgeforge.exporters._coreml_weights import Placed, pipeline_with
from edgeforge.runtimes import coreml as runtime
from edgeforge.runtimes._coreml_writing import renumber, write_package

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Coreml(Exporter):
    """A Core ML ML Program for iPhone, iPad and Mac: it takes an image or a text and answers with a label and
    probabilities; a language model takes tokens, remembers them, and answers with what may follow.

    Normalisation of images is inside the program, so an app hands over camera pixels as they are. A text comes as
    token ids and a mask, filled up to a length that the package takes; the tokenizer's files lie beside the package.
    Weights that a quantizer turned into integers are written as those integers. Needs iOS 17 or macOS 14; with
    quantized weights or several lengths iOS 18 or macOS 15.
    """

    kind: Literal["coreml"] = "coreml"
    precision: Literal["float16", "float32"] = Field(
        default="float16", description="Of arithmetic and unquantized weights; the Neural Engine has float16 only."
    )
    length: Literal["fixed", "flexible"] = Field(
        default="fixed",
        description="Of texts: always the task's max_length, or the smallest of 16, 32, 64, ... that holds the text. "
        "Each of these is compiled for the Neural Engine; an open range would run there at one length only.",
    )

    context: int | None = Field(
        default=None,
        ge=16,
        description="Of language models: most tokens of a conversation, which the model remembers; absent: 1024, or as "
        "many as it has positions for.",
    )

    needs: ClassVar[tuple[str, ...]] = ("coremltools", "numpy", "torch", "transformers")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.exporters._companions",
        "edgeforge.exporters._coreml_decoder",
        "edgeforge.exporters._coreml_inputs",
        "edgeforge.exporters._coreml_weights",
        "edgeforge.models.loading",
        "edgeforge.models.quantized_weights",
        "edgeforge.models.tokenizer",
        "edgeforge.models.tokenizer_settings",
        "edgeforge.runtimes._coreml",
        "edgeforge.runtimes._coreml_writing",
    )

    def export(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Exporter. Raises ModelError where the model or its quantization cannot be said in Core ML."""
        from edgeforge.models import loading, quantized_weights

        interface = job.data.interface
        network = loading.load(model.path)
        if interface.labels:
            _check_labels(network, interface)
        quantized = quantized_weights.read(model.path)
        if quantized is not None:
            quantized_weights.check_model(quantized, network, where=str(model.path))
        placed = Placed(quantized.weights if quantized is not None else {}, tables=_tables(network))
        if interface.per_token:
            front = decoder(network, interface, context=self.context)
        elif interface.tokens is not None:
            front = texts(network, interface, flexible=self.length == "flexible")
        else:
            front = images(network, interface)
        target = "iOS18" if placed.weights or len(front.lengths) > 1 or front.states else "iOS17"
        converted = self._convert(front, interface, target, placed)
        placed.check()
        spec = converted.get_spec()
        _describe(spec, front, interface, recipe=model.key)
        renumber(spec)
        package = job.folder / runtime.PACKAGE
        write_package(package, spec, Path(converted.weights_dir))
        if interface.tokens is not None:
            write_companions(network, interface, model.path, job.folder)
        main = spec.mlProgram.functions["main"]
        operations = main.block_specializations[main.opset].operations
        return {
            "bytes": sum(path.stat().st_size for path in package.rglob("*") if path.is_file()),
            "minimum_deployment_target": target,
            "precision": self.precision,
            **({"lengths": list(front.lengths)} if front.lengths else {}),
            "operations": sum(not operation.type.startswith("const") for operation in operations),
            "coverage_percent": _coverage(network, placed),
        }

    def _convert(self, front: Front, interface: Interface, target: str, placed: Placed) -> Any:
        """torch -> MLModel; neither loaded nor compiled, which only macOS could."""
        import torch

        coremltools = runtime.load_coremltools()
        classifier = {} if front.outputs else {"classifier_config": _classifier(coremltools, interface)}
        try:
            with _quiet(), torch.no_grad():
                return coremltools.convert(
                    front.program(),
                    inputs=front.types,
                    outputs=front.outputs or None,
                    states=front.states or None,
                    **classifier,
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


def _classifier(coremltools: Any, interface: Interface) -> Any:
    return coremltools.ClassifierConfig(list(interface.labels), predicted_feature_name=runtime.LABEL)


def _check_labels(network: PreTrainedModel, interface: Interface) -> None:
    """Raise ModelError where no Core ML classifier can be made of it."""
    if len(set(interface.labels)) != len(interface.labels):
        raise ModelError("two labels have the same name, and Core ML answers by name", remedy="rename one of them")
    if network.config.num_labels != len(interface.labels):
        raise ModelError(f"the model has {network.config.num_labels} labels, the task {len(interface.labels)}")


def _coverage(network: PreTrainedModel, placed: Placed) -> float:
    """Per cent of the model's numbers that are written as integers."""
    quantized = sum(math.prod(placed.weights[name].shape) for name in placed.names)
    return 100 * quantized / int(sum(parameter.numel() for parameter in network.parameters()))


def _tables(network: PreTrainedModel) -> frozenset[str]:
    """Names of the embedding tables."""
    from torch.nn import Embedding

    return frozenset(f"{path}.weight" for path, module in network.named_modules() if isinstance(module, Embedding))


def _describe(spec: Any, front: Front, interface: Interface, *, recipe: str) -> None:
    """What Xcode and an app's developer are shown. Author and licence are the user's to fill in."""
    description = spec.description
    metadata = description.metadata
    metadata.shortDescription = front.summary
    metadata.versionString = recipe[:12]
    metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)  # the same file tomorrow
    metadata.userDefined[runtime.RECIPE_KEY] = recipe
    metadata.userDefined[runtime.VERSION_KEY] = edgeforge.__version__
    metadata.userDefined[runtime.LABELS_KEY] = json.dumps(interface.labels)
    metadata.userDefined.update(front.metadata)
    for value in description.input:
        value.shortDescription = front.descriptions[value.name]
    for output in description.output:
        if interface.per_token:
            output.shortDescription = "for each token, how likely each token of the vocabulary follows (logits)"
        elif output.name == runtime.LABEL:
            output.shortDescription = "most probable label"
        else:
            output.shortDescription = "probability of each label"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without coremltools' progress bars, and warnings of libraries about what they do themselves. Others are shown."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    init = tqdm.__init__
    tqdm.__init__ = functools.partialmethod(init, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)", category=FutureWarning)
            # It compares the ranges of number types in the narrowest of them.
            warnings.filterwarnings("ignore", message="overflow encountered in cast", module="coremltools")
            yield
    finally:
        tqdm.__init__ = init
