"""What measures on a device: the worker in Python where it has Python and ONNX Runtime, else the native runner.

Both take the same jobs, each in a form of its own, and answer in the same lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from edgeforge.core.errors import DeviceProblem
from edgeforge.links import Workload, _llama_worker, _runner, _worker
from edgeforge.links._worker import Processor

OUTPUTS = "outputs.bin"
_ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "bool": 9, "float64": 11}
"""numpy's names -> ONNX's TensorProto.DataType."""


class Program(Protocol):
    """Everything is said relative to the program's folder on the device."""

    def files(self, inputs: Path, scratch: Path) -> Mapping[str, Path]:
        """Path on the device -> path here, of the program and its inputs; `scratch` is for files made on the way."""

    def job(self, what: str, workload: Workload, names: Iterable[str]) -> str:
        """The text of a job file."""

    def command(self, what: str, job: str) -> str:
        """What does the job in that file, as a shell command."""


def model_folder(subject: str) -> str:
    """Where a subject's file is on the device."""
    return f"subjects/{subject}"


class PythonWorker:
    """`_worker.py`, run by the device's own Python."""

    def __init__(self, python: str, processor: Processor = "cpu") -> None:
        self.python, self.processor = python, processor

    def files(self, inputs: Path, scratch: Path) -> Mapping[str, Path]:
        return {"worker.py": Path(_worker.__file__), "inputs.npz": inputs}

    def job(self, what: str, workload: Workload, names: Iterable[str]) -> str:
        plain = workload.model_dump(mode="json")
        subjects = {name: {**plain["subjects"][name], "folder": model_folder(name)} for name in names}
        own = {"what": what, "cores": [], "subjects": subjects, "inputs": "inputs.npz", "outputs": OUTPUTS}
        return json.dumps({**plain, **own, "processor": self.processor})

    def command(self, what: str, job: str) -> str:
        return f"{self.python} worker.py < {job}"


class LlamaWorker(PythonWorker):
    """`_llama_worker`, run by the device's own Python."""

    def files(self, inputs: Path, scratch: Path) -> Mapping[str, Path]:
        _llama_worker.archive(scratch / "worker.pyz")
        return {"worker.pyz": scratch / "worker.pyz", "inputs.npz": inputs}

    def command(self, what: str, job: str) -> str:
        return f"{self.python} worker.pyz < {job}"


class NativeRunner:
    """`_runner/efrun.c`, with a C library of its own."""

    def __init__(self, machine: _runner.Machine) -> None:
        self.machine = machine
        self._inputs: list[str] = []

    def files(self, inputs: Path, scratch: Path) -> Mapping[str, Path]:
        found = dict(_runner.built(self.machine))
        with np.load(inputs, allow_pickle=False) as file:
            arrays = {name: np.ascontiguousarray(file[name]) for name in file.files}
        count = min(map(len, arrays.values()))
        self._inputs = [f"count {count}"]
        for number, (name, array) in enumerate(arrays.items()):
            if array.dtype.name not in _ELEMENT_TYPES or len(name.split()) != 1:
                raise DeviceProblem(f"the runner takes no input '{name}' of type {array.dtype.name}")
            path = scratch / f"input{number}.bin"
            array[:count].tofile(path)
            found[path.name] = path
            shape = (1, *array.shape[1:])
            words = (name, path.name, _ELEMENT_TYPES[array.dtype.name], array[0].nbytes, len(shape), *shape)
            self._inputs.append(" ".join(map(str, ("input", *words))))
        return found

    def job(self, what: str, workload: Workload, names: Iterable[str]) -> str:
        settings = ("threads", "samples", "warmup", "min_sample_ms", "seed")
        lines = [f"{name} {getattr(workload, name)}" for name in settings]
        for name in names:
            lines.append(f"subject {name} {model_folder(name)}/model.onnx {workload.sustained.get(name, 0.0)}")
        return "\n".join((*lines, *self._inputs, ""))

    def command(self, what: str, job: str) -> str:
        return f"{_runner.command(self.machine)} {what} {job}"
