"""Forward passes that begin in the middle of a model, so that what comes before is computed once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


class Passes:
    """One batch through one model, again and again, each time from one of its `blocks` on.

    A block takes hidden states as its first argument (or as ``hidden_states``) and puts out the next block's, alone or
    first in a tuple.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self._given: dict[nn.Module, torch.Tensor] = {}
        self._rest: dict[nn.Module, tuple[Any, ...] | None] = {}

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """While the whole model runs once: remember what every block is given, in the order they run."""
        self._given.clear()
        with ExitStack() as hooks:
            for block in self._blocks:
                hooks.callback(block.register_forward_hook(self._remember, with_kwargs=True).remove)
            yield

    @contextmanager
    def begun_at(self, block: nn.Module) -> Iterator[None]:
        """While the model runs: the blocks before `block` compute nothing, it is given what it was."""
        with self._stubs(self._before(block), self._given[block]):
            yield

    @contextmanager
    def without(self, block: nn.Module) -> Iterator[None]:
        """The same, and `block` itself is left out: what it is given goes on to the next."""
        with self._stubs([*self._before(block), block], self._given[block]):
            yield

    def _remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._given[module] = args[0] if args else kwargs["hidden_states"]
        self._rest[module] = output[1:] if isinstance(output, tuple) else None

    def _before(self, block: nn.Module) -> list[nn.Module]:
        order = list(self._given)
        return order[: order.index(block)]

    @contextmanager
    def _stubs(self, skipped: Sequence[nn.Module], states: torch.Tensor) -> Iterator[None]:
        """Let these blocks put out `states` whatever they are given."""
        for block in skipped:
            # An attribute of the instance hides the method of its class; a hook could not keep it from running.
            block.forward = self._stub(states, self._rest[block])
        try:
            yield
        finally:
            for block in skipped:
                del block.forward

    @staticmethod
    def _stub(states: torch.Tensor, rest: tuple[Any, ...] | None) -> Callable[..., Any]:
        return lambda *_args, **_kwargs: states if rest is None else (states, *rest)
