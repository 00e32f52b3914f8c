"""The `edgeforge` command. Each subcommand is a few lines; heavy modules are imported by the one that needs them."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from edgeforge import __version__
from edgeforge.core.errors import INTERRUPTED_EXIT_CODE, ConfigurationError, EdgeForgeError, EnvironmentProblem

if TYPE_CHECKING:
    from edgeforge.plan import Plan

FORGET_ON_RESUME = ("--fresh", "--from")


class _Commands(TyperGroup):
    """Turns what a command raises into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeForgeError as error:
            _complain(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _errors().print(
                f"\ninterrupted{_how_to_go_on(sys.argv[1:])}", markup=False, highlight=False, soft_wrap=True
            )
            raise typer.Exit(INTERRUPTED_EXIT_CODE) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil, prune, quantize, export, verify and benchmark a model from one YAML file.",
)

File = Annotated[Path, typer.Argument(help="The pipeline file (YAML).", show_default=False)]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        envvar="EDGEFORGE_STORE",
        help="Where finished steps are kept.",
        show_default="edgeforge/store in the user's cache folder",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Change a value of the file: --set stages.0.epochs=3. Repeatable."),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _edgeforge(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options before the subcommand."""


@app.command()
def run(
    file: File,
    out: Annotated[Path | None, typer.Option(help="Folder for files and report.", show_default="runs/NAME")] = None,
    store: StoreFolder = None,
    overrides: Overrides = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Make this step, and all after it, anew.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make every step anew.")] = False,
) -> None:
    """Run a pipeline: make what is missing, check every file, write the report."""
    from edgeforge.commands import summary
    from edgeforge.progress import TerminalWatcher
    from edgeforge.run import execute, steps_from
    from edgeforge.store import Store

    plan = _plan(file, overrides)
    rebuild = frozenset(step.name for step in plan.steps) if fresh else frozenset()
    if start is not None:
        rebuild |= steps_from(plan, start)
    folder = out or Path("runs") / plan.pipeline.name
    console = _console()
    watcher = TerminalWatcher(console)
    try:
        outcome = execute(plan, Store(store or default_store()), folder, watcher=watcher, rebuild=rebuild)
    finally:
        watcher.close()
    summary.show(outcome.report, folder, console)
    if outcome.error is not None:
        raise outcome.error


