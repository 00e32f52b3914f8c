"""The teacher: sums and products digit by digit, as at school, each step written down (a trace).

Steps go from the last digit to the first and carry explicitly, as in Nye et al., "Show Your Work: Scratchpads for
Intermediate Computation" (2021, arXiv:2112.00114) and Lee et al., "Teaching Arithmetic to Small Transformers" (2023,
arXiv:2307.03381).
"""

from __future__ import annotations


def teach(prompt: str) -> tuple[str, str]:
    """``58+67`` -> the trace ``8+7+0=15`` ``5+6+1=12`` in two lines, and the answer ``125``."""
    operation = "+" if "+" in prompt else "*"
    first, second = prompt.split(operation)
    lines, answer = (_added if operation == "+" else _multiplied)(first, second)
    return "\n".join(lines), answer


def _added(first: str, second: str) -> tuple[list[str], str]:
    """One line for each column: both digits and the carry, and the two digits of their sum."""
    width = max(len(first), len(second))
    lines, digits, carry = [], "", 0
    for a, b in zip(reversed(first.zfill(width)), reversed(second.zfill(width)), strict=True):
        total = int(a) + int(b) + carry
        lines.append(f"{a}+{b}+{carry}={total:02d}")
        digits, carry = f"{total % 10}{digits}", total // 10
    return lines, str(int(f"{carry}{digits}"))


def _multiplied(first: str, second: str) -> tuple[list[str], str]:
    """For each digit of the second number: its product with every digit of the first, and what these make together.

    From the second such product on, the columns of the sum with those before.
    """
    lines: list[str] = []
    answer = ""
    for place, b in enumerate(reversed(second)):
        digits, carry = "0" * place, 0
        for a in reversed(first):
            product = int(a) * int(b) + carry
            lines.append(f"{a}*{b}+{carry}={product:02d}")
            digits, carry = f"{product % 10}{digits}", product // 10
        partial = str(int(f"{carry}{digits}"))
        if len(second) > 1:
            lines.append(partial)
        steps, answer = _added(answer, partial) if place else ([], partial)
        lines += steps
    return lines, answer
