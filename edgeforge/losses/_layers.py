"""Which layers of a student answer to which of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput

Layers = Literal["last", "evenly_spaced"] | Annotated[tuple[tuple[int, int], ...], Field(min_length=1)]
Pair = tuple["torch.Tensor", "torch.Tensor"]

LAYERS_DESCRIPTION = (
    "`last`: the last layer of each. `evenly_spaced`: every student layer but the first (the embedding), with the "
    "teacher's at the same relative depth. Or pairs [student layer, teacher layer], as numbered in Hugging Face's "
    "`hidden_states`: 0 is the embedding where the family returns it, -1 the last."
)


def layer_pairs(layers: Layers, student: ModelOutput, teacher: ModelOutput | None, loss: str) -> list[Pair]:
    """(student state, teacher state) float32, the teacher's without gradient; both 4-D maps or both 3-D tokens.

    Raises ModelError where a layer is not there, where maps would be compared with tokens, or where the numbers of
    tokens differ.
    """
    ours, theirs = hidden_states(student, "student", loss), hidden_states(teacher, "teacher", loss)
    pairs = []
    for mine, other in layer_indices(layers, len(ours), len(theirs), loss):
        pair = (ours[mine].float(), theirs[other].detach().float())
        if pair[0].dim() != pair[1].dim() or pair[0].dim() not in (3, 4):
            raise ModelError(
                f"{loss} cannot compare the student's layer {mine} (shape {tuple(pair[0].shape[1:])}) with the "
                f"teacher's layer {other} (shape {tuple(pair[1].shape[1:])}): one has feature maps, the other tokens",
                remedy="use losses on logits between a convolutional network and a transformer",
            )
        if pair[0].dim() == 3:
            check_tokens(pair[0].shape[1], pair[1].shape[1], loss)
        pairs.append(pair)
    return pairs


def hidden_states(outputs: ModelOutput | None, who: str, loss: str) -> Sequence[torch.Tensor]:
    """The states of every layer. Raises ModelError where a model gives none."""
    assert outputs is not None, f"{loss} needs a teacher"
    states = outputs.get("hidden_states")
    if not states:
        raise ModelError(
            f"the {who} gives no hidden states, which {loss} needs", remedy="use losses on logits for this model"
        )
    return states  # type: ignore[no-any-return]


def layer_indices(layers: Layers, ours: int, theirs: int, loss: str) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer), counted from 0, of models with so many states (embedding included).

    Raises ModelError where a layer is not there.
    """
    if layers == "last":
        return [(ours - 1, theirs - 1)]
    if layers == "evenly_spaced":
        deepest, deepest_teacher = max(ours - 1, 1), max(theirs - 1, 1)
        layers = tuple(
            (layer, (2 * layer * deepest_teacher + deepest) // (2 * deepest)) for layer in range(1, deepest + 1)
        )
    return [(_index(mine, ours, "student", loss), _index(other, theirs, "teacher", loss)) for mine, other in layers]


def check_tokens(ours: int, theirs: int, loss: str) -> None:
    """Raise ModelError where tokens cannot be compared one by one."""
    if ours != theirs:
        raise ModelError(
            f"{loss}: the student has {ours} tokens and the teacher {theirs}",
            remedy="give both the same patch size, or use losses on logits",
        )


def _index(layer: int, count: int, who: str, loss: str) -> int:
    if not -count <= layer < count:
        raise ModelError(
            f"{loss} names layer {layer} of the {who}, which has layers 0 to {count - 1}",
            remedy="name a layer that is there; negative numbers count from the end",
        )
    return layer % count
