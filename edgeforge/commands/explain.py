"""`edgeforge explain`: a kind, an axis or a part of the pipeline file, from its own code."""

from __future__ import annotations

import re

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from edgeforge.catalog import Entry, axes, entries, find


def show(word: str | None, console: Console) -> None:
    """Explain one word, or list every word there is. Raises ConfigurationError for a word nobody knows."""
    if word is None:
        _everything(console)
        return
    found = find(word)
    if word in {axis.name for axis in axes()}:
        _axis(word, console)
        return
    for entry in found:
        _entry(entry, console)


def _everything(console: Console) -> None:
    console.print("[bold]The file[/bold]  pipeline targets budgets\n")
    for axis in axes():
        words = " ".join(entry.word for entry in entries(axis.name))
        console.print(f"[bold]{axis.name}[/bold]  {escape(axis.title)}\n  {escape(words)}\n", highlight=False)
    console.print("`edgeforge explain WORD` tells more of any of these.")


def _axis(name: str, console: Console) -> None:
    table = Table("kind", "what it is", box=None, pad_edge=False)
    for entry in entries(name):
        table.add_row(f"[bold]{entry.word}[/bold]", escape(entry.summary))
    console.print(table)


def _entry(entry: Entry, console: Console) -> None:
    title = f"{entry.word}  ({entry.axis})" if entry.axis else entry.word
    console.rule(f"[bold]{title}[/bold]", align="left")
    console.print(escape(_flowing(entry.text)) + "\n", highlight=False)
    if entry.options:
        console.print(_options(entry))
    for part in entry.parts:
        console.print(f"\n[bold]{part.word}[/bold]: {escape(part.summary)}", highlight=False)
        console.print(_options(part))
    console.print("\n[bold]As YAML[/bold], with every default written out:")
    console.print(Syntax(entry.example, "yaml", background_color="default", word_wrap=True))
    if entry.chosen_by:
        console.print(f"\nChosen at {', '.join(entry.chosen_by)}.", highlight=False)
    console.print()


def _flowing(text: str) -> str:
    """Paragraphs as one line each, for the terminal to break where it ends; indented lines and lists stay."""
    return re.sub(r"(?<!\n)\n(?=[^\s-])", " ", text)


def _options(entry: Entry) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for option in entry.options:
        default = "[yellow]required[/yellow]" if option.default is None else f"default {escape(option.default)}"
        facts = f"[dim]{escape(option.type)};[/dim] {default}"
        table.add_row(f"[bold]{option.name}[/bold]", f"{escape(option.description)}\n{facts}")
    return table
