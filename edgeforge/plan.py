"""Pipeline -> Plan: ordered steps, each with a content key. What cannot work is found here, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from edgeforge.core import user_code
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.kinds import discover
from edgeforge.core.spec import Spec, digest_of, perhaps, source_digest
from edgeforge.core.stage import Stage
from edgeforge.core.task import Task
from edgeforge.data import DataSource
from edgeforge.dependencies import check_installed, libraries_of, modules_of
from edgeforge.device import DeviceProfile, Layout, profile
from edgeforge.estimators import estimator_for
from edgeforge.exporters import Exporter
from edgeforge.links import link_of
from edgeforge.models import Model
from edgeforge.pipeline import Pipeline, Target
from edgeforge.quantizers import Quantizer
from edgeforge.runtimes import runtime_for
from edgeforge.stages.benchmark import Benchmark
from edgeforge.stages.born_again import BornAgain
from edgeforge.stages.cache import Cache
from edgeforge.stages.distill import Distill
from edgeforge.stages.estimate import Estimate
from edgeforge.stages.evaluate import Evaluate
from edgeforge.stages.exits import Exits
from edgeforge.stages.export import Export
from edgeforge.stages.finetune import Finetune
from edgeforge.stages.importance import Importance
from edgeforge.stages.initialize import Initialize
from edgeforge.stages.mutual import Mutual
from edgeforge.stages.probe import Probe
from edgeforge.stages.prune import Prune
from edgeforge.stages.quantize import Quantize
from edgeforge.stages.slices import Slices
from edgeforge.stages.train import Train
from edgeforge.stages.verify import Verify
from edgeforge.store import Store
from edgeforge.teachers import LOGITS, TEACHER
from edgeforge.teachers.cached import Cached
from edgeforge.teaching import Lesson, check_readers, root
from edgeforge.training.mixture import DATASET
from edgeforge.training.recipe import needs_teacher

SLICES = "data.slices"
KEY_VERSION = 1  # raise when the meaning of keys or manifests changes


@dataclass(frozen=True)
class Step:
    """One stage with its inputs. `inputs` maps the stage's input names to the names of earlier steps.

    `row` is the row of the report it belongs to: ``chain``, ``baseline`` or a target's name.
    """

    name: str
    stage: Stage
    inputs: Mapping[str, str]
    key: str
    row: str


@dataclass
class Plan:
    """Everything a run will do, in order, and what the user should know before it starts."""

    pipeline: Pipeline
    steps: list[Step] = field(default_factory=list)
    chain: list[str] = field(default_factory=list)
    """Names of the steps that make the chain's models, first to last."""
    datasets: list[str] = field(default_factory=list)
    """Names of the steps that write texts for later stages."""
    baseline: str = ""
    """The chain step that every target is compared with."""
    lesson: Lesson | None = None
    """Whose answers all teaching goes back to, with which every file is compared; None where no model teaches."""
    data_digest: str | None = None
    targets: dict[str, Target] = field(default_factory=dict)
    """Target rows: `android`, or `android.x86` and `android.arm` where its devices need different layouts."""
    fallbacks: dict[str, str] = field(default_factory=dict)
    """Target row -> the row of the unquantized file that is shipped in its place where it is measured slower."""
    warnings: list[str] = field(default_factory=list)

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)

    @property
    def compresses(self) -> bool:
        """Whether a stage of the chain can make its model smaller, so that it should be no slower than the baseline."""
        smaller = (Prune, Distill, Mutual, Exits, BornAgain)
        return any(isinstance(self.step(name).stage, smaller) for name in self.chain)


def build(pipeline: Pipeline) -> Plan:
    """Order the steps and key them. Raises IncompatiblePlanError, MissingExtraError, ConfigurationError, DataError."""
    check_installed(pipeline.task)
    task = pipeline.task.completed(pipeline.model.folder())
    _check_families(pipeline)
    builder = _Builder(pipeline.model_copy(update={"task": task}))
    builder.slices()
    builder.chain()
    builder.teachers()
    devices = tuple(dict.fromkeys(device for target in pipeline.targets for device in target.devices))
    exporter = discover("edgeforge.exporters", Exporter)[task.baseline_format]
    baseline = Target(name="plain", export=exporter.model_validate({"kind": task.baseline_format}), devices=devices)
    builder.file_row("baseline", builder.plan.baseline, baseline, None)
    for position, target in enumerate(pipeline.targets):
        builder.target(target, f"targets[{position}]")
    return builder.plan


