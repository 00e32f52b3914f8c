"""The `spec` of synthetic data: what examples look like and must hold to, for the teacher who writes them and for the
student who is asked afterwards.

```yaml
task: Messages that customers of a shop write, and the team that answers each.
input: {type: string, minLength: 20}
output: {type: object, properties: {team: {type: string}}, required: [team], additionalProperties: false}
labels: {at: output.team, allowed: [billing, shipping]}
constraints:
  - {name: polite, say: It says please., at: input, check: {kind: regex, pattern: ".*[Pp]lease.*"}}
examples:
  - {input: "Please tell me where my parcel is.", output: {team: shipping}}
axes: {tone: [angry, friendly], product: [phone, book, lamp]}
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from edgeforge.checkers import Checker
from edgeforge.core import user_code
from edgeforge.core.document import Document as YamlDocument
from edgeforge.core.errors import ConfigurationError
from edgeforge.core.kinds import OneOf
from edgeforge.core.spec import Spec, canonical_json
from edgeforge.data import Document, Message
from edgeforge.data._json_schema import JsonSchema, read_json

FORM, INPUT, OUTPUT, LABEL = "form", "input", "output", "label"
"""What every example is judged by, beside the spec's own constraints."""
NOT_READ = "not read"

Schema = Mapping[str, Any]
Judged = Mapping[str, str | None]
"""For each name: why it does not hold; None where it does."""


class Example(Spec):
    """A question of the task and its answer, as JSON values."""

    input: Any = Field(description="What is given.")
    output: Any = Field(description="What is answered.")


class Labels(Spec):
    """The classes of a task that has some."""

    at: str = Field(description="Where an example's label stands, such as `output` or `output.team`.")
    allowed: tuple[str, ...] = Field(min_length=2, description="The labels.")


class Constraint(Spec):
    """Something that must hold beyond the schemas."""

    name: str = Field(min_length=1, description="What reports call it.")
    say: str = Field(default="", description="The same in words, for the teacher.")
    at: str = Field(description="What is judged: `input`, `output`, or a place inside, such as `output.total`.")
    expected: str | None = Field(default=None, description="The place of what it is compared with; absent: nothing.")
    check: Annotated[Checker, OneOf("edgeforge.checkers")] = Field(description="How it is judged.")