@app.command()
def sweep(
    file: File,
    vary: Annotated[
        list[str],
        typer.Option(
            "--vary",
            metavar="a.b=1,2",
            help="Values to try in turn: --vary stages.1.losses.0.temperature=1,2,4. Repeatable: every combination. "
            "Values that change together: --vary a.b+a.c=[0.9,0.1],[0.5,0.5].",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the runs and sweep.json.", show_default="runs/NAME-sweep")
    ] = None,
    store: StoreFolder = None,
    overrides: Overrides = None,
) -> None:
    """Run a pipeline with values varied. What combinations share is made once; validation says which is best."""
    from edgeforge.commands import sweep as command
    from edgeforge.progress import TerminalWatcher
    from edgeforge.store import Store

    planned = command.plans(file, overrides or (), [command.varied(said) for said in vary])
    folder = out or Path("runs") / f"{planned[0][1].pipeline.name}-sweep"
    console = _console()
    watcher = TerminalWatcher(console)
    try:
        results = command.run(planned, Store(store or default_store()), folder, watcher=watcher, console=console)
    finally:
        watcher.close()
    command.show(results, folder, console)
    command.check(results)


@app.command()
def plan(file: File, store: StoreFolder = None, overrides: Overrides = None) -> None:
    """Show what a run would do: steps in their true order, keys, what is cached, the work that is left."""
    from edgeforge.commands import plan as command
    from edgeforge.store import Store

    command.show(_plan(file, overrides), Store(store or default_store()), _console())


@app.command()
def bench(
    file_or_run: Annotated[
        Path, typer.Argument(help="A pipeline file, a run's folder, or a GGUF file.", show_default=False)
    ],
    threads: Annotated[int, typer.Option(min=1, help="Threads each file may use.")] = 1,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where to measure; see `edgeforge devices`.")
    ] = "host_cpu",
    sustained: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Then run each file so long without a pause.")
    ] = 0,
    accuracy: Annotated[
        int, typer.Option(min=0, metavar="SAMPLES", help="Score the device's own answers to so many test samples.")
    ] = 0,
) -> None:
    """Measure the files of a finished run again, here or on another device, in turns with the baseline."""
    from edgeforge.commands import _gguf
    from edgeforge.commands import bench as command

    console = _console()
    stage = command.stage_for(device, threads=threads, sustained_s=sustained, accuracy_samples=accuracy)
    if _gguf.is_one(file_or_run):
        command.show(command.measure_file(file_or_run, stage=stage, console=console), console)
        return
    folder = command.folder_of(file_or_run)
    command.show(command.measure(folder, stage=stage, console=console), console)
    path = folder / command.file_name(stage)
    console.print(f"\nraw samples: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def speculate(
    teacher: Annotated[Path, typer.Argument(help="The GGUF file that is to write, or its folder.", show_default=False)],
    draft: Annotated[Path, typer.Argument(help="The GGUF file that drafts for it.", show_default=False)],
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts, as the task's `prompts`.", show_default="four of its own"),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=8, help="Tokens written after each prompt.")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="Threads each file may use.")] = 1,
    out: Annotated[Path, typer.Option(help="Where raw results go.")] = Path("speculation.json"),
) -> None:
    """Measure speculative decoding: how much of a small model's drafts a large one accepts, and what that gains."""
    from edgeforge.commands import speculate as command

    console = _console()
    found = command.measure(teacher, draft, prompts=prompts, new_tokens=new_tokens, threads=threads, console=console)
    command.write(found, out)
    command.show(found, console)
    console.print(f"\nraw results: {out}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN", show_default=False)],
    merge: Annotated[
        list[Path] | None,
        typer.Option(metavar="RESULT", help="Take in what a device measured: result.json of a bundle. Repeatable."),
    ] = None,
) -> None:
    """Draw a run's report.json again as Markdown and HTML, and print its summary."""
    from edgeforge.commands import merge as command
    from edgeforge.commands import summary

    for result in merge or ():
        command.merge(folder, result)
    summary.show(summary.redraw(folder), folder, _console())


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN", show_default=False)],
    target: Annotated[str, typer.Option(metavar="PLATFORM", help="android, ios or web.", show_default=False)],
    artifact: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which file; needed where several fit.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the bundle and its zip.", show_default="RUN/bundles")
    ] = None,
) -> None:
    """Make what an app's developer needs: model, wrapper, self-test and licences, as a folder and a zip."""
    from edgeforge.commands import bundle as command

    command.make(folder, target=target, artifact=artifact, out=out or folder / "bundles", console=_console())


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A run's folder, an artifact's, or a model file.", show_default=False)],
    against: Annotated[
        Path | None, typer.Option(metavar="TORCH_DIR", help="A torch model that its answers and weights must be.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Check files again: that they are whole, open, and still answer as they did when they were made."""
    from edgeforge.commands import verify as command

    found = command.check(path, against=against)
    if as_json:
        print(command.as_json(found))
    else:
        command.show(found, _console())
    command.judge(found, path)


@app.command()
def devices(
    as_json: Annotated[bool, typer.Option("--json", help="Every fact with its source, as JSON.")] = False,
) -> None:
    """List the devices that a target can name, and how each can be reached now."""
    from edgeforge.commands import devices as command

    command.show(_console(), as_json=as_json)


@app.command()
def explain(
    word: Annotated[str | None, typer.Argument(help="A kind, an axis, or `pipeline`.", metavar="WORD")] = None,
) -> None:
    """Explain a word of the pipeline file: what it does, its keys, an example. Without a word: list them all."""
    from edgeforge.commands import explain as command

    command.show(word, _console())


@app.command()
def schema() -> None:
    """Print the JSON schema of pipeline files, for editors."""
    from edgeforge import catalog

    print(json.dumps(catalog.schema(), indent=1))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("pipeline.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented pipeline file to start from."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(_shipped("pipelines/quickstart.yaml").read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise ConfigurationError("the file is there already", where=str(path), remedy="--force replaces it") from error
    except OSError as error:
        raise EnvironmentProblem(f"cannot be written: {error.strerror}", where=str(path)) from error
    _console().print(f"wrote {path}; next: edgeforge run {shlex.quote(str(path))}", markup=False, highlight=False)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="What to bring, such as fashion-mnist.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to put it in.")] = Path("data"),
) -> None:
    """Bring example data, checked against its known sha256."""
    from edgeforge.fetchers import fetcher_named

    console = _console()
    path = fetcher_named(name).fetch(out, say=lambda text: console.print(text, markup=False, highlight=False))
    console.print(str(path), markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor(store: StoreFolder = None) -> None:
    """Check this installation: versions, extras, what the processor can do, the store."""
    from edgeforge.commands import doctor as command

    command.show(store or default_store(), _console())


def default_store() -> Path:
    """``edgeforge/store`` in the user's cache folder."""
    from platformdirs import user_cache_path

    return user_cache_path("edgeforge", appauthor=False) / "store"


def main() -> None:
    """Entry point. A user's mistake ends in one message; only a defect of EdgeForge itself leaves a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to fail
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough. What is left in the buffer must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="edgeforge-", suffix=".txt", delete=False) as stream:
            stream.write(f"{shlex.join(sys.argv)}\n\n{traceback.format_exc()}")
        _complain(
            f"{type(error).__name__}: {error}\n  -> this is a defect of EdgeForge; please report it with {stream.name}"
        )
        sys.exit(1)


def _plan(file: Path, overrides: list[str] | None) -> Plan:
    from edgeforge.pipeline import load
    from edgeforge.plan import build

    return build(load(file, overrides or ()))


def _console() -> Console:
    # Of several processes under `accelerate launch`, one speaks.
    return Console(quiet=os.environ.get("RANK", "0") != "0")


def _errors() -> Console:
    return Console(stderr=True)


def _complain(error: EdgeForgeError | str) -> None:
    _errors().print(f"[bold red]error[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)


def _how_to_go_on(arguments: list[str]) -> str:
    if arguments[:1] != ["run"]:
        return ""
    kept: list[str] = []
    for position, argument in enumerate(arguments):
        starts_anew = argument.startswith(FORGET_ON_RESUME) or arguments[position - 1] == "--from"
        kept += [] if starts_anew else [argument]
    return f"; what is finished is kept. To go on: {shlex.join(['edgeforge', *kept])}"


def _shipped(name: str) -> Path:
    # A wheel carries pipelines/ inside the package; a checkout has it beside the package.
    inside = Path(__file__).parent / name
    return inside if inside.exists() else Path(__file__).parent.parent / name
