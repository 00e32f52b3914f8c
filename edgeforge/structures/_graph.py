"""Which channels of a model can only be removed together, from torch-pruning's dependency graph.

Only the graph is used (Fang et al., 2023, https://arxiv.org/abs/2301.12900), not torch-pruning's pruner: in 1.6.1 the
pruner skips a layer silently where a ratio would leave it empty, does not hold `max_pruning_ratio` in one step, and
its `round_to` takes whole heads for channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError
from edgeforge.structures import _attention

if TYPE_CHECKING:
    from torch import nn
    from torch_pruning.dependency import Group
    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface


@dataclass(frozen=True)
class Coupled:
    """Layers whose output channels are the same channels.

    `layers` names them in the model's order; `width` channels come in units of `block` (heads, convolution groups);
    `pattern` is equal for groups that are wired alike.
    """

    layers: tuple[str, ...]
    width: int
    block: int
    pattern: tuple[tuple[str, str], ...]
    group: Group

    @property
    def name(self) -> str:
        return self.layers[0]

    @property
    def units(self) -> int:
        return self.width // self.block


class ChannelGraph:
    """The dependency graph of a model, kept true while channels are removed.

    `layers` holds every convolution and linear layer by name, `final` the names of those that make the logits.
    Tracing runs the model once on an image of zeros and leaves it in the mode it was in.
    """

    def __init__(self, model: PreTrainedModel, interface: Interface) -> None:
        import torch
        import torch_pruning
        from torch import nn

        from edgeforge.models.example import example_inputs

        self.model = model
        self.layers: dict[str, nn.Module] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
        }
        self._names = {module: name for name, module in model.named_modules()}
        training = model.training
        # Two samples: a batch axis of one looks to the tracer like one that was squeezed.
        sample = example_inputs(interface, 2)
        with torch.enable_grad():
            self._graph = torch_pruning.DependencyGraph().build_dependency(
                model,
                sample,
                output_transform=lambda outputs: outputs.logits,
                verbose=False,
            )
        model.train(training)
        self.final = self._layers_before_output()

    def coupled(self) -> list[Coupled]:
        """All groups at their present widths, in the model's order, but for the one that makes the logits."""
        heads = _attention.heads(self.model)
        order = {name: position for position, name in enumerate(self.layers)}
        found = [self._describe(group, heads) for group in self._graph.get_all_groups()]
        found = [item for item in found if not self.final.intersection(item.layers)]
        return sorted(found, key=lambda item: order[item.name])

    def remove(self, coupled: Coupled, channels: list[int]) -> None:
        """Take `channels` of a group out of every layer. Other groups stay valid, this one does not."""
        root = coupled.group[0].dep
        self._graph.get_pruning_group(root.target.module, root.handler, sorted(channels)).prune(record_history=False)

    def _describe(self, group: Group, heads: dict[nn.Module, int]) -> Coupled:
        layers, pattern, block = set(), [], 1
        for dep, _ in group:
            module = dep.target.module
            name = self._names.get(module)
            if name is None:  # an operation or a bare parameter
                continue
            outputs = self._graph.is_out_channel_pruning_fn(dep.handler)
            pattern.append((type(module).__name__, "out" if outputs else "in"))
            if name in self.layers:
                if outputs:
                    layers.add(name)
                block = math.lcm(block, heads.get(module, 1) if outputs else 1, _convolution_groups(module))
        width = len(group[0].idxs)
        named = tuple(name for name in self.layers if name in layers)
        if width % block:
            raise ModelError(f"{named[0]} has {width} channels, which its {block} heads or groups do not divide")
        return Coupled(named, width, block, tuple(pattern), group)

    def _layers_before_output(self) -> frozenset[str]:
        nodes = [node for node in self._graph.module2node.values() if not node.outputs]
        found = set()
        while nodes:
            node = nodes.pop()
            name = self._names.get(node.module)
            if name in self.layers:
                found.add(name)
            else:
                nodes.extend(node.inputs)
        return frozenset(found)


def _convolution_groups(module: nn.Module) -> int:
    """Groups that must keep equally many channels; a depthwise convolution has none, its channels come and go alone."""
    groups = int(getattr(module, "groups", 1))
    return 1 if groups == getattr(module, "out_channels", None) else groups
