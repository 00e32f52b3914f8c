"""What a run looks like in a terminal: one line per step, a bar with loss and time left while it works."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from edgeforge.core.report import StepResult
from edgeforge.plan import Step

PLAIN_EVERY_SECONDS = 10


class TerminalWatcher:
    """Writes to `console`. Where it is no terminal (a log file, CI), bars become a plain line every few seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("  [bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._bar: TaskID | None = None
        self._title = ""
        self._width = 0
        self._said = 0.0
        self._began = 0.0

    def started(self, step: Step, number: int, of: int) -> None:
        self._width = len(str(of))
        self._title = f"[{number:>{self._width}}/{of}] {step.name}"
        self._said = self._began = time.monotonic()

    def update(self, done: int, total: int, note: str = "") -> None:
        if not self.console.is_terminal:
            self._plain(done, total, note)
            return
        if self._bar is None:
            self._bars.start()
            self._bar = self._bars.add_task(self._title.replace("[", r"\["), total=total, note=note)
        self._bars.update(self._bar, completed=done, total=total, note=note)

    def _plain(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._said < PLAIN_EVERY_SECONDS:
            return
        self._said = now
        left = (now - self._began) / max(1, done) * (total - done)
        self.console.print(
            f"  {self._title}: {done}/{total} {note}, about {left:.0f} s left", markup=False, highlight=False
        )

    def finished(self, step: Step, result: StepResult) -> None:
        self._end_bar()
        if result.error is not None:
            mark, note = "[red]failed[/red]", result.error.replace("[", r"\[")
        elif result.cached:
            mark, note = "[cyan]cached[/cyan]", ""
        else:
            mark, note = "[green]done[/green]", f"{result.seconds:.1f} s"
        title = self._title.replace("[", r"\[")
        self.console.print(f"  {title:<44} {mark} {note}", highlight=False)

    def warn(self, message: str) -> None:
        self.console.print("  [yellow]warning[/yellow] " + message.replace("[", r"\["), highlight=False)

    def close(self) -> None:
        """Give the terminal back, also in the middle of a step."""
        self._end_bar()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bars.stop()
            self._bar = None
