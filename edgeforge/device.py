"""Device profiles: plain YAML files under devices/, one per device a target can name.

Every fact stands with the page that says it; what no page says is null, and nothing here guesses it.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import yaml
from platformdirs import user_config_path
from pydantic import Field, ValidationError, model_validator

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.spec import Spec, perhaps

Layout = Literal["x86", "arm"]
"""Which integer types a processor multiplies fast: u8 by s8 (x86 VNNI) or s8 by s8 (Arm dot product)."""


Value = TypeVar("Value")


class Fact(Spec, Generic[Value]):
    """Something known of a device, and who says so."""

    value: Value
    source: str = Field(min_length=1, description="The page or file that says it.")


class Cores(Spec):
    """Cores of one design and clock. Cores of Apple's are told apart as performance and efficiency."""

    count: int = Field(ge=1)
    core: str
    ghz: float | None = Field(default=None, gt=0, description="Highest clock (GHz).")


class DeviceProfile(Spec):
    """What is known of a device before anything runs on it."""

    name: str
    family: Literal["host", "phone", "laptop", "board", "gpu", "browser", "emulator"]
    title: str = Field(description="The name people know it by.")
    instruction_set: Literal["host", "x86_64", "aarch64"] = Field(
        description="Decides the integer layout of quantized files; `host` means this machine's own."
    )
    link: str | None = Field(description="How measurements reach it; null: not set up, so its rows are not measured.")
    reachable_by: tuple[str, ...] = Field(default=(), description="Links that can reach it once it is set up.")
    bundle: Literal["ios"] | None = Field(
        default=None, description="The kind of bundle whose own benchmark measures it, without a link."
    )
    connection: dict[str, str | int] = Field(
        default={}, description="What the link must know to find it: {host: pi@raspberrypi.local} for ssh."
    )
    chip: Fact[str] | None = Field(default=None, description="Its processor, or system on a chip, by its trade name.")
    cpu: Fact[tuple[Cores, ...]] | None = Field(default=None, description="Its cores, fastest first.")
    cpu_features: Fact[tuple[str, ...]] | None = Field(
        default=None, description="Instructions that matter for small integers: dotprod, i8mm, sme, avx512_vnni."
    )
    ram_gb: Fact[float] | None = Field(default=None, description="Memory (10^9 bytes).")
    memory_bandwidth_gbs: Fact[float] | None = Field(default=None, description="Nominal peak (10^9 bytes a second).")
    gpu: Fact[str] | None = None
    npu: Fact[str] | None = None
    int8_tops: Fact[float] | None = Field(
        default=None, description="Nominal peak of its fastest unit (10^12 operations a second; a product counts two)."
    )
    os: Fact[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_gpu_computes(cls, said: Any) -> Any:
        """Whatever reaches a GPU is told to compute there: numbers of the CPU beside it would be taken for its own."""
        if not isinstance(said, dict) or said.get("family") != "gpu" or said.get("link") is None:
            return said
        connection = said.get("connection", {})
        if not isinstance(connection, dict):
            return said  # refused by its type
        if connection.get("processor", "cuda") != "cuda":
            raise ValueError("what is measured of a GPU is computed by it: leave `processor` out of its connection")
        return {**said, "connection": {**connection, "processor": "cuda"}}

    @property
    def by_bundle(self) -> str | None:
        """How a bundle's benchmark measures it, as a sentence's end; None where none does."""
        if self.bundle is None:
            return None
        return (
            f"`edgeforge bundle RUN --target {self.bundle}` writes a benchmark to run there, for `report RUN --merge`"
        )

    @property
    def layout(self) -> Layout:
        machine = platform.machine() if self.instruction_set == "host" else self.instruction_set
        return "arm" if machine.lower() in ("aarch64", "arm64") else "x86"


def shipped_folder() -> Path:
    """Where the profiles that come with EdgeForge lie; ``estimates/`` in it holds what estimators know of them."""
    # A wheel carries devices/ inside the package; a checkout has it beside the package.
    inside = Path(__file__).parent / "devices"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "devices"


def own_folder() -> Path:
    """Where users describe devices of their own, or how one of those above is reached."""
    return user_config_path("edgeforge", appauthor=False) / "devices"


@cache
def profiles() -> dict[str, DeviceProfile]:
    """Every device profile by name; a user's own are added, or say what is different about a shipped one.

    Raises TypeError where a shipped file's name and its `name` differ, ConfigurationError for a user's own file that
    is not as it should be.
    """
    found = {}
    for path in sorted(shipped_folder().glob("*.yaml")):
        profile = DeviceProfile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        if profile.name != path.stem:
            raise TypeError(f"{path} must have name: {path.stem}")
        found[profile.name] = profile
    own = {path.stem: _own(path, found.get(path.stem)) for path in sorted(own_folder().glob("*.yaml"))}
    return found | own


def _own(path: Path, shipped: DeviceProfile | None) -> DeviceProfile:
    """A user's file. One with the name of a shipped device says only what is different."""
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ConfigurationError("this is no device file", where=str(path), remedy="see docs/devices.md")
        known = shipped.model_dump() if shipped else {}
        profile = DeviceProfile.model_validate({**known, "name": path.stem, **said})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigurationError(f"{place}: {first['msg']}", where=str(path), remedy="see docs/devices.md") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"this is no device file: {reason}", where=str(path)) from error
    if profile.name != path.stem:
        raise ConfigurationError(f"its name must be that of the file: {path.stem}", where=str(path))
    return profile


def profile(name: str, *, where: str | None = None) -> DeviceProfile:
    """One device by name. Raises ConfigurationError with the nearest known name."""
    known = profiles()
    if name not in known:
        raise ConfigurationError(
            perhaps("unknown device", name, list(known)), where=where, remedy="see `edgeforge devices`"
        )
    return known[name]
