"""Small Core ML programs, written to disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write_package(tmp_path: Path) -> Callable[..., Path]:
    """A MIL function (as ``mb.program`` takes) and its input specs -> the package it was saved to, without passes."""

    def write(function: Callable[..., Any], specs: list[Any], *, name: str = "m", precision: str = "FLOAT32") -> Path:
        return save_program(function, specs, tmp_path / f"{name}.mlpackage", precision=precision)

    return write


@pytest.fixture(scope="module")
def save_program_to() -> Callable[..., Path]:
    """As `write_package`, for fixtures of a module: it is told where to write."""
    return save_program


def save_program(
    function: Callable[..., Any], specs: list[Any], path: Path, *, precision: str = "FLOAT32", opset: str = "iOS18"
) -> Path:
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    target = getattr(ct.target, opset)
    program = mb.program(input_specs=specs, opset_version=target)(function)
    model = ct.convert(
        program,
        convert_to="mlprogram",
        compute_precision=getattr(ct.precision, precision),
        minimum_deployment_target=target,
        pass_pipeline=ct.PassPipeline.EMPTY if precision == "FLOAT32" else ct.PassPipeline.DEFAULT,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


@pytest.fixture(params=["cpu", "cuda"])
def processor(request: pytest.FixtureRequest) -> str:
    """What a runtime computes on. The CUDA side runs wherever torch finds a GPU."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU on this machine")
    return str(request.param)
