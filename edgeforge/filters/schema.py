"""Answers of the asked form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from edgeforge.data._json_schema import JsonSchema, read_json
from edgeforge.filters import Context, Filter, Sample


class Schema(Filter):
    """Keep answers that are JSON and satisfy a JSON schema, alone or in one code fence."""

    kind: Literal["schema"] = "schema"
    json_schema: Mapping[str, Any] = Field(description="The schema; references to other files are refused.")

    needs: ClassVar[tuple[str, ...]] = ("jsonschema",)
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.data._json_schema",)

    def reasons(self, samples: Sequence[Sample], context: Context) -> list[str | None]:
        schema = JsonSchema(self.json_schema, "json_schema")
        return [self._reason(schema, sample.text) for sample in samples]

    def _reason(self, schema: JsonSchema, text: str) -> str | None:
        try:
            return schema.problem(read_json(text))
        except ValueError:
            return "no JSON"
