"""A user's own Python functions, named ``module:function`` in a pipeline file.

Nothing else in EdgeForge runs code that a user's file names, so `plan` warns of every one (`inside` finds them).
"""

from __future__ import annotations

import importlib.util
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo

from edgeforge.core.artifact import hash_file
from edgeforge.core.errors import ConfigurationError, DataError
from edgeforge.core.spec import Spec, nested_specs, perhaps

FOLDER = "folder"
"""In a validation's context: where relative modules are looked for, the folder of the pipeline file."""

_REFERENCE = re.compile(r"(?P<module>.+):(?P<name>[^\W\d]\w*)")


def _placed(value: str, info: ValidationInfo) -> str:
    found = _REFERENCE.fullmatch(value)
    if found is None:
        raise ValueError("a function is named `module:function`, for example `addition:teach`")
    module = found["module"]
    path = Path(module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
    folder = (info.context or {}).get(FOLDER)
    return f"{path if folder is None else Path(folder) / path}:{found['name']}"


class UserCode(Spec):
    """A function in a file of the user's."""

    function: Annotated[str, AfterValidator(_placed)] = Field(
        description="`module:function`; the module is one file, beside the pipeline file or by its path from there "
        "(`lessons/addition.py:teach`), and may import what is installed. It runs with your rights."
    )

    @property
    def file(self) -> Path:
        """The module, absolute. Raises ConfigurationError where there is none."""
        path = Path(self.function.rpartition(":")[0]).expanduser().absolute()
        if not path.is_file():
            raise ConfigurationError(
                "there is no such file",
                where=str(path),
                remedy="`module:function` names a file beside the pipeline file",
            )
        return path

    def digest(self) -> str:
        """sha256 of the module's source. Raises ConfigurationError."""
        return hash_file(self.file)

    def load(self) -> Callable[..., Any]:
        """Import the module and return the function; what it raises comes as a DataError that says in which line.

        Raises ConfigurationError where the module cannot be imported or has no such function.
        """
        path, name = self.file, self.function.rpartition(":")[2]
        found = importlib.util.spec_from_file_location(f"edgeforge_user_{path.stem}", path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # a user's program may fail in any way
            raise ConfigurationError(
                f"cannot be imported: {_said(error)}", where=_place(error, path), remedy="repair the module"
            ) from error
        function = getattr(module, name, None)
        if not callable(function):
            known = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
            raise ConfigurationError(perhaps("no function is named", name, known), where=str(path))
        return _guarded(function, path, name)


def inside(spec: Spec) -> list[UserCode]:
    """Every user's function that a spec names, at any depth."""
    return [part for part in nested_specs(spec) if isinstance(part, UserCode)]


def _guarded(function: Callable[..., Any], path: Path, name: str) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:
            given = ", ".join(_short(argument) for argument in arguments)
            raise DataError(
                f"{name}({given}) raised {_said(error)}",
                where=_place(error, path),
                remedy="repair the function, and run it again: what is done is kept",
            ) from error

    return called


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException, path: Path) -> str:
    """``file:line`` of the last of its own lines that was at work."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _short(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
