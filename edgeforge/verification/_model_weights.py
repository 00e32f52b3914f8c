"""The numbers in a file against those of the torch model, one by one: rows that no sample reads count too.

Where a number stands in a graph is not asked here: what the file computes says that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from edgeforge.verification import Check
from edgeforge.verification._expected_weights import Expected, Stored, Values

NAME = "weights are the model's"
PROBES = 64
"""Numbers looked at before all of a candidate are: layers often have the same shape."""


def weights_check(expected: Expected, found: Mapping[str, np.ndarray], *, all_known: bool = True) -> Check:
    """Every number of the model is among the `found` constants, and, where `all_known`, every constant is the model's.

    `found`: floating-point constants of more than one number by name, quantized ones multiplied out. Any shape, and the
    transpose of two axes, will do; a bias or table of zeros or ones may be left out.
    """
    problem = next(_problems(expected, found, all_known=all_known), None)
    return Check(NAME, problem is None, problem or "")


def _problems(expected: Expected, found: Mapping[str, np.ndarray], *, all_known: bool) -> Iterator[str]:
    by_size: dict[int, list[str]] = {}
    for name, array in found.items():
        by_size.setdefault(array.size, []).append(name)
    used: set[str] = set()
    wanted = [*((layer.weight,) for layer in expected.layers), *((layer.bias,) for layer in expected.layers)]
    for forms in [*wanted, *(tuple(form.values for form in _forms(stored)) for stored in expected.others)]:
        names = [name for form in forms for name in by_size.get(form.numbers.size, ()) if _same(form, found[name])]
        used.update(names)
        if not names and not forms[0].neutral:
            yield _closest(forms[0], [found[name] for name in by_size.get(forms[0].numbers.size, ())])
    for name, array in found.items():
        if all_known and name not in used and not _neutral(array):
            yield f"{array.size} numbers in the file ({name}) are no weight of the model"


def _forms(stored: Iterable[Stored]) -> Iterator[Stored]:
    yield from stored


def _orders(wanted: Values, array: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of `array` as they would stand in the model."""
    if array.size == wanted.numbers.size:
        yield array.reshape(-1)
        shape = wanted.numbers.shape
        if len(shape) == 2 and 1 not in shape and array.shape == shape[::-1]:
            yield np.ascontiguousarray(array.T).reshape(-1)


def _same(wanted: Values, array: np.ndarray) -> bool:
    places = np.linspace(0, array.size - 1, num=min(PROBES, array.size), dtype=np.int64)
    probe = Values(wanted.name, wanted.numbers.reshape(-1)[places], wanted.slack.reshape(-1)[places])
    return any(not probe.wrong(flat[places]).any() and not wanted.wrong(flat).any() for flat in _orders(wanted, array))


def _closest(wanted: Values, candidates: list[np.ndarray]) -> str:
    wrong = [int(wanted.wrong(flat).sum()) for array in candidates for flat in _orders(wanted, array)]
    if not wrong:
        return f"{wanted.name} is missing"
    return f"{wanted.name}: {min(wrong)} of {wanted.numbers.size} numbers differ, or it is missing"


def _neutral(array: np.ndarray) -> bool:
    return bool((array == 0).all() or (array == 1).all())
