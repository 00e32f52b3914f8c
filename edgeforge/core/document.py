"""YAML text -> plain values that remember their line, so that an error can say where to look.

Read as YAML 1.2's core schema: ``no`` and ``off`` are words, ``1e-3`` is a number. Anchors work; tags, merge keys,
repeated keys, infinities and numbers past 64 bits are refused, and so is what a text file does not hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from edgeforge.core.errors import ConfigurationError

Path = tuple[str | int, ...]
"""Keys and list positions from the root of a document to one of its values."""

MAX_BYTES = 256_000
MAX_VALUES = 100_000  # anchors can blow a small file up without bound
MAX_DEPTH = 40
_TAG = "tag:yaml.org,2002:"
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_UNPRINTABLE = re.compile("[^\\t\\n\\r -~\\x85\\xa0-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


class _Loader(yaml.SafeLoader):
    """Reads what the resolvers below say, and nothing of YAML 1.1's."""


_Loader.yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes every string that either version of YAML would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)


class Document:
    """The values of one YAML text. `name` stands for it in messages; `data` is made of dict, list and scalars."""

    def __init__(self, raw: bytes, name: str) -> None:
        self.name = name
        self._lines: dict[Path, int | None] = {}
        self._seen = 0
        self.data = self._value(_compose(raw, name), ())

    def __contains__(self, path: object) -> bool:
        return path in self._lines

    def place(self, path: Path) -> str:
        """``file:line a.b[0]`` for a value, or for one that is missing: then the line of what should hold it."""
        known = path
        while known not in self._lines:
            known = known[:-1]
        line = self._lines[known]
        source = f"{self.name}:{line}" if line is not None else "--set"
        return f"{source} {dotted(path)}".rstrip()

    def override(self, text: str) -> None:
        """Apply one ``a.b.0.c=value`` (or ``a.b[0].c=value``); the value is YAML. Raises ConfigurationError."""
        target, equals, value_text = text.partition("=")
        target = re.sub(r"\[([0-9]+)\]", r".\1", target)
        keys = target.split(".")
        if not equals or "" in keys:
            raise ConfigurationError(
                f"'{text}' is not of the form a.b=value", where="--set", remedy="for example --set stages.0.epochs=3"
            )
        path: Path = ()
        holder: Any = self.data
        for position, key in enumerate(keys):
            index = self._key(holder, key, path, text)
            path = (*path, index)
            if position == len(keys) - 1:
                holder[index] = Document(value_text.encode("utf-8", "replace"), f"--set {target}").data
                break
            inner = holder.get(key) if isinstance(holder, dict) else holder[index]
            if inner is None:
                inner = {}
            elif isinstance(inner, str):  # a bare word is short for {kind: word}
                inner = {"kind": inner}
            holder[index] = inner
            holder = inner
        for known in [known for known in self._lines if known[: len(path)] == path]:
            del self._lines[known]
        self._lines[path] = None

    def _key(self, holder: Any, key: str, path: Path, text: str) -> str | int:
        here = dotted(path) or "the file"
        if isinstance(holder, dict):
            return key
        if not isinstance(holder, list):
            raise ConfigurationError(f"{here} is a plain value and has no '{key}'", where=f"--set {text}")
        if not re.fullmatch("[0-9]{1,6}", key) or int(key) >= len(holder):
            raise ConfigurationError(f"{here} has {len(holder)} items, from 0, and no '{key}'", where=f"--set {text}")
        return int(key)

    # -- nodes to values

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self._seen += 1
        if self._seen > MAX_VALUES or len(path) > MAX_DEPTH:
            raise ConfigurationError("not usable YAML: it holds too many values, or too deep", where=self._at(node))
        self._lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise ConfigurationError(f"not plain YAML: the tag {node.tag}", where=self._at(node), remedy="remove it")
        if isinstance(node, yaml.MappingNode):
            return dict(self._items(node, path))
        return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]

    def _items(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        known = set()
        for key_node, value_node in node.value:
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise ConfigurationError(
                    "a key must be a word", where=self._at(key_node), remedy="put it in quotes if it is meant"
                )
            if key in known:
                raise ConfigurationError(f"'{key}' is given twice", where=self._at(key_node), remedy="keep one of them")
            known.add(key)
            yield key, self._value(value_node, (*path, key))
            self._lines[(*path, key)] = key_node.start_mark.line + 1

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        tag, text = node.tag.removeprefix(_TAG), str(node.value)
        try:
            if tag == "str" and not _UNPRINTABLE.search(text):
                return text
            if tag in ("bool", "null"):
                return _WORDS[text.lower()]
            if (
                tag == "int"
                and len(text) <= 30
                and abs(number := int(text, 0 if text[:2] in ("0x", "0o") else 10)) < 2**63
            ):
                return number
            if tag == "float" and math.isfinite(fraction := float(text)):
                return fraction
        except (KeyError, ValueError):
            pass  # an explicit tag on text that is not of its type
        problem = {
            "str": "a control character in a text",
            "int": "a whole number beyond 64 bits",
            "float": "a number that is not finite",
        }.get(tag, f"the tag {node.tag}")
        shown = ascii(text if len(text) <= 40 else f"{text[:40]}...")
        raise ConfigurationError(f"not usable: {problem}: {shown}", where=self._at(node))

    def _at(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


def dotted(path: Sequence[str | int]) -> str:
    """``("stages", 1, "ratio")`` -> ``stages[1].ratio``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def to_yaml(data: Any) -> str:
    """Plain values as YAML that a `Document` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _compose(raw: bytes, name: str) -> yaml.Node:
    if len(raw) > MAX_BYTES:
        raise ConfigurationError(f"larger than {MAX_BYTES // 1000} kB", where=name, remedy="is it a pipeline file?")
    try:
        text = raw.decode("utf-8-sig")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError("not UTF-8 text", where=f"{name}:{line}", remedy="save it as UTF-8") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigurationError(
            "not a text file: it holds control characters", where=f"{name}:{line}", remedy="is it a pipeline file?"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigurationError(*_syntax(error), where=where, remedy=_syntax_remedy(error)) from error
    except RecursionError as error:
        raise ConfigurationError("not usable YAML: nested too deep", where=name) from error
    except (ValueError, OverflowError) as error:  # such as "\UFFFFFFFF", past the end of Unicode
        raise ConfigurationError(f"not valid YAML: {error}", where=name) from error
    return node if node is not None else yaml.ScalarNode(_TAG + "null", "", *_start(name))


def _syntax(error: yaml.MarkedYAMLError) -> tuple[str]:
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return (f"not valid YAML: {ascii(said)[1:-1]}",)


def _syntax_remedy(error: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in (error.problem or ""):
        return "indent with spaces, not tabs"
    return "look at this line and the one above it"


def _start(name: str) -> tuple[yaml.Mark, yaml.Mark]:
    mark = yaml.Mark(name, 0, 0, 0, None, 0)
    return mark, mark
