"""A pipeline file: YAML (plus ``--set a.b=c``) -> Pipeline. Errors name the file, the line and the field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from edgeforge.core import document, user_code
from edgeforge.core.document import Document
from edgeforge.core.errors import ConfigurationError
from edgeforge.core.kinds import OneOf, discover
from edgeforge.core.spec import Spec, perhaps
from edgeforge.core.stage import Stage
from edgeforge.core.task import Task
from edgeforge.exporters import Exporter
from edgeforge.models import Model
from edgeforge.quantizers import Quantizer
from edgeforge.stages.slices import Slice

if TYPE_CHECKING:
    from typing import Self

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _plain_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("a name has letters, digits, '-' and '_' only, 64 at most, a letter or digit first")
    return value


def _in_chain(value: Any) -> Any:
    word = value.get("kind") if isinstance(value, dict) else value
    cls = discover("edgeforge.stages", Stage).get(word) if isinstance(word, str) else None
    if cls is not None and not getattr(cls, "in_chain", True):
        raise ValueError(f"'{word}' is no stage of the chain: every target does it by itself")
    return value


def _well_named(stage: Stage) -> Stage:
    if stage.name is not None:
        _plain_name(stage.name)
    return stage


Name = Annotated[str, AfterValidator(_plain_name)]


class Target(Spec):
    """One file to ship: how it is quantized, in which format it is written, on which devices it is measured."""

    name: Name = Field(description="Names the artifact's folder and its rows in the report.")
    quantize: Annotated[Quantizer, OneOf("edgeforge.quantizers")] | None = Field(
        default=None, description="How numbers are made smaller; absent: the model's own float32."
    )
    export: Annotated[Exporter, OneOf("edgeforge.exporters")] = Field(description="The file format.")
    devices: tuple[str, ...] = Field(default=("host_cpu",), description="Device profiles, see `edgeforge devices`.")
    fallback: Literal["float"] | None = Field(
        default=None,
        description="float: the unquantized file is shipped in its place where the quantized one is measured slower "
        "than it on any of the devices.",
    )

    @model_validator(mode="after")
    def _falls_back_from_something(self) -> Self:
        if self.fallback is not None and self.quantize is None:
            raise ValueError("`fallback` is for targets that are quantized; this one is not")
        return self


class DeviceBudgets(Spec):
    """Limits on one device, in place of those on all of them."""

    latency_ms: float | None = Field(default=None, gt=0, description="Highest median latency on it (ms).")
    latency_ratio: float | None = Field(default=None, gt=0, description="Least times faster than the baseline on it.")


class Budgets(Spec):
    """Limits every target must keep. A limit on what could not be measured is missed, unless allowed."""

    accuracy_drop: float | None = Field(
        default=None,
        ge=0,
        description="Most the headline metric may get worse than the baseline's (absolute: 0.01 is one point; for a "
        "language model perplexity, 0.5 is half a unit).",
    )
    size_mb: float | None = Field(default=None, gt=0, description="Largest shipped file or folder (MB, 10^6 bytes).")
    size_ratio: float | None = Field(default=None, gt=0, description="Least times smaller than the baseline.")
    latency_ms: float | None = Field(
        default=None,
        gt=0,
        description="Highest median latency on each device (ms; for a language model, of one token that it writes).",
    )
    latency_ratio: float | None = Field(default=None, gt=0, description="Least times faster than the baseline.")
    devices: dict[str, DeviceBudgets] = Field(
        default={}, description="Device by device, other limits on latency: {pixel_8: {latency_ms: 8}}."
    )
    slower_than_parent: Literal["fail", "allow"] = Field(
        default="fail",
        description="What becomes of a target measured slower than what it came from: a quantized one than its "
        "unquantized file, one of a pruned or distilled model than the baseline.",
    )
    allow_unmeasured: bool = Field(default=False, description="Let a limit pass where its value could not be measured.")

    def limit(self, metric: str, device: str | None = None) -> float | None:
        """The limit on a metric (a field's name); on a device, its own before that of all."""
        own = getattr(self.devices.get(device or ""), metric, None)
        found: float | None = getattr(self, metric) if own is None else own
        return found


class Pipeline(Spec):
    """What a pipeline file says, after shorthand was written out."""

    name: Name = Field(description="Names the run.")
    task: Annotated[Task, OneOf("edgeforge.tasks")] = Field(description="What the model is for, and its data.")
    model: Annotated[Model, OneOf("edgeforge.models")] = Field(description="Where the model comes from.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Every random choice follows from it.")
    stages: tuple[
        Annotated[Stage, OneOf("edgeforge.stages"), BeforeValidator(_in_chain), AfterValidator(_well_named)], ...
    ] = Field(default=(), description="The chain: each stage starts from the model that the one before it made.")
    targets: tuple[Target, ...] = Field(default=(), description="What is shipped, each made from the chain's end.")
    budgets: Budgets = Field(default=Budgets(), description="What every target must keep to.")
    slices: tuple[Slice, ...] = Field(
        default=(),
        description="How the report cuts the test split where a student is compared with its teacher; changing it "
        "trains nothing anew.",
    )
    probe: str | None = Field(
        default=None,
        min_length=1,
        description="Samples that do not belong to the task, without labels, on which a student is compared with its "
        "teacher: a file of texts (one a line, or JSON lines), a folder of images, or an .npz file with them in `x`.",
    )

    @field_validator("stages")
    @classmethod
    def _distinct_stages(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        _distinct((stage.name for stage in value if stage.name is not None), reserved="model")
        return value

    @field_validator("targets")
    @classmethod
    def _distinct_targets(cls, value: tuple[Target, ...]) -> tuple[Target, ...]:
        _distinct((target.name for target in value), reserved="baseline")
        return value

    @model_validator(mode="after")
    def _limits_on_devices_of_targets(self) -> Self:
        known = [device for target in self.targets for device in target.devices]
        for device in self.budgets.devices:
            if device not in known:
                raise ValueError(perhaps("`budgets.devices`: no target names the device", device, sorted({*known})))
        return self


def _distinct(names: Iterable[str], *, reserved: str) -> None:
    seen = {reserved}
    for name in names:
        # Names become folders, and not every disk tells upper case from lower.
        if name.lower() in seen:
            raise ValueError(f"the name '{name}' is taken; each must be different, and none '{reserved}'")
        seen.add(name.lower())


def load(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file and apply ``a.b=c`` overrides. Raises ConfigurationError."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(document.MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(
            f"cannot read the pipeline file: {said}", where=str(path), remedy="`edgeforge init` writes one"
        ) from error
    return parse(raw, str(path), overrides)


def parse(raw: bytes, name: str, overrides: Sequence[str] = ()) -> Pipeline:
    """The same from bytes; `name` stands in error messages."""
    source = Document(raw, name)
    if not isinstance(source.data, dict):
        raise ConfigurationError(
            "a pipeline file holds keys and values (name:, task:, model:, ...)",
            where=name,
            remedy="`edgeforge init` writes one",
        )
    for override in overrides:
        source.override(override)
    try:
        return Pipeline.model_validate(source.data, context={user_code.FOLDER: str(Path(name).absolute().parent)})
    except ValidationError as error:
        raise _explained(error, source) from error


def dump(pipeline: Pipeline) -> str:
    """The pipeline as YAML, every default written out; loading it gives the same Pipeline."""
    return document.to_yaml(pipeline.model_dump(mode="json"))


def _explained(error: ValidationError, source: Document) -> ConfigurationError:
    """The first problem as one sentence with its place; the rest are counted."""
    problems = error.errors(include_url=False)
    first = problems[0]
    path, kinds = _trace(first["loc"], source.data)
    context: dict[str, Any] = first.get("ctx", {})
    key, word = str(context.get("key")), context.get("axis", kinds[-1] if kinds else "pipeline")
    if first["type"] == "missing":
        path = (*path, first["loc"][-1])
    elif first["type"] == "unknown_key":
        # Some fields may stand one level up from where they belong (`architecture: resnet` and its fields).
        path = next((place for place in ((*path, key), (*path[:-1], key)) if place in source), path)
    elif (*path, key) in source:
        path = (*path, key)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ConfigurationError(
        f"{_sentence(first)}{more}",
        where=source.place(path),
        remedy=f"see `edgeforge explain {word}`",
    )


def _sentence(problem: ErrorDetails) -> str:
    kind, message, given = problem["type"], problem["msg"], problem["input"]
    if kind == "missing":
        return f"'{problem['loc'][-1]}' must be given"
    if kind in ("model_type", "model_attributes_type"):
        message = "must hold keys and values"
    elif kind == "value_error":
        message = message.removeprefix("Value error, ")
    elif kind not in ("unknown_key", "unknown_kind", "missing_kind", "secret"):
        message = message.replace("Input should", "must")
    else:
        return message
    if kind == "string_type" and isinstance(given, bool | int | float):
        message += "; put it in quotes"
    shown = repr(given)
    return f"{message} (it is {shown})" if len(shown) <= 60 and not isinstance(given, Spec) else message


def _trace(loc: Sequence[str | int], data: Any) -> tuple[document.Path, list[str]]:
    """A pydantic location -> the path in the file, and the kinds that were chosen along it.

    Pydantic puts the kind that it chose into the location; the file has no such level.
    """
    path: document.Path = ()
    kinds: list[str] = []
    value = holder = data
    for position, part in enumerate(loc):
        rest = loc[position:]
        if isinstance(value, str) and _holds(holder, rest):
            path, value = path[:-1], holder  # the fields of a bare word may stand beside it
        if not _holds(value, rest):
            continue
        holder, value = value, value[part]
        path = (*path, part)
        kind = value.get("kind") if isinstance(value, dict) else value
        if isinstance(kind, str) and (isinstance(value, dict) or len(rest) > 1):
            kinds.append(kind)
    return path, kinds


def _holds(value: Any, rest: Sequence[str | int]) -> bool:
    part = rest[0]
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    if not isinstance(value, dict) or part not in value:
        return False
    if value.get("kind") != part:
        return True
    # The kind that was chosen, or a field that is called like it: a field has something inside, not beside it.
    return len(rest) > 1 and rest[1] != part and rest[1] not in value