class DataSpec(Spec):
    """A task by its description, schemas, constraints and examples."""

    task: str = Field(min_length=1, description="What examples are to be written, in words.")
    instruction: str = Field(default="", description="What stands before the input when the student is asked.")
    input: Schema = Field(description="JSON schema of what is given.")
    output: Schema = Field(description="JSON schema of what is answered.")
    labels: Labels | None = Field(
        default=None, description="The classes, where it has some; each is asked for equally."
    )
    constraints: tuple[Constraint, ...] = Field(default=(), description="What else must hold.")
    examples: tuple[Example, ...] = Field(
        min_length=1, description="Seed examples. They hold to the spec, which shows that something can."
    )
    axes: Mapping[str, tuple[str, ...]] = Field(
        default={}, description="What examples are to differ in: names and their values, all asked for equally."
    )
    shots: int = Field(default=3, ge=0, description="Most seed examples in a prompt.")

    @field_validator("axes")
    @classmethod
    def _axes_have_values(cls, value: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        for name, values in value.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"the axis '{name}' needs values, each once")
        return value

    @field_validator("constraints")
    @classmethod
    def _names_differ(cls, value: tuple[Constraint, ...]) -> tuple[Constraint, ...]:
        names = [FORM, INPUT, OUTPUT, LABEL, *(constraint.name for constraint in value)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name '{name}' is taken; each constraint needs its own")
        return value

    @cached_property
    def _schemas(self) -> tuple[JsonSchema, JsonSchema]:
        return JsonSchema(self.input, INPUT), JsonSchema(self.output, OUTPUT)

    # -- what was written, and what a student answers

    def parse(self, text: str) -> Example | None:
        """The example that a teacher wrote; None where the text is no JSON object of input and output alone."""
        try:
            value = read_json(text)
        except ValueError:
            return None
        return Example(**value) if isinstance(value, dict) and value.keys() == {INPUT, OUTPUT} else None

    def answered(self, example: Example, text: str) -> Example | None:
        """The same question with a student's answer; None where the text is not of the output's kind at all."""
        if self.output.get("type") == "string":
            return Example(input=example.input, output=text.strip())
        try:
            return Example(input=example.input, output=read_json(text))
        except ValueError:
            return None

    def judge(self, example: Example | None) -> Judged:
        """Everything that must hold, by name. None, what could not be read, holds to nothing.

        Raises DataError where a user's function fails.
        """
        if example is None:
            return {FORM: "no JSON of input and output", **dict.fromkeys(self._names()[1:], NOT_READ)}
        schemas = self._schemas
        found: dict[str, str | None] = {
            FORM: None,
            INPUT: schemas[0].problem(example.input),
            OUTPUT: schemas[1].problem(example.output),
        }
        if self.labels is not None:
            found[LABEL] = None if self.label(example) in self.labels.allowed else "none of the labels"
        for constraint in self.constraints:
            found[constraint.name] = self._judge(constraint, example)
        return found

    def label(self, example: Example) -> str | None:
        """The example's label; None where it has none."""
        return None if self.labels is None else _at(example, self.labels.at)

    def chat(self, example: Example) -> Document:
        """The example as a student learns it: asked by the user, answered by the assistant."""
        question = f"{self.instruction}\n\n{as_text(example.input)}" if self.instruction else as_text(example.input)
        return Document(messages=(Message("user", question), Message("assistant", as_text(example.output))))

    def _names(self) -> list[str]:
        return [FORM, INPUT, OUTPUT, *([LABEL] if self.labels else []), *(one.name for one in self.constraints)]

    def _judge(self, constraint: Constraint, example: Example) -> str | None:
        value = _at(example, constraint.at)
        expected = None if constraint.expected is None else _at(example, constraint.expected)
        if value is None or (constraint.expected is not None and expected is None):
            return "missing"
        verdict = constraint.check.verify(value, expected, as_text(example.input))
        return None if verdict.passed else verdict.reason


def read(path: Path) -> DataSpec:
    """The spec in a YAML file, checked against its own examples. Raises ConfigurationError with the line."""
    try:
        source = YamlDocument(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}", where=str(path)) from error
    try:
        spec = DataSpec.model_validate(source.data, context={user_code.FOLDER: str(path.absolute().parent)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place: tuple[str | int, ...] = ()
        for part in first["loc"]:
            place = (*place, part) if (*place, part) in source else place
        more = f"'{first['loc'][-1]}' must be given" if first["type"] == "missing" else first["msg"]
        raise ConfigurationError(more.removeprefix("Value error, "), where=source.place(place)) from error
    for number, example in enumerate(spec.examples):
        broken = {name: why for name, why in spec.judge(example).items() if why is not None}
        if broken:
            raise ConfigurationError(
                "this seed example does not hold to the spec: "
                + "; ".join(f"{name} ({why})" for name, why in broken.items()),
                where=source.place(("examples", number)),
                remedy="correct the example, or what the spec asks",
            )
    return spec


def pass_rates(judged: Sequence[Judged]) -> dict[str, dict[str, float]]:
    """For each name: how many passed, of how many, and their share. All must be of one spec."""
    names = list(judged[0]) if judged else []
    passed = {name: sum(one[name] is None for one in judged) for name in names}
    return {name: {"passed": count, "of": len(judged), "rate": count / len(judged)} for name, count in passed.items()}


def as_text(value: Any) -> str:
    """A text as it is; anything else as JSON."""
    return value if isinstance(value, str) else canonical_json(value)


def _at(example: Example, place: str) -> str | None:
    """What stands at ``output.team``, as text; None where there is nothing."""
    value: Any = {INPUT: example.input, OUTPUT: example.output}
    for part in place.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return None if value is None else as_text(value)
