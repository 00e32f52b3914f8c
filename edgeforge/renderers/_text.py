"""Numbers as people read them: units, signs, significant digits. A number that does not exist is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeforge.core.report import FALLING, ArtifactRow, BenchmarkConditions, BudgetRow, LatencyComparison

NONE = "\u2013"
MINUS = "\u2212"
TIMES = "\u00d7"


def significant(value: float, digits: int = 3) -> str:
    """``0.03531`` -> ``0.0353``, ``12345`` -> ``12,345``: never fewer digits than the whole part has."""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    if "e" in text or abs(value) >= 10**digits:
        text = f"{value:,.0f}" if abs(value) >= 1 else f"{value:.{digits - 1}e}"
    elif "." in f"{value:#.{digits}g}":
        text = f"{value:#.{digits}g}".rstrip(".")
    return text.replace("-", MINUS)


def size(count: int | None) -> str:
    """Bytes in units of 1000."""
    if count is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{significant(count / factor)} {unit}"
    return f"{count} B"


def amount(count: float | None) -> str:
    """Parameters or MACs: ``2.17 M``."""
    if count is None:
        return NONE
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{significant(count / factor)} {unit}"
    return f"{count:.0f}"


def decibels(value: float | None) -> str:
    """A ratio of powers."""
    return NONE if value is None else f"{value:.1f} dB"


def milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{significant(value)} ms"


def times(value: float | None) -> str:
    """A ratio: ``4.52×``."""
    return NONE if value is None else significant(value) + TIMES


def metric(value: float | None, name: str | None = None) -> str:
    """A share as percent; anything else with three significant digits (`name`: which metric it is)."""
    if value is None:
        return NONE
    if name in FALLING:
        return significant(value, 4)
    return f"{100 * value:.2f} %" if 0 <= value <= 1 else significant(value)


def change(value: float | None, name: str | None) -> str:
    """A difference of the metric `name`, always signed: percentage points of a share."""
    if value is None or name not in FALLING:
        return points(value)
    return f"+{significant(value)}" if value > 0 else significant(value)


def points(value: float | None) -> str:
    """A difference of shares, in percentage points, always signed."""
    if value is None:
        return NONE
    text = f"{100 * value:+.2f}"
    return "±0.00" if text in ("+0.00", "-0.00") else text.replace("-", MINUS)


def interval(bounds: Sequence[float | None] | None, *, scale: float = 1, unit: str = "") -> str:
    """``[0.21, 0.23]``; empty where there is none."""
    if bounds is None or None in bounds:
        return ""
    low, high = (significant(bound * scale) for bound in bounds if bound is not None)
    return f"[{low}, {high}]{unit}"


def point_interval(bounds: Sequence[float] | None) -> str:
    """The interval of a difference of shares, in percentage points."""
    return "" if bounds is None else f"[{points(bounds[0])}, {points(bounds[1])}]"


def share_interval(bounds: Sequence[float] | None) -> str:
    """The interval of a share, as percent."""
    return "" if bounds is None else f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}] %"


def correlation(value: float | None) -> str:
    """Between -1 and 1."""
    return NONE if value is None else f"{value:.2f}".replace("-", MINUS)


def change_interval(bounds: Sequence[float] | None, name: str | None) -> str:
    """The interval of a `change`."""
    if bounds is None or name not in FALLING:
        return point_interval(bounds)
    return f"[{change(bounds[0], name)}, {change(bounds[1], name)}]"


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def headline(row: ArtifactRow) -> str | None:
    """The name of a row's first metric."""
    return next(iter(row.metrics), None)


def metric_names(rows: Sequence[ArtifactRow]) -> list[str]:
    """Every metric that some file has, the headline first."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def tick_size(count: float) -> str:
    """A round number of bytes, for an axis."""
    unit, factor = next((item for item in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= item[1]), ("B", 1.0))
    return f"{count / factor:g} {unit}"


def quantity(metric: str) -> str:
    """``peak_rss_mb`` -> ``peak RSS, MB``: what was measured, and its unit."""
    units = {"tokens_per_s": "tokens/s", "percent": "%", "ms": "ms", "mb": "MB", "s": "s"}
    unit = next((unit for unit in units if metric.endswith(f"_{unit}")), None)
    if unit is None:
        return words(metric)
    return f"{words(metric.removesuffix(f'_{unit}')).replace('rss', 'RSS')}, {units[unit]}"


def latency(row: ArtifactRow) -> str:
    """How long a call takes; of a language model, how long a token and how many are written in a second."""
    found, decode = row.measurement("latency_ms"), row.measurement("decode_tokens_per_s")
    if found is None:
        return NONE
    if decode is None or decode.median is None:
        return milliseconds(found.median)
    return f"{milliseconds(found.median)} a token, {significant(decode.median)} tokens/s"


def beside_baseline(row: ArtifactRow) -> LatencyComparison | None:
    """How a file compares on the device of its `latency`."""
    found = row.measurement("latency_ms")
    return next((item for item in row.latency if found and item.device == found.device), None)


def words(name: str) -> str:
    """``expected_calibration_error`` -> ``expected calibration error``."""
    return name.replace("_", " ")


def speed(comparison: LatencyComparison | None) -> str:
    """What may be said of a file's speed: a claim only where the interval excludes 1."""
    if comparison is None or comparison.ratio is None:
        return NONE
    if comparison.verdict == "slower":
        return f"{times(1 / comparison.ratio)} slower"
    if comparison.verdict == "faster":
        return f"{times(comparison.ratio)} faster"
    return f"{times(comparison.ratio)}, no difference shown"


