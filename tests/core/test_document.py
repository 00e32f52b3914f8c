"""YAML text to values with lines: what is read, what is refused, and that nothing else ever escapes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeforge.core.document import MAX_BYTES, Document, dotted, to_yaml
from edgeforge.core.errors import ConfigurationError

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.sampled_from(
        ["no", "off", "1e-3", "1.5", "0x10", "010", "~", "null", "1:30", "2024-01-01", "- a", "a: b", "=", "<<"]
    ),
)
keys = st.text("abc_", min_size=1, max_size=4)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5.E+2", 500.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("9223372036854775807", 2**63 - 1),
        ("no", "no"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("!!str 12", "12"),
        ("!!float 12", 12.0),
        ("'1'", "1"),
        ('"tab\\there"', "tab\there"),
        ("1_000", "1_000"),
    ],
)
def test_scalars_are_yaml_1_2(text: str, value: object) -> None:
    read = Document(f"a: {text}".encode(), "x").data["a"]
    assert read == value
    assert type(read) is type(value)


@given(trees)
def test_what_is_written_reads_back_equal(tree: object) -> None:
    read = Document(to_yaml({"top": tree}).encode(), "x").data
    assert repr(read) == repr({"top": tree})  # repr tells 1 from 1.0 and from True


def test_every_value_knows_its_line() -> None:
    text = b"# comment\na: 1\nb:\n  - c: 2\n    d: 3\n  - [4,\n     5]\n"
    document = Document(text, "f.yaml")
    places = {
        (): "f.yaml:2",
        ("a",): "f.yaml:2 a",
        ("b", 0, "d"): "f.yaml:5 b[0].d",
        ("b", 1, 1): "f.yaml:7 b[1][1]",
        ("b", 0, "missing", "deep"): "f.yaml:4 b[0].missing.deep",
    }
    assert {path: document.place(path) for path in places} == places


@pytest.mark.parametrize(
    ("raw", "line", "words"),
    [
        (b"a: 1\nb: 2\na: 3\n", 3, "'a' is given twice"),
        (b"a:\n\tb: 1\n", 2, "tabs"),
        (b"a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        (b"a: 1\n\xff\xfe\n", 2, "UTF-8"),
        (b"a: 1\nb: \x07\n", 2, "control characters"),
        (b'a: 1\nb: "\\0"\n', 2, "control character"),
        (b'a: "\\ud800"\n', 1, "control character"),
        (b"a: 1\nb: .inf\n", 2, "not finite"),
        (b"a: .nan\n", 1, "not finite"),
        (b"a: 1e999\n", 1, "not finite"),
        (b"a: 9223372036854775808\n", 1, "64 bits"),
        (b"a: " + b"9" * 10_000, 1, "64 bits"),
        (b"a: 1\nb: !!python/object:os.system x\n", 2, "tag"),
        (b"a: !!python/tuple [1]\n", 1, "tag"),
        (b"a: !!int x\n", 1, "not usable"),
        (b"a: !!binary aGk=\n", 1, "tag"),
        (b"a: *nowhere\n", 1, "undefined alias"),
        (b"1: 2\n", 1, "a key must be a word"),
        (b"[a]: 2\n", 1, "a key must be a word"),
        (b"a: 1\n---\nb: 2\n", 2, "single document"),
        (b"a: " + b"[" * 5_000 + b"]" * 5_000, None, "deep"),
        (b"a: " + b"[" * 60 + b"]" * 60, 1, "deep"),
        (b"a: &a [*a]\n", 1, "deep"),
        (b"a: " + b"x" * MAX_BYTES, None, "larger than"),
    ],
)
def test_refused_with_the_line(raw: bytes, line: int | None, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        Document(raw, "f.yaml")
    assert caught.value.where == (f"f.yaml:{line}" if line else "f.yaml")


def test_a_billion_laughs_are_cut_short() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigurationError, match="too many"):
        Document("\n".join(lines).encode(), "x")


def test_anchors_and_byte_order_marks_and_carriage_returns_are_read() -> None:
    assert Document(b"\xef\xbb\xbfa: &q {b: 1}\r\nc: *q\r\n", "x").data == {"a": {"b": 1}, "c": {"b": 1}}


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        data = Document(raw, "x").data
    except ConfigurationError as error:
        str(error).encode()
        assert "Traceback" not in str(error)
    else:
        assert _plain(data)


@settings(max_examples=300)
@given(st.text(alphabet="ab:,-[]{}&*!|>'\"#%@`?~ \n\t0.e", max_size=60))
def test_any_punctuation_is_read_or_refused(text: str) -> None:
    try:
        assert _plain(Document(text.encode(), "x").data)
    except ConfigurationError as error:
        assert error.where is not None
        assert error.where.startswith("x")


def _plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


class TestOverride:
    def changed(self, *overrides: str) -> object:
        document = Document(
            b"stages:\n- {kind: train, epochs: 1}\n- distill\nseed: 3\nempty:\nkeep: [1, 2]\n", "f.yaml"
        )
        for override in overrides:
            document.override(override)
        return document.data

    @pytest.mark.parametrize("text", ["stages.0.epochs=9", "stages[0].epochs=9"])
    def test_reaches_into_lists(self, text: str) -> None:
        assert self.changed(text)["stages"][0] == {"kind": "train", "epochs": 9}

    @pytest.mark.parametrize(
        ("text", "key", "value"),
        [
            ("seed=7", "seed", 7),
            ("new.inner.x=1e-3", "new", {"inner": {"x": 0.001}}),
            ("empty.x=1", "empty", {"x": 1}),
            ("seed=", "seed", None),
            ("seed=[1, {a: b}]", "seed", [1, {"a": "b"}]),
            ("seed=a=b", "seed", "a=b"),
            ("keep.1=5", "keep", [1, 5]),
            ("seed=no", "seed", "no"),
        ],
    )
    def test_value_is_yaml(self, text: str, key: str, value: object) -> None:
        assert self.changed(text)[key] == value

    def test_a_bare_word_is_a_kind(self) -> None:
        assert self.changed("stages.1.epochs=2")["stages"][1] == {"kind": "distill", "epochs": 2}

    def test_overrides_build_on_each_other(self) -> None:
        assert self.changed("a.b=1", "a.c=2")["a"] == {"b": 1, "c": 2}

    @pytest.mark.parametrize(
        "text",
        [
            "seed", "=1", ".=1", "a..b=1", "", "stages.2.x=1", "stages.-1=1", "stages.x=1", "seed.x=1", "keep.0.x=1",
            "keep.99999999999999999999=1", "seed=[", "seed=.inf", "seed=\x00", "stages.\u00b2=1",
            "seed=!!python/name:os x",
        ],
    )  # fmt: skip
    def test_refused(self, text: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            self.changed(text)
        assert str(caught.value.where).startswith("--set")

    def test_an_error_in_an_override_names_it_instead_of_a_line(self) -> None:
        document = Document(b"a: {b: 1}\n", "f.yaml")
        document.override("a.b=2")
        assert document.place(("a", "b")) == "--set a.b"
        assert document.place(("a",)) == "f.yaml:1 a"


def test_dotted() -> None:
    assert dotted(("stages", 1, "ratio")) == "stages[1].ratio"
