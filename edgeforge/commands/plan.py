"""`edgeforge plan`: every step in its true order, what is cached, how much work is left."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeforge.plan import Plan, cached, estimated_samples
from edgeforge.stages.quantize import Quantize
from edgeforge.store import Store

KEY_LETTERS = 12


def show(plan: Plan, store: Store, console: Console) -> None:
    """Print the steps, each target's order, and the warnings."""
    done = cached(plan, store)
    samples = estimated_samples(plan, plan.pipeline.task.open().size("train"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("#", "step", "kind", "key", "state", "training"):
        table.add_column(title, overflow="fold")
    for number, step in enumerate(plan.steps, 1):
        state = "[cyan]cached[/cyan]" if done[step.name] else "to do"
        work = f"{samples[step.name]:,} samples" if step.name in samples else ""
        table.add_row(str(number), escape(step.name), step.stage.kind, step.key[:KEY_LETTERS], state, work)
    console.print(table)
    left = sum(count for name, count in samples.items() if not done[name])
    console.print(
        f"\n{len(done)} steps, {sum(done.values())} cached; {left:,} training samples to go through.", highlight=False
    )
    for row in plan.targets:
        console.print(f"[bold]{row}[/bold]: {order(plan, row)}", highlight=False)
    for warning in plan.warnings:
        console.print(f"[yellow]warning[/yellow] {escape(warning)}", highlight=False)


def order(plan: Plan, row: str) -> str:
    """``export -> quantize -> verify -> ... (int8_static works on the onnx file)``."""
    steps = [step for step in plan.steps if step.row == row]
    words = " -> ".join(dict.fromkeys(step.stage.kind for step in steps))
    for step in steps:
        if isinstance(step.stage, Quantize):
            quantizer = step.stage.quantizer
            thing = "model, before it is written" if "torch" in quantizer.accepts else "written file"
            words += f" ({quantizer.kind} works on the {thing})"
    return words
