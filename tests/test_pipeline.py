"""Pipeline files: what is accepted, what is refused and with which words, and that nothing else ever escapes."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeforge.catalog import axes, entries
from edgeforge.core.document import to_yaml
from edgeforge.core.errors import ConfigurationError, IncompatiblePlanError
from edgeforge.pipeline import Pipeline, dump, load, parse

SHIPPED = sorted((Path(__file__).parent.parent / "pipelines").glob("*.yaml"))

TEXT = """\
name: example
task:
  kind: image_classification
  data: sklearn_digits
model: {kind: config, architecture: resnet}
stages:
  - {kind: train, epochs: 1, learning_rate: 1e-3}
  - distill
  - kind: prune
    structure: {kind: channels, ratio: 0.3}
    recover: {epochs: 1}
targets:
  - {name: phone, quantize: int8_static, export: onnx}
budgets: {accuracy_drop: 0.01}
"""


def refused(text: str, *overrides: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        parse(text.encode(), "p.yaml", overrides)
    return caught.value


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_pipelines_load_and_round_trip(path: Path) -> None:
    pipeline = load(path)
    assert parse(dump(pipeline).encode(), "dump") == pipeline


def test_shorthand_means_the_same_as_the_long_form() -> None:
    long = changed("quantize: int8_static, export: onnx", "quantize: {kind: int8_static}, export: {kind: onnx}")
    long = long.replace("- distill", "- {kind: distill}").replace(
        "data: sklearn_digits", "data: {kind: sklearn_digits}"
    )
    assert parse(long.encode(), "long") == parse(TEXT.encode(), "short")


def test_yaml_1_1_traps_are_not_there() -> None:
    pipeline = parse(TEXT.replace("name: phone", "name: no").encode(), "p.yaml")
    assert pipeline.targets[0].name == "no"
    assert pipeline.stages[0].learning_rate == 0.001  # type: ignore[attr-defined]
    flipped = parse(TEXT.encode(), "p.yaml", ["task.augment.flip=on"])
    assert flipped.task.augment.flip is True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("old", "new", "where", "words"),
    [
        ("budgets:", "budgts:", "p.yaml:14 budgts", "unknown key 'budgts'; perhaps you meant 'budgets'?"),
        ("epochs: 1,", "epoch: 1,", "p.yaml:7 stages[0].epoch", "perhaps you meant 'epochs'?"),
        ("ratio: 0.3", "ratoi: 0.3", "p.yaml:10 stages[2].structure.ratoi", "perhaps you meant 'ratio'?"),
        ("- distill", "- distil", "p.yaml:8 stages[1]", "unknown kind 'distil'; perhaps you meant 'distill'?"),
        ("kind: prune", "kind: prun", "p.yaml:9 stages[2].kind", "perhaps you meant 'prune'?"),
        ("kind: channels", "kind: chanels", "p.yaml:10 stages[2].structure.kind", "perhaps you meant 'channels'?"),
        ("{kind: train, ", "{", "p.yaml:7 stages[0]", "'kind' is missing. Known:"),
        ("kind: train", "kind: [train]", "p.yaml:7 stages[0].kind", "unknown kind"),
        ("kind: train", "kind: ", "p.yaml:7 stages[0].kind", "unknown kind"),
        ("epochs: 1,", "epochs: many,", "p.yaml:7 stages[0].epochs", "must be a valid integer"),
        ("epochs: 1,", "epochs: 0,", "p.yaml:7 stages[0].epochs", "must be greater than or equal to 1 (it is 0)"),
        ("epochs: 1,", "epochs: 1.5,", "p.yaml:7 stages[0].epochs", "must be a valid integer"),
        ("epochs: 1,", "epochs: 1, steps: 2,", "p.yaml:7 stages[0]", "give 'epochs' or 'steps', not both"),
        ("learning_rate: 1e-3", "learning_rate: 'nan'", "p.yaml:7 stages[0].learning_rate", "must be a finite number"),
        ("recover: {epochs: 1}", "recover: {epochs: x}", "p.yaml:11 stages[2].recover.epochs", "integer"),
        ("recover: {epochs: 1}", "recover: 3", "p.yaml:11 stages[2].recover", "must hold keys and values (it is 3)"),
        (", export: onnx", "", "p.yaml:13 targets[0].export", "'export' must be given"),
        ("export: onnx", "export: onxx", "p.yaml:13 targets[0].export", "perhaps you meant 'onnx'?"),
        ("name: phone, ", "", "p.yaml:13 targets[0].name", "'name' must be given"),
        ("name: phone", "name: 3", "p.yaml:13 targets[0].name", "must be a valid string; put it in quotes (it is 3)"),
        ("name: phone", "name: a/b", "p.yaml:13 targets[0].name", "letters, digits"),
        ("name: phone", "name: baseline", "p.yaml:12 targets", "the name 'baseline' is taken"),
        ("name: example", "name: " + "x" * 65, "p.yaml:1 name", "64 at most"),
        ("- distill", "- export", "p.yaml:8 stages[1]", "'export' is no stage of the chain"),
        ("- distill", "- verify", "p.yaml:8 stages[1]", "'verify' is no stage of the chain"),
        ("- distill", "- {kind: distill, name: model}", "p.yaml:6 stages", "the name 'model' is taken"),
        ("- distill", "- {kind: distill, name: a b}", "p.yaml:8 stages[1]", "letters, digits"),
        ("- distill", "- 7", "p.yaml:8 stages[1]", "(it is 7)"),
        ("- distill", "-", "p.yaml:8 stages[1]", "(it is None)"),
        ("architecture: resnet", "architecture: resnt", "p.yaml:5 model.architecture", "perhaps you meant 'resnet'?"),
        ("architecture: resnet", "architecture: resnet, depths: x", "p.yaml:5 model.depths", "must be"),
        ("architecture: resnet", "architecture: resnet, deepths: 1", "p.yaml:5 model.deepths", "'depths'?"),
        ("accuracy_drop: 0.01", "accuracy_drop: -1", "p.yaml:14 budgets.accuracy_drop", "greater than or equal to 0"),
        (
            "budgets: {accuracy_drop: 0.01}",
            "budgets: [1]",
            "p.yaml:14 budgets",
            "must hold keys and values (it is [1])",
        ),
        ("budgets: {accuracy_drop: 0.01}", "seed: {}", "p.yaml:14 seed", "must be a valid integer (it is {})"),
        (
            "- distill",
            "- {kind: distill, teacher: {kind: model, model: {kind: pretrained, pth: x}}}",
            "p.yaml:8 stages[1].teacher.model.pth",
            "perhaps you meant 'path'?",
        ),
        (
            "- distill",
            "- {kind: distill, teacher: {kind: model, stag: x}}",
            "p.yaml:8 stages[1].teacher.stag",
            "'stage'?",
        ),
    ],
)
def test_mistakes_name_line_field_and_remedy(old: str, new: str, where: str, words: str) -> None:
    error = refused(changed(old, new))
    assert (error.where, words in error.what) == (where, True), error
    assert error.remedy is not None
    assert error.remedy.startswith("see `edgeforge explain ")


def test_the_remedy_names_a_word_that_explain_knows() -> None:
    assert refused(changed("ratio: 0.3", "ratio: x")).remedy == "see `edgeforge explain channels`"
    assert refused(changed("- distill", "- distil")).remedy == "see `edgeforge explain stages`"
    assert refused(changed("epochs: 1,", "epochs: x,")).remedy == "see `edgeforge explain train`"
    assert refused(changed("budgets:", "budgts:")).remedy == "see `edgeforge explain pipeline`"


def test_further_problems_are_counted() -> None:
    assert refused(changed("epochs: 1, learning_rate: 1e-3", "epochs: x, learning_rate: y")).what.endswith(
        "(and 1 more)"
    )


def test_two_targets_of_one_name_are_refused_also_where_only_the_case_differs() -> None:
    more = changed("budgets:", "  - {name: Phone, export: onnx}\nbudgets:")
    assert "the name 'Phone' is taken" in refused(more).what


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a list\n", "just words\n", "3\n", "null\n"])
def test_a_file_without_keys_is_refused(text: str) -> None:
    assert "holds keys and values" in refused(text).what


def test_overrides_are_checked_like_the_file() -> None:
    pipeline = parse(TEXT.encode(), "p.yaml", ["stages.0.epochs=3", "seed=5", "targets[0].quantize.samples=64"])
    assert (pipeline.seed, pipeline.stages[0].epochs) == (5, 3)  # type: ignore[attr-defined]
    assert refused(TEXT, "stages.0.epochs=x").where == "--set stages[0].epochs"
    assert refused(TEXT, "sed=1").where == "--set sed"


@pytest.mark.parametrize("name", ["absent.yaml", ".", "null\0byte"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the pipeline file"):
        load(tmp_path / name)


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as stream:
        stream.truncate(10**10)
    with pytest.raises(ConfigurationError, match="larger than"):
        load(path)


# -- fuzzing: every outcome but a Pipeline or a ConfigurationError is a defect

WORDS = sorted({entry.word for axis in axes() for entry in entries(axis.name)})
FIELDS = sorted({name for axis in axes() for entry in entries(axis.name) for name in entry.spec.model_fields})
fuzz = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(WORDS),
    st.sampled_from(["no", "1e-3", "../x", "a.b", "-1", "0", "nan", "inf", "9" * 400, "\0"]),
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["kind", *FIELDS]) | st.text(max_size=4), inner, max_size=5)
        | st.tuples(st.sampled_from(WORDS), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)).map(
            lambda pair: {"kind": pair[0], **pair[1]}
        )
    ),
    max_leaves=12,
)


def outcome(raw: bytes, *overrides: str) -> Pipeline | None:
    try:
        return parse(raw, "fuzz.yaml", overrides)
    except (ConfigurationError, IncompatiblePlanError) as error:
        assert error.where, error
        str(error).encode()
        return None


@fuzz
@given(st.binary(max_size=300))
def test_fuzz_bytes(raw: bytes) -> None:
    outcome(raw)


@fuzz
@given(
    st.integers(0, len(TEXT)),
    st.integers(0, 20),
    st.binary(max_size=10) | st.sampled_from([b"\t", b": ", b"- ", b"{", b"&a", b"*a", b"<<: "]),
)
def test_fuzz_damaged_text(start: int, removed: int, added: bytes) -> None:
    raw = TEXT.encode()
    outcome(raw[:start] + added + raw[start + removed :])


@fuzz
@given(st.dictionaries(st.sampled_from(sorted(Pipeline.model_fields)), trees))
def test_fuzz_random_trees(tree: dict[str, Any]) -> None:
    outcome(to_yaml(tree).encode("utf-8", "surrogatepass"))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inside for place in [(*path, key), *_places(item, (*path, key))]]


@functools.cache
def valid() -> dict[str, Any]:
    return parse(TEXT.encode(), "p.yaml").model_dump(mode="json")


places = st.deferred(lambda: st.sampled_from(_places(valid())))


def _put(data: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    data = copy.deepcopy(data)
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return data


@fuzz
@given(places, trees)
def test_fuzz_one_value_replaced(path: tuple[Any, ...], value: Any) -> None:
    raw = to_yaml(_put(valid(), path, value)).encode("utf-8", "surrogatepass")
    found = outcome(raw)
    if found is not None:
        assert parse(dump(found).encode(), "dump") == found


@fuzz
@given(places, trees)
def test_fuzz_overrides(path: tuple[Any, ...], value: Any) -> None:
    target = ".".join(map(str, path))
    found = outcome(TEXT.encode(), f"{target}={to_yaml(value).removesuffix('...')}")
    if found is not None:
        assert parse(dump(found).encode(), "dump") == found


@fuzz
@given(st.text(max_size=30))
def test_fuzz_override_texts(text: str) -> None:
    outcome(TEXT.encode(), text)