def _check_families(pipeline: Pipeline) -> None:
    """Refuse new models and students of a family that the task does not take, though the library might build them."""
    said: dict[str, Any] = {"model": pipeline.model}
    for position, stage in enumerate(pipeline.stages):
        several = getattr(stage, "students", ())
        said |= {f"stages[{position}].students[{number}]": student for number, student in enumerate(several)}
        said |= {f"stages[{position}].student": getattr(stage, "student", None)}
    for where, source in said.items():
        if (family := getattr(source, "architecture", None)) is not None:
            pipeline.task.check_family(family.kind, f"{where}.architecture")


class _Builder:
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.plan = Plan(pipeline, data_digest=_data_digest(pipeline))
        self.task_digest = pipeline.task.digest()
        self.task_modules = modules_of(pipeline.task)

    # -- steps and keys

    def add(self, name: str, stage: Stage, inputs: Mapping[str, str], row: str = "chain") -> str:
        if any(step.name == name for step in self.plan.steps):
            raise IncompatiblePlanError(
                f"two steps would be named '{name}'", where=name, remedy="give the stage or the target another name"
            )
        check_installed(stage)
        stage.check()
        key = self._key(stage, {role: self.plan.step(source).key for role, source in inputs.items()})
        self.plan.steps.append(Step(name, stage, dict(inputs), key, row))
        return name

    def _key(self, stage: Stage, parents: Mapping[str, str]) -> str:
        return digest_of(
            {
                "version": KEY_VERSION,
                "stage": stage.identity(),
                "parents": dict(parents),
                "task": self.task_digest,
                "seed": self.pipeline.seed,
                "sources": {module: source_digest(module) for module in sorted(modules_of(stage) | self.task_modules)},
                "libraries": {name: version(name) for name in sorted(libraries_of(stage))},
            }
        )

    # -- what a student is compared by

    def slices(self) -> None:
        """First of all: a column that is not there is found before any work."""
        cuts, task = self.pipeline.slices, self.pipeline.task
        if task.answers_per == "token":  # these refuse
            _ = cuts and task.tested()
            _ = self.pipeline.probe and task.open_probe(self.pipeline.probe)
        for position, cut in enumerate(cuts):
            cut.check(task, f"slices[{position}]")
        if cuts:
            self.add(SLICES, Slices(slices=cuts), {})

    def teachers(self) -> None:
        """Probe the models that taught, and evaluate those that are no part of the chain."""
        self.plan.lesson = root(self.plan)
        if self.plan.lesson is None and (self.pipeline.slices or self.pipeline.probe):
            self.plan.warnings.append("`slices` and `probe` compare a student with its teacher, and no model teaches")
        if self.plan.lesson is None or self.pipeline.task.answers_per == "token":
            return
        for name in dict.fromkeys(self.plan.lesson.teachers):
            if name not in self.plan.chain:
                self.add(f"{name}.evaluate", Evaluate(kind="evaluate"), {"model": name})
            self._probed(name, name, "chain")

    def _probed(self, name: str, model: str, row: str) -> None:
        if self.pipeline.probe is not None and self.plan.lesson is not None:
            self.add(f"{name}.probe", Probe(path=self.pipeline.probe), {"model": model}, row)

    # -- the chain

    def chain(self) -> None:
        self._warn_of_code(self.pipeline.task, "task")
        last = self.add("model", Initialize(kind="initialize", model=self.pipeline.model), {})
        untrained = self.pipeline.model.untrained()
        self._model_made(last, evaluate=not untrained)
        leading = True
        for position, stage in enumerate(self.pipeline.stages):
            where = f"stages[{position}]"
            # What is written before a model with random weights learns is what it learns from.
            writes = untrained and stage.makes_format() == "dataset"
            leading = leading and (isinstance(stage, Train) or writes)
            last = self._chain_stage(stage, last, where, leading=leading)
        if untrained and not any(stage.distributed for stage in self.pipeline.stages):
            self.plan.warnings.append(
                "the model's weights, or those of its classifier, are random, and no stage trains it"
            )

    def _model_made(self, name: str, *, evaluate: bool = True) -> None:
        self.plan.chain.append(name)
        if not self.plan.baseline:
            self.plan.baseline = name
        if evaluate:
            self.add(f"{name}.evaluate", Evaluate(kind="evaluate"), {"model": name, **self._reference(name)})

    def _warn_of_code(self, spec: Spec, where: str) -> None:
        for code in user_code.inside(spec):
            path, _, function = code.function.rpartition(":")
            self.plan.warnings.append(f"{where}: runs your code, with your rights: {path}, function {function}")

    def _chain_stage(self, stage: Stage, last: str, where: str, *, leading: bool) -> str:
        inputs = {"model": last}
        for role, source in stage.sources().items():
            inputs[role] = self._source(source, last, f"{where}.{role}", role=role)
        if isinstance(stage, Distill | Finetune):
            check_readers(self.plan, stage, inputs, where)
            inputs |= self._answers(stage, inputs, where)
        self._warn_of_code(stage, where)
        # What recovers a pruned model is a step of its own: it must not change the pruning's key.
        alone = stage.model_copy(update={"recover": None}) if isinstance(stage, Prune) else stage
        _check(stage, where)
        name = self.add(self._free_name(stage.name or stage.kind), alone, inputs)
        if stage.makes_format() == "dataset":
            self.plan.datasets.append(name)
            return last
        if leading:  # from here on this is what answers are compared with, its own included
            self.plan.baseline = name
        self._model_made(name)
        if isinstance(stage, Prune) and stage.recover is not None:
            return self._recovery(stage, name, last, where)
        return name

    def _recovery(self, stage: Prune, pruned: str, before: str, where: str) -> str:
        assert stage.recover is not None
        finetune = Finetune(kind="finetune", **dict(stage.recover))
        inputs = {"model": pruned}
        for role, source in finetune.sources().items():
            # The natural teacher of a pruned model is the model it was.
            inputs[role] = self._source(source, before, f"{where}.recover.{role}", role=role)
        _check(finetune, f"{where}.recover")
        check_readers(self.plan, finetune, inputs, f"{where}.recover")
        inputs |= self._answers(finetune, inputs, f"{where}.recover")
        name = self.add(f"{pruned}.recover", finetune, inputs)
        self._model_made(name)
        return name

    def _answers(self, stage: Distill | Finetune, inputs: Mapping[str, str], where: str) -> dict[str, str]:
        """The steps that ask cached teachers, once for all their students, as further inputs; mostly nothing."""
        found: dict[str, str] = {}
        if stage.teacher is None or not needs_teacher(stage.losses):
            return found
        stage.teacher.check_task(self.pipeline.task, f"{where}.{TEACHER}")
        for role, teacher in stage.teacher.asked().items():
            if not isinstance(teacher, Cached):
                continue
            teacher.check_views(self.pipeline.task, f"{where}.{role}")
            asked = inputs[role]
            about = {"model": asked} | ({DATASET: inputs[DATASET]} if DATASET in inputs else {})
            cache = Cache(precision=stage.precision, top_k=teacher.top_k, views=teacher.views)
            found[role.replace(TEACHER, LOGITS, 1)] = self._once(f"{asked}.cache", cache, about)
        return found

    def _once(self, name: str, stage: Stage, inputs: Mapping[str, str], row: str = "chain") -> str:
        """The step that does this, which may be there already under another name."""
        key = self._key(stage, {role: self.plan.step(source).key for role, source in inputs.items()})
        same = [step.name for step in self.plan.steps if step.key == key]
        return same[0] if same else self.add(self._free_name(name), stage, inputs, row)

    def _source(self, source: str | Model | None, last: str, where: str, *, role: str) -> str:
        if source is None:
            return last
        if isinstance(source, Model):
            return self._once("teacher", Initialize(kind="initialize", model=source), {})
        written = role == DATASET
        known = self.plan.datasets if written else self.plan.chain
        if source not in known:
            raise IncompatiblePlanError(
                perhaps(
                    "no earlier stage that writes texts is named" if written else "no earlier stage is named",
                    source,
                    known,
                ),
                where=where,
                remedy="name an earlier stage",
            )
        return source

    def _free_name(self, wanted: str) -> str:
        taken = {step.name for step in self.plan.steps}
        name, count = wanted, 1
        while name in taken:
            count += 1
            name = f"{wanted}-{count}"
        return name

    # -- targets

    def target(self, target: Target, where: str) -> None:
        task = self.pipeline.task
        if task.answers_per not in target.export.answers_per:
            raise IncompatiblePlanError(
                f"models for {task.kind} are not written as {target.export.kind}",
                where=where,
                remedy=f"export to one of {', '.join(_exporters_for(task))}",
            )
        if target.quantize is not None and target.export.kind not in target.quantize.writes:
            raise IncompatiblePlanError(
                f"{target.quantize.kind} cannot end in {target.export.kind}; "
                f"it can end in {', '.join(sorted(target.quantize.writes))}",
                where=where,
                remedy=f"quantizers for {target.export.kind}: {', '.join(_quantizers_for(target.export.kind))}",
            )
        devices = [profile(name, where=f"{where}.devices") for name in target.devices]
        for device in devices:
            if said := _not_at_hand(device, target.export.kind):
                self.plan.warnings.append(f"{target.name}: {said}")
        if target.quantize is not None:
            target.quantize.check(target.export.kind)
            if advice := target.quantize.advice(target.export.kind, self.pipeline.task.reads):
                self.plan.warnings.append(f"{target.name}: {advice}")
        for name, group in _by_layout(target, devices).items():
            layout = group[0].layout if group else None
            part = target.model_copy(update={"devices": tuple(device.name for device in group)})
            self.plan.targets[name] = part
            self.file_row(name, self.plan.chain[-1], part, layout)
            if part.fallback is not None:
                self.plan.fallbacks[name] = f"{name}.{part.fallback}"
                plain = part.model_copy(update={"quantize": None})
                self.file_row(self.plan.fallbacks[name], self.plan.chain[-1], plain, layout)

    def file_row(self, row: str, model: str, target: Target, layout: Layout | None) -> None:
        """The steps from a torch model to a verified, evaluated and measured file."""
        quantizer = target.quantize.for_layout(layout) if target.quantize and layout else target.quantize
        source = model
        if quantizer and "torch" in quantizer.accepts:
            source = self.add(f"{row}.quantize", Quantize(kind="quantize", quantizer=quantizer), {"model": model}, row)
        file = self.add(f"{row}.export", Export(kind="export", exporter=target.export), {"model": source}, row)
        inputs = {"reference": source, "model": model}
        if quantizer and "torch" not in quantizer.accepts:
            inputs["unquantized"] = file
            sources = {"model": file, **self._importance(quantizer, model)}
            file = self.add(f"{row}.quantize", Quantize(kind="quantize", quantizer=quantizer), sources, row)
        self.add(f"{row}.verify", Verify(kind="verify"), {**inputs, "file": file}, row)
        self.add(f"{row}.evaluate", Evaluate(kind="evaluate"), {"model": file, **self._reference(file)}, row)
        self._probed(row, file, row)
        beside = {} if row == "baseline" else self._beside(row, model, target, inputs.get("unquantized"))
        for device in target.devices:
            if _no_gpu(profile(device), target.export.kind):
                continue
            if profile(device).link is not None:
                benchmark = Benchmark(kind="benchmark", device=device)
                self.add(f"{row}.benchmark.{device}", benchmark, {"model": file, **beside}, row)
            elif estimator_for(device) is not None:
                self.add(f"{row}.estimate.{device}", Estimate(kind="estimate", device=device), {"model": file}, row)

    def _beside(self, row: str, model: str, target: Target, unquantized: str | None) -> dict[str, str]:
        """The files that a target is measured beside: the baseline's, and its own before it was quantized.

        The latter is written for this where a quantizer of models left none, and left out where it is the former.
        """
        beside = {"baseline": self._baseline_file()}
        runtime = runtime_for(target.export.kind)
        timed = runtime is not None and runtime.available() is None
        if target.quantize is None or not timed or not any(profile(device).link for device in target.devices):
            return beside
        export = Export(kind="export", exporter=target.export)
        parent = unquantized or self._once(f"{row}.unquantized", export, {"model": model}, f"{row}.unquantized")
        if self.plan.step(parent).key != self.plan.step(beside["baseline"]).key:
            beside["parent"] = parent
        return beside

    def _baseline_file(self) -> str:
        return "baseline.export"

    def _reference(self, model: str) -> dict[str, str]:
        """The model that answers are compared with, as a further input, where the task wants one."""
        wanted = self.pipeline.task.wants_reference and model != self.plan.baseline
        return {"reference": self.plan.baseline} if wanted else {}

    def _importance(self, quantizer: Quantizer, model: str) -> dict[str, str]:
        """The step that finds out which weights matter, once for all targets, as a further input; else nothing."""
        tokens = quantizer.calibration_tokens()
        if not tokens:
            return {}
        stage = Importance(kind="importance", tokens=tokens)
        return {"importance": self._once(f"{model}.importance", stage, {"model": model})}