def speed_interval(comparison: LatencyComparison | None) -> str:
    """The 95 % interval of the number that `speed` says."""
    if comparison is None:
        return ""
    low, high = comparison.ci95
    if comparison.verdict == "slower" and low and high:
        return interval((1 / high, 1 / low))
    return interval((low, high))


def slower_than_parents(row: ArtifactRow) -> list[str]:
    """What the file came from and is slower than, a sentence for each."""
    return [
        f"on {found.device} it is {speed(found)} {speed_interval(found)} than {found.parent}"
        for found in row.parents
        if found.verdict == "slower"
    ]


def metric_notes(rows: Sequence[ArtifactRow]) -> list[str]:
    """On what language models were evaluated, once where it is the same for all; and why a metric is not known."""
    windows: dict[str, list[str]] = {}
    for row in rows:
        if said := row.evaluated:
            text = (
                f"{said['windows']:,} windows of {said['window']:,} tokens, one every {said['stride']:,}: "
                f"{said['tokens']:,} tokens predicted, {said['bytes']:,} bytes of text"
            )
            windows.setdefault(text, []).append(row.name)
    notes = [f"Evaluated on {text} ({', '.join(names)})." for text, names in windows.items()]
    for row in rows:
        unknown: dict[str, list[str]] = {}
        for name, reason in row.metric_reasons.items():
            unknown.setdefault(reason, []).append(words(name))
        notes += [f"{row.name}, {', '.join(names)}: {reason}." for reason, names in unknown.items()]
    return notes


def format_of(row: ArtifactRow) -> str:
    """File format and number format, as far as they are known; where blocks differ, how many bits that is in truth."""
    kind = row.quantization.get("kind") or row.quantization.get("scheme")
    numbers = str(kind) if kind else "float32"
    if (bits := row.quantization.get("bits_per_weight")) is not None:
        numbers += f", {bits:.2f} bits per weight"
    return row.format if row.status == "absent" else f"{row.format}, {numbers}"


def budget_numbers(row: BudgetRow) -> tuple[str, str]:
    """The value and the limit of a budget, as text."""
    if row.metric == "accuracy_drop":
        limit = f"≤ {100 * row.limit:.2f} points"
        return (NONE if row.value is None else f"{100 * row.value:.2f} points".replace("-", MINUS)), limit
    if row.metric.endswith("_ratio") or row.metric == "slower_than_parent":
        return times(row.value), f"≥ {times(row.limit)}"
    unit = "MB" if row.metric == "size_mb" else "ms"
    value = NONE if row.value is None else f"{significant(row.value)} {unit}"
    return value, f"≤ {significant(row.limit)} {unit}"


def conditions(item: BenchmarkConditions) -> list[str]:
    """How a device was measured, as short statements."""
    known = item.model_extra or {}
    said = []
    if "threads" in known:
        cores = known.get("pinned_to_cores")
        pinned = f", pinned to core {', '.join(map(str, cores))}" if cores else ""
        said.append(f"threads: {known['threads']}{pinned}")
    floor = next((row["median"] for row in known.get("floor", ()) if row["metric"] == "latency_ms"), None)
    if floor is not None:
        said.append(f"a call of an empty graph takes {milliseconds(floor)}")
    if "min_sample_ms" in known:
        said.append(f"a sample is the mean of calls lasting {known['min_sample_ms']:g} ms together")
    if known.get("memory"):
        said += _texts(known)
    loads = [known.get(f"load_average_{when}") for when in ("before", "after")]
    if all(loads):
        said.append("load average " + " → ".join(f"{load[0]:.2f}" for load in loads if load))
    if known.get("cpu_mhz_before"):
        said.append(f"clock {known['cpu_mhz_before']} MHz")
    if known.get("waiting_share") is not None:
        said.append(f"other programs held its core {metric(known['waiting_share'])} of the time, which is not counted")
    if "other_programs" in known:
        programs = [f"{other['name']} {other['cpu_percent']} %" for other in known["other_programs"]]
        said.append("also running: " + (", ".join(programs) or "nothing above 5 % of a core"))
    if known.get("temperature_c_before") and known.get("temperature_c_after"):
        said.append(f"temperature {known['temperature_c_before']:.0f} → {known['temperature_c_after']:.0f} °C")
    said += [known[name] for name in ("partial", "busy", "hardware") if known.get(name)]
    return [*said, *map(estimated, known.get("estimates", ())), *known.get("refused", ())]


def _texts(known: Mapping[str, Any]) -> list[str]:
    """How a language model was measured."""
    probe = known["memory"]
    pages = "huge pages" if probe["huge_pages"] else "ordinary pages"
    return [
        f"a prompt of {known['prompt_tokens']} tokens; {known['new_tokens']} written one by one",
        f"memory was read at {significant(probe['gb_per_s'])} GB/s between the rounds "
        f"({probe['block_bytes'] // 2**20} MiB a thread, in {pages}), which is 100 % of bandwidth",
    ]


def estimated(estimate: Mapping[str, Any]) -> str:
    """What an estimated latency rests on; `estimate` is the JSON of an `estimators.Estimate`."""
    return (
        f"estimated on the {estimate['unit'].upper()} ({estimate['precision']}): "
        f"{milliseconds(estimate['latency_ms'])}, 80 % interval {interval(estimate['interval80_ms'], unit=' ms')}; "
        f"fitted to {estimate['rows']} measured models, median error {metric(estimate['error'])} on one left out"
    )
