"""Errors a user can meet. Each says where, what, and what to do, and carries the exit code of the command."""

from __future__ import annotations


class EdgeForgeError(Exception):
    """Base of every error that is shown to the user without a traceback.

    `where` is a place the user can open (``pipelines/x.yaml:14 stages[1].ratio``, a file, a step's name),
    `what` is one sentence, `remedy` is the next thing to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  -> {self.remedy}" if self.remedy else text


class ConfigurationError(EdgeForgeError):
    """The pipeline file, an option or an argument is wrong."""

    exit_code = 2


class DataError(EdgeForgeError):
    """The data cannot be used: missing, malformed, out of range."""

    exit_code = 2


class ModelError(EdgeForgeError):
    """A model's files cannot be used: missing, corrupt, unsafe, or of the wrong shape."""

    exit_code = 2


class MissingExtraError(EdgeForgeError):
    """A library is needed that belongs to an extra which is not installed."""

    exit_code = 3


class IncompatiblePlanError(EdgeForgeError):
    """The parts of the pipeline cannot work together."""

    exit_code = 4


class BudgetError(EdgeForgeError):
    """Every file is sound, but a budget was missed."""

    exit_code = 5


class VerificationError(EdgeForgeError):
    """A written file is not what it should be."""

    exit_code = 6


class EnvironmentProblem(EdgeForgeError):
    """Disk, permissions, a device, another process: the world outside refused."""

    exit_code = 7


class DeviceProblem(EdgeForgeError):
    """A device beside this machine refused or was lost: its rows are absent, and everything else goes on."""

    exit_code = 7


INTERRUPTED_EXIT_CODE = 130