def _check(stage: Stage, where: str) -> None:
    """Its own check, whose refusal says which of the pipeline's stages it is about."""
    try:
        stage.check()
    except IncompatiblePlanError as error:
        error.where = ".".join(filter(None, (where, error.where)))
        raise


def _not_at_hand(device: DeviceProfile, format: str) -> str | None:
    """What to know of a device before any work: why it will probably not be measured."""
    if device.link is None:
        known = estimator_for(device.name) is not None
        why = "its latency is estimated, not measured" if known else "its rows will be absent"
        way = device.by_bundle or ("docs/devices.md says how it is connected" if device.reachable_by else None)
        return f"{device.name} cannot be reached yet; {why}" + (f"; {way}" if way and not known else "")
    if reason := _no_gpu(device, format):
        return f"{device.name}: {reason}; its rows will be absent"
    if reason := link_of(device.link, device.connection).missing():
        return f"{device.name}: {reason}; unless it was measured before, its rows will be absent"
    return None


def _no_gpu(device: DeviceProfile, format: str) -> str | None:
    """Why a GPU of this machine cannot run files of that format; of other devices that shows when they are asked."""
    runtime = runtime_for(format)
    if device.family != "gpu" or device.link != "local" or runtime is None:
        return None
    return link_of(device.link, device.connection).unavailable(runtime.kind)


