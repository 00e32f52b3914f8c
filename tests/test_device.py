"""Profiles: what the issue lists is there, and no fact stands without the page that says it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from edgeforge import device
from edgeforge.core.errors import ConfigurationError
from edgeforge.device import DeviceProfile, Fact, profiles, shipped_folder
from edgeforge.estimators.fitted import fits_of
from edgeforge.links import link_of

SHIPPED = [path.stem for path in sorted(shipped_folder().glob("*.yaml"))]
WANTED = [
    "host_cpu",
    "host_gpu",
    "browser",
    "apple_m3",
    "apple_m4",
    "core_ultra",
    "ryzen_ai",
    "snapdragon_x_elite",
    "pixel_8",
    "pixel_9",
    "galaxy_s24",
    "galaxy_s25",
    "snapdragon_7_gen_4",
    "iphone_15_pro",
    "iphone_16",
    "raspberry_pi_5",
    "rtx_4060",
    "rtx_4090",
    "l4",
    "h100",
]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No device of whoever runs the tests; files written here are a user's own."""
    monkeypatch.setattr(device, "own_folder", lambda: tmp_path)
    profiles.cache_clear()
    yield tmp_path
    profiles.cache_clear()


def facts(profile: DeviceProfile) -> Iterator[tuple[str, Fact[object]]]:
    for name in DeviceProfile.model_fields:
        if isinstance(value := getattr(profile, name), Fact):
            yield name, value


def test_every_device_that_was_promised_is_there() -> None:
    assert set(WANTED) <= set(profiles())


@pytest.mark.parametrize("name", SHIPPED)
def test_no_fact_comes_from_memory(name: str) -> None:
    for field, fact in facts(profiles()[name]):
        assert fact.source.strip(), field
        assert not any(word in fact.source.lower() for word in ("verify", "memory", "unknown")), field


def test_what_the_tables_do_not_know_is_null() -> None:
    # The specification table marks these rows "from memory (to verify)".
    for name in ("rtx_4060", "rtx_4090", "h100"):
        assert not list(facts(profiles()[name]))
    assert profiles()["pixel_8"].memory_bandwidth_gbs is None
    bandwidth = profiles()["galaxy_s24"].memory_bandwidth_gbs
    assert bandwidth is not None
    assert bandwidth.value == pytest.approx(2 * 4.8 * 8)


def test_a_fact_without_a_source_is_refused() -> None:
    raw = yaml.safe_load((shipped_folder() / "galaxy_s24.yaml").read_text(encoding="utf-8"))
    with pytest.raises(ValidationError, match="source"):
        DeviceProfile.model_validate({**raw, "ram_gb": {"value": 8}})
    with pytest.raises(ValidationError):
        DeviceProfile.model_validate({**raw, "ram_gb": 8})


def test_phones_take_the_integers_of_arm() -> None:
    assert {profiles()[name].layout for name in ("pixel_9", "galaxy_s25", "iphone_16")} == {"arm"}
    assert profiles()["core_ultra"].layout == "x86"


def test_estimates_are_of_known_devices() -> None:
    found = sorted(path.stem for path in (shipped_folder() / "estimates").glob("*.yaml"))
    assert found
    for name in found:
        fits = fits_of(name)
        assert name in profiles()
        assert fits is not None
        assert fits.device == name


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="galaxy_s24"):
        device.profile("galaxy_s42")


def test_a_users_own_file_takes_the_place_of_a_shipped_one(own: Path) -> None:
    raw = yaml.safe_load((shipped_folder() / "raspberry_pi_5.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump({**raw, "link": "ssh", "connection": {"host": "pi@pi.local"}})
    (own / "raspberry_pi_5.yaml").write_text(text, encoding="utf-8")
    assert profiles()["raspberry_pi_5"].link == "ssh"
    assert profiles()["raspberry_pi_5"].cpu is not None


def test_a_gpu_computes_over_whatever_reaches_it(own: Path) -> None:
    """A row that the CPU beside it computed would be an invented one."""
    assert profiles()["host_gpu"].connection == {"processor": "cuda"}
    assert profiles()["h100"].connection == {}, "nothing reaches it"
    (own / "h100.yaml").write_text("link: ssh\nconnection: {host: box}\n", encoding="utf-8")
    (own / "pixel_8.yaml").write_text("link: ssh\nconnection: {host: phone}\n", encoding="utf-8")
    profiles.cache_clear()
    assert profiles()["h100"].connection == {"host": "box", "processor": "cuda"}
    assert profiles()["pixel_8"].connection == {"host": "phone"}
    for name, found in profiles().items():
        if found.link is not None:
            link_of(found.link, found.connection)  # understands what is said to it
            assert ("processor" in found.connection) == (found.family == "gpu"), name


def test_a_gpu_that_is_told_to_use_the_cpu_is_refused(own: Path) -> None:
    (own / "l4.yaml").write_text("link: local\nconnection: {processor: cpu}\n", encoding="utf-8")
    profiles.cache_clear()
    with pytest.raises(ConfigurationError, match="leave `processor` out"):
        profiles()


def test_a_link_that_cannot_use_a_gpu_is_refused(own: Path) -> None:
    (own / "l4.yaml").write_text("link: adb\n", encoding="utf-8")
    profiles.cache_clear()
    found = profiles()["l4"]
    with pytest.raises(ConfigurationError, match="unknown key 'processor'"):
        link_of(str(found.link), found.connection)
    native = link_of("ssh", {"host": "box", "runner": "native", "processor": "cuda"})
    assert "runner: python" in str(native.unavailable("onnxruntime"))
