"""The teacher: sums and products digit by digit, as at school, each step written down (a trace).

Steps go from the last digit to the first and carry explicitly, as in Nye et al., "Show Your Work: Scratchpads for
Intermediate Computation" (2021, arXiv:2112.00114) and Lee et al., "Teaching Arithmetic to Small Transformers" (2023,
arXiv:2307.03381). Before the steps each digit is given a name, the index hints of Zhou et al., "What Algorithms can
Transformers Learn?" (2023, arXiv:2310.16028): to find the right digit is harder for a small student than to add two.
"""

from __future__ import annotations

from string import ascii_lowercase

FIRST_NAMES = 9
"""Names begin with one of so many letters, so that later letters are learned from short numbers, too."""


def teach(prompt: str) -> tuple[str, str]:
    """``58+67`` -> the trace ``i5j8+i6j7`` ``j8+7+0=15`` ``i5+6+1=12`` in three lines, and the answer ``125``."""
    operation = "+" if "+" in prompt else "*"
    first, second = prompt.split(operation)
    begin = sum(map(int, first + second)) % FIRST_NAMES
    if operation == "+":
        first, second = _as_wide(first, second)
    named = [_named(number, begin) for number in (first, second)]
    lines, answer = (_added if operation == "+" else _multiplied)(*named)
    hints = operation.join("".join(number) for number in named)
    return "\n".join([hints, *lines]), answer


def _as_wide(first: str, second: str) -> tuple[str, str]:
    """Both with as many digits."""
    width = max(len(first), len(second))
    return first.zfill(width), second.zfill(width)


def _named(number: str, begin: int) -> list[str]:
    """``58`` -> ``i5``, ``j8`` where names begin with the ninth letter."""
    return [f"{name}{digit}" for name, digit in zip(ascii_lowercase[begin:], number, strict=False)]


def _added(first: list[str], second: list[str]) -> tuple[list[str], str]:
    """One line for each column: both digits and the carry, and the two digits of their sum."""
    lines, digits, carry = [], "", 0
    for a, b in zip(reversed(first), reversed(second), strict=True):
        total = int(a[-1]) + int(b[-1]) + carry
        lines.append(f"{a}+{b[-1]}+{carry}={total:02d}")
        digits, carry = f"{total % 10}{digits}", total // 10
    return lines, str(int(f"{carry}{digits}"))


def _multiplied(first: list[str], second: list[str]) -> tuple[list[str], str]:
    """For each digit of the second number: its product with every digit of the first, and what these make together.

    From the second such product on, the columns of the sum with those before.
    """
    lines: list[str] = []
    answer = ""
    for place, b in enumerate(reversed(second)):
        digits, carry = "0" * place, 0
        for a in reversed(first):
            product = int(a[-1]) * int(b[-1]) + carry
            lines.append(f"{a}*{b}+{carry}={product:02d}")
            digits, carry = f"{product % 10}{digits}", product // 10
        partial = str(int(f"{carry}{digits}"))
        if len(second) > 1:
            lines.append(partial)
        steps, answer = _added(*map(list, _as_wide(answer, partial))) if place else ([], partial)
        lines += steps
    return lines, answer
