"""What a device was doing while it was measured, asked in one command that any POSIX shell understands.

What cannot be read is left out: containers hide temperatures, Android hides some clocks, macOS has no /proc.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COMMAND = r"""
exec 2>/dev/null
echo "system $(uname -s -r -m)"
echo "cores $(getconf _NPROCESSORS_ONLN || nproc)"
echo "model $(getprop ro.product.model || tr -d '\0' < /proc/device-tree/model)"
echo "soc $(getprop ro.soc.model)"
echo "android $(getprop ro.build.version.release)"
sed -n 's/^model name[^:]*: /cpu /p;s/^Hardware[^:]*: /cpu /p' /proc/cpuinfo | head -n 1
sed -n 's/^CPU part[^:]*: /part /p' /proc/cpuinfo | sort -u
sysctl -n machdep.cpu.brand_string | sed 's/^/cpu /'
sysctl -n vm.loadavg | sed 's/[{}]//g;s/^/load /'
echo "load $(cat /proc/loadavg)"
head -n 1 /proc/stat | sed 's/^cpu/ticks/'
for folder in /sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
  echo "clock $(cat $folder/scaling_cur_freq) $(cat $folder/scaling_max_freq) $(cat $folder/scaling_governor)"
done
for folder in /sys/class/thermal/thermal_zone*; do echo "zone $(cat $folder/temp) $(cat $folder/type)"; done
for folder in /sys/class/hwmon/hwmon*; do
  name=$(cat $folder/name)
  case "$name" in
    coretemp|k10temp|zenpower) for file in $folder/temp*_input; do echo "zone $(cat $file) $name"; done ;;
  esac
done
true
"""

DISTURBING_CORES = 0.5
DISTURBING_SHARE = 0.05
_PROCESSOR_ZONE = re.compile(
    "cpu|soc|pkg|coretemp|k10temp|zenpower|tsens|big|mid|little|apc|gold|silver|prime", re.IGNORECASE
)


@dataclass(frozen=True)
class State:
    """One answer. `ticks` are (busy, all) since the device started; temperatures are in degrees Celsius by zone."""

    at_s: float
    words: Mapping[str, str]
    load: tuple[float, ...] = ()
    ticks: tuple[int, int] | None = None
    clocks_mhz: tuple[int, ...] = ()
    clock_limits_mhz: tuple[int, ...] = ()
    governors: tuple[str, ...] = ()
    temperatures: Mapping[str, float] = field(default_factory=dict)

    @property
    def cores(self) -> int | None:
        return int(self.words["cores"]) if self.words.get("cores", "").isdigit() else None


def parse(text: str) -> State:
    """What `COMMAND` printed."""
    lines = [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines())]
    clocks = [rest.split() for word, rest in lines if word == "clock"]
    words = {word: rest for word, rest in lines if rest and word in ("system", "cores", "model", "soc", "android")}
    cpu = [rest for word, rest in lines if word == "cpu" and rest]
    parts = [rest for word, rest in lines if word == "part"]
    if cpu or parts:
        words["cpu"] = cpu[0] if cpu else f"Arm parts {', '.join(parts)}"
    return State(
        at_s=time.monotonic(),
        words=words,
        load=next((_numbers(rest, 3) for word, rest in lines if word == "load" and rest), ()),
        ticks=next((_ticks(rest) for word, rest in lines if word == "ticks"), None),
        clocks_mhz=tuple(int(item[0]) // 1000 for item in clocks if item and item[0].isdigit()),
        clock_limits_mhz=tuple(int(item[1]) // 1000 for item in clocks if len(item) == 3 and item[1].isdigit()),
        governors=tuple(sorted({item[2] for item in clocks if len(item) == 3})),
        temperatures=_temperatures([rest for word, rest in lines if word == "zone"]),
    )


def here() -> State:
    """What this machine says; nothing where it has no POSIX shell."""
    shell = shutil.which("sh")
    if shell is None:
        return parse("")
    done = subprocess.run(
        [shell, "-c", COMMAND], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    return parse(done.stdout)


def heat(before: State, after: State | None) -> dict[str, Any]:
    """The hottest zone of the processor, or of the device where none is named so, and its temperatures (deg C)."""
    zone = _hottest(before)
    found: dict[str, Any] = {"temperature_zone": zone}
    for when, state in (("before", before), ("after", after)):
        if state is not None:
            found[f"temperature_c_{when}"] = state.temperatures.get(zone) if zone else None
    return found


def between(before: State, after: State | None, *, processor_s: float, waiting_share: float | None) -> dict[str, Any]:
    """The conditions of a measurement whose own processes used `processor_s` of processor time."""
    found: dict[str, Any] = {**before.words, "cores": before.cores, **heat(before, after)}
    for when, state in (("before", before), ("after", after)):
        if state is None:
            continue
        found[f"load_average_{when}"] = list(state.load) or None
        found[f"cpu_mhz_{when}"] = max(state.clocks_mhz, default=None)
    found["cpu_mhz_limit"] = max(before.clock_limits_mhz, default=None)
    found["governors"] = list(before.governors)
    others = _others(before, after, processor_s) if after else None
    found["other_cores_busy"] = others
    found["seconds"] = round(after.at_s - before.at_s, 3) if after else None
    found["busy"] = _busy(others, before.cores, waiting_share)
    return found


def _others(before: State, after: State, processor_s: float) -> float | None:
    """How many cores other programs kept busy, on average."""
    seconds = after.at_s - before.at_s
    if not before.ticks or not after.ticks or not before.cores or after.ticks[1] <= before.ticks[1]:
        return None
    share = (after.ticks[0] - before.ticks[0]) / (after.ticks[1] - before.ticks[1])
    return round(max(0.0, share * before.cores - processor_s / seconds), 2)


def _busy(others: float | None, cores: int | None, waiting_share: float | None) -> str | None:
    said = []
    if others is not None and others >= DISTURBING_CORES:
        said.append(f"other programs kept {others:.1f} of its {cores} cores busy")
    if waiting_share is not None and waiting_share >= DISTURBING_SHARE:
        said.append(f"they held the measured program's core {100 * waiting_share:.0f} % of the time")
    return f"the device was busy: {'; '.join(said)}" if said else None


def _ticks(text: str) -> tuple[int, int] | None:
    """user nice system idle iowait irq softirq steal (guest time is part of user time)."""
    numbers = [int(word) for word in text.split()[:8] if word.isdigit()]
    return (sum(numbers) - numbers[3] - numbers[4], sum(numbers)) if len(numbers) >= 5 else None


def _numbers(text: str, count: int) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split()[:count])
    except ValueError:
        return ()


def _temperatures(zones: list[str]) -> dict[str, float]:
    """By name of the zone; of several sensors of one name, the hottest."""
    found: dict[str, float] = {}
    for line in zones:
        value, _, name = line.partition(" ")
        if value.lstrip("-").isdigit():
            celsius = int(value) / 1000 if abs(int(value)) > 1000 else float(value)  # some kernels leave out the milli
            if 0 < celsius < 150:  # sensors that are switched off say 0, or nonsense
                found[name or "zone"] = max(round(celsius, 1), found.get(name or "zone", 0.0))
    return found


def _hottest(state: State) -> str | None:
    zones = [name for name in state.temperatures if _PROCESSOR_ZONE.search(name)] or list(state.temperatures)
    return max(zones, key=lambda name: state.temperatures[name], default=None)
