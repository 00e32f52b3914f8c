"""What every part of a report is: plain, frozen data that JSON can say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Part(BaseModel):
    """Base of all that stands in a report. Unknown fields are ignored; NaN and Infinity become null."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=(), populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        return finite(value)


def finite(value: Any) -> Any:
    """The same plain data with null for every NaN and Infinity, which JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
