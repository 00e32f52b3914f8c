"""How a Core ML program is wired, apart from its weights; and whether its numbers fit float16.

Weights are compared one by one elsewhere, up to the rounding to float16 that they are stored with. What that rounding
moves would hide a small mistake in an operation. So the torch model is given the program's own weights here: what is
left between the two is float32 arithmetic, and the rounding of the few scalars of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge.verification import Check
from edgeforge.verification._coreml_package import PyMIL
from edgeforge.verification._opened import ROUNDINGS, Inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.models.operations import Trace

Answer = Callable[[Inputs], np.ndarray]
"""Samples by name -> probabilities, (N, labels)."""

WIRING = "program computes what torch does with its weights"

SCALAR_STEPS = 1
"""Times what one step of float16 in every scalar moves: rounding moves them by half a step, and not all one way."""

HALF_ROUNDINGS = 16
"""Times what half a step of float16 in every weight moves: every operation rounds its result."""

HALF_STEP = 2.0**-11
"""Of a number: the most that rounding to float16 moves it."""

HALF_LIMIT = 1e-2
"""Mean divergence of a language model (nats per token) where every operation's result is rounded to float16, as a
phone's processors do."""

LEAST_HALF = 0.02
"""Of a probability: what float16 may move in any case."""


GELU = {"gelu": "EXACT", "gelu_new": "TANH_APPROXIMATION", "gelu_pytorch_tanh": "TANH_APPROXIMATION"}
"""Transformers' names of activations, and the mode of Core ML's operation. Their results are too near each other to be
told apart by what a program answers."""


def gelu_check(function: PyMIL, config: Mapping[str, Any]) -> list[Check]:
    """Whether every GELU is the config's, where it has one."""
    wanted = GELU.get(str(config.get("hidden_act")))
    modes = {str(one.inputs["mode"].val) for one in function.operations if one.op_type == "gelu"}
    if wanted is None or not modes:
        return []
    return [Check("activation", modes == {wanted}, "" if modes == {wanted} else f"{modes}, and should be {wanted}")]


def with_weights(network: PreTrainedModel, reads: Trace, stored: Mapping[str, np.ndarray]) -> str | None:
    """Give the torch model, in place, the numbers a program computes with; what it cannot be given, or None."""
    import torch

    known = dict(reads.constants)
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.no_grad():
        for layer in reads.layers:
            if layer.batch_norm is not None:
                _only_add(network.get_submodule(layer.batch_norm))
                if layer.bias is not None:
                    network.get_parameter(layer.bias).zero_()
                bias = f"{layer.batch_norm}.bias"
            else:
                bias = layer.bias or ""
            name = layer.weight.removesuffix(".weight")
            state[f"{name}.bias"] = state.get(bias, torch.empty(0))
        for name, numbers in stored.items():
            place = _place(name, state, known)
            if place is None:
                return name
            if place.numel():
                place.copy_(torch.from_numpy(numbers.astype(np.float32)).reshape(place.shape))
    return None


def _only_add(norm: torch.nn.Module) -> None:
    """A batch normalization without factor: the program has it in its weights."""
    norm.running_mean.zero_()  # type: ignore[operator]
    norm.running_var.fill_(1 - norm.eps)  # type: ignore[operator]
    norm.weight.fill_(1)  # type: ignore[operator]


def _place(name: str, state: Mapping[str, torch.Tensor], known: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Where the numbers of that name lie in the model: a parameter, its first rows, or what a constant was made of."""
    if name in state:
        return state[name]
    if name.startswith("the first "):
        _, _, count, _, _, table = name.split(" ")
        return state[table][: int(count)]
    if name in known:
        value = known[name].reshape(-1)
        same = (
            one for one in state.values() if one.numel() == value.numel() and bool((one.reshape(-1) == value).all())
        )
        return next(same, None)
    return None


def wiring(program: Answer, nudged: Answer, torch_with: Callable[[str], Answer], samples: Inputs) -> Check:
    """The program's answers to `samples` against those of torch with the program's weights.

    `nudged`: the program with every scalar one step of float16 further. `torch_with`: a dtype -> torch's answers.
    """
    exact, single = torch_with("float64")(samples), torch_with("float32")(samples)
    found = program(samples)
    apart = float(np.abs(found - exact).max()) if np.isfinite(found).all() else np.inf
    own = max(float(np.abs(single - exact).max()), float(np.finfo(np.float32).eps))
    scalars = float(np.abs(nudged(samples) - found).max())
    limit = ROUNDINGS * own + SCALAR_STEPS * scalars
    return Check(
        WIRING,
        bool(apart <= limit),
        f"probabilities differ by {apart:.3g}, at most {limit:.3g}: {ROUNDINGS} times torch's own rounding error and "
        f"what rounding scalars to float16 moves",
    )


def nudged(network: PreTrainedModel) -> PreTrainedModel:
    """The model, changed in place: every number half a step of float16 off, up or down, by a fixed seed.

    Rounding would not do: what a quantizer chose lies on float16's grid already.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            up = torch.randint(0, 2, parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter *= 1 + (2 * up - 1) * HALF_STEP
    return network


def half_precision(rounded: Answer, single: np.ndarray, samples: Inputs, *, weights_moved: float) -> Check:
    """Every result rounded to float16 as a phone's processors do; `single`: the answers in float32."""
    name = "float16 arithmetic"
    found = rounded(samples)
    broken = ~np.isfinite(found).all(axis=1)
    if broken.any():
        return Check(name, False, f"{broken.mean():.1%} of the samples overflow or become no numbers")
    apart = float(np.abs(found - single).max())
    limit = max(LEAST_HALF, HALF_ROUNDINGS * weights_moved)
    return Check(name, apart <= limit, f"probabilities move by {apart:.3g}, at most {limit:.3g}")