def _by_layout(target: Target, devices: list[DeviceProfile]) -> dict[str, list[DeviceProfile]]:
    """Row name -> devices: one row, or one for each integer layout where the quantizer makes a difference."""
    groups: dict[Layout, list[DeviceProfile]] = {}
    for device in devices:
        groups.setdefault(device.layout, []).append(device)
    quantizer = target.quantize
    if (
        quantizer is None
        or len({digest_of(quantizer.for_layout(layout).model_dump(mode="json")) for layout in groups}) < 2
    ):
        return {target.name: devices}
    return {f"{target.name}.{layout}": group for layout, group in groups.items()}


def _quantizers_for(export: str) -> Iterable[str]:
    found = discover("edgeforge.quantizers", Quantizer)
    return sorted(name for name, cls in found.items() if export in cls.writes)  # type: ignore[attr-defined]


def _exporters_for(task: Task) -> Iterable[str]:
    found = discover("edgeforge.exporters", Exporter)
    return sorted(name for name, cls in found.items() if task.answers_per in cls.answers_per)  # type: ignore[attr-defined]


def _data_digest(pipeline: Pipeline) -> str | None:
    data = getattr(pipeline.task, "data", None)
    return data.digest() if isinstance(data, DataSource) else None


def estimated_samples(plan: Plan, train_size: int) -> dict[str, int]:
    """Step name -> training samples it will process."""
    return {step.name: step.stage.work(train_size) for step in plan.steps if step.stage.work(train_size)}


def cached(plan: Plan, store: Store) -> dict[str, bool]:
    """Step name -> whether its artifact is sealed already (content is checked when it is opened)."""
    return {step.name: store.has(step.key) for step in plan.steps}
