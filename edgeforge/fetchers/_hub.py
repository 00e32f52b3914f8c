"""The Hugging Face hub as the first of two sources."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from typing import TypeVar

from edgeforge.core.errors import EnvironmentProblem, MissingExtraError
from edgeforge.core.extras import require

HUB_TIMEOUT_S = 10

T = TypeVar("T")


def hub_answers() -> bool:
    """Whether the hub can be asked. A quick look first: the library itself retries for half a minute."""
    try:
        hub = require("huggingface_hub.constants", "hub")
        if hub.HF_HUB_OFFLINE:
            return False
        request = urllib.request.Request(hub.ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def hub_first(chosen: str | None, other: str, bring: Callable[[str], T], say: Callable[[str], None]) -> T:
    """What `bring` gives for the chosen source; without one the hub's where it answers and is sound, else `other`'s."""
    if chosen is None and hub_answers():
        try:
            return bring("hub")
        except (EnvironmentProblem, MissingExtraError) as error:
            say(f"{error}\nso {other} is tried")
    return bring(chosen or other)
