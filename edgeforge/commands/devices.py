"""`edgeforge devices`: what a target can name, and how each device can be reached now."""

from __future__ import annotations

import json
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeforge.device import DeviceProfile, own_folder, profiles
from edgeforge.estimators import Known, estimator_for
from edgeforge.links import link_of
from edgeforge.runtimes import runtime_for

State = Literal["available", "configured", "unavailable", "estimated", "bundle", "none"]
"""`configured`: a way there is set up, and whether the device answers shows when it is measured. `bundle`: a bundle's
benchmark measures it, and a report takes that in.
"""

FAMILIES = ("host", "browser", "emulator", "phone", "laptop", "board", "gpu")
HERE = ("local", "browser", "qemu")
"""Links that end on this machine, so that nothing is left to ask."""


def described() -> list[dict[str, Any]]:
    """Every device as plain JSON: its facts with their sources, how it can be reached, what can be estimated."""
    found = []
    for profile in profiles().values():
        state, why = reached(profile)
        facts = profile.model_dump(mode="json")
        known = [item.model_dump(mode="json") for item in _known(profile.name)]
        found.append({**facts, "layout": profile.layout, "state": state, "reason": why, "estimates": known})
    return found


def reached(profile: DeviceProfile) -> tuple[State, str | None]:
    """How measurements reach a device now, and the reason where its link cannot work."""
    if profile.link is None:
        return ("estimated" if _known(profile.name) else "bundle" if profile.bundle else "none"), None
    runtime = runtime_for("onnx")
    assert runtime is not None
    link = link_of(profile.link, profile.connection)
    reason = link.unavailable(runtime.kind) or link.missing()
    return ("unavailable" if reason else "available" if profile.link in HERE else "configured"), reason


def show(console: Console, *, as_json: bool = False) -> None:
    """The table, or the JSON of `described`."""
    if as_json:
        print(json.dumps(described(), indent=1))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True, min_width=max(map(len, profiles())))  # the word that a target says
    for column in ("device", "integers", "reached now", "once set up by"):
        table.add_column(column)
    reasons: dict[str, list[str]] = {}
    for profile in sorted(profiles().values(), key=lambda profile: FAMILIES.index(profile.family)):
        state, reason = reached(profile)
        ways = (*profile.reachable_by, *(["bundle"] if profile.bundle else ()))
        later = "" if profile.link else ", ".join(ways)
        table.add_row(profile.name, escape(profile.title), profile.layout, _said(profile, state), later)
        if reason is not None:
            reasons.setdefault(reason, []).append(profile.name)
    console.print(table)
    for reason, names in reasons.items():
        line = f"\n[yellow]not now[/yellow]: {', '.join(names)}: {escape(reason)}"
        console.print(line, highlight=False, soft_wrap=True)  # a command in it can be copied whole
    for way in dict.fromkeys(filter(None, (profile.by_bundle for profile in profiles().values()))):
        console.print(f"\nby a bundle: {way}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"\nTo set one up, describe it in {own_folder()} under its name, with its link and connection; docs/devices.md "
        "says how. Estimates say how far off they are; --json has their errors, and every fact with its source.",
        markup=False,
        highlight=False,
    )


def _said(profile: DeviceProfile, state: State) -> str:
    if state == "available":
        return "[green]available[/green]"
    if state == "configured":
        return f"[green]set up[/green]: {profile.link}"
    if state == "unavailable":
        return "[yellow]not now[/yellow], see below"
    if state == "estimated":
        units = ", ".join(dict.fromkeys(known.unit.upper() for known in _known(profile.name)))
        return f"[cyan]estimated[/cyan]: {units}"
    return "[cyan]by a bundle[/cyan]" if state == "bundle" else "[dim]not at all[/dim]"


def _known(device: str) -> tuple[Known, ...]:
    estimator = estimator_for(device)
    return estimator.known(device) if estimator is not None else ()
