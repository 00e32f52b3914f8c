"""Tokens and money: what was spent, what requests on their way may cost at most, and whether another one fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from edgeforge.core.spec import Spec
from edgeforge.teachers._writer import Chat

TOKENS_AROUND_A_MESSAGE = 32
"""More than any chat template is known to put around one."""


class Prices(Spec):
    """What the server asks for a million tokens, in any currency."""

    input: float = Field(ge=0, description="For a million tokens that it reads.")
    output: float = Field(ge=0, description="For a million tokens that it writes.")


def most_input_tokens(chat: Chat) -> int:
    """More tokens than any tokenizer makes of these messages: byte-level ones make at most one of each byte."""
    texts = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in chat)
    return texts + TOKENS_AROUND_A_MESSAGE * (len(chat) + 1)


class Account:
    """Costs in the currency of `prices`; with none, only tokens are counted."""

    def __init__(self, prices: Prices | None, max_cost: float | None, max_tokens: int) -> None:
        self._prices, self._max_cost, self._max_tokens = prices, max_cost, max_tokens
        self.cost = 0.0
        self.input_tokens = self.output_tokens = 0
        self.assumed = 0
        """Answers whose tokens the server did not say: counted as if they had been the most that is possible."""
        self._reserved = 0.0

    def reserve(self, chat: Chat) -> float | None:
        """Set aside what a request may cost at most; None where it does not fit under the cap."""
        most = self._price(most_input_tokens(chat), self._max_tokens)
        if self._max_cost is not None and self.cost + self._reserved + most > self._max_cost:
            return None
        self._reserved += most
        return most

    def release(self, reserved: float) -> None:
        """Give back what was set aside for a request that has ended."""
        self._reserved -= reserved

    def count(self, chat: Chat, answer: Mapping[str, Any]) -> None:
        """Add an answer, new or paid for before."""
        read, wrote = answer["input_tokens"], answer["output_tokens"]
        self.assumed += read is None or wrote is None
        read = most_input_tokens(chat) if read is None else read
        wrote = self._max_tokens if wrote is None else wrote
        self.input_tokens += read
        self.output_tokens += wrote
        self.cost += self._price(read, wrote)

    def _price(self, read: int, wrote: int) -> float:
        return 0.0 if self._prices is None else (read * self._prices.input + wrote * self._prices.output) / 1e6

    def facts(self) -> dict[str, Any]:
        """For the report; `cost` is None where no prices are known."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "answers_without_usage": self.assumed,
            "cost": None if self._prices is None else self.cost,
        }
