"""Device profiles: plain YAML files under devices/, one per device a target can name."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.spec import Spec, perhaps

Layout = Literal["x86", "arm"]
"""Which integer types a processor multiplies fast: u8 by s8 (x86 VNNI) or s8 by s8 (Arm dot product)."""


class DeviceProfile(Spec):
    """What is known of a device before anything runs on it."""

    name: str
    family: Literal["host", "phone", "laptop", "gpu", "browser"]
    title: str = Field(description="The name people know it by.")
    instruction_set: Literal["host", "x86_64", "aarch64"] = Field(
        description="Decides the integer layout of quantized files; `host` means this machine's own."
    )
    link: str | None = Field(description="How measurements reach it; null: not reachable yet, so its rows are absent.")
    source: str | None = Field(default=None, description="Where the facts above come from.")

    @property
    def layout(self) -> Layout:
        machine = platform.machine() if self.instruction_set == "host" else self.instruction_set
        return "arm" if machine.lower() in ("aarch64", "arm64") else "x86"


def _folder() -> Path:
    # A wheel carries devices/ inside the package; a checkout has it beside the package.
    inside = Path(__file__).parent / "devices"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "devices"


@cache
def profiles() -> dict[str, DeviceProfile]:
    """Every device profile by name. Raises TypeError where a file's name and its `name` differ."""
    found = {}
    for path in sorted(_folder().glob("*.yaml")):
        profile = DeviceProfile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        if profile.name != path.stem:
            raise TypeError(f"{path} must have name: {path.stem}")
        found[profile.name] = profile
    return found


def profile(name: str, *, where: str | None = None) -> DeviceProfile:
    """One device by name. Raises ConfigurationError with the nearest known name."""
    known = profiles()
    if name not in known:
        raise ConfigurationError(
            perhaps("unknown device", name, list(known)), where=where, remedy="see `edgeforge devices`"
        )
    return known[name]
