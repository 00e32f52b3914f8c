"""Writing a torch model as a file format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.kinds import OneOf
from edgeforge.core.stage import Job, Stage
from edgeforge.exporters import Exporter


class Export(Stage):
    """Write the model as the exporter's format."""

    kind: Literal["export"] = "export"
    exporter: Annotated[Exporter, OneOf("edgeforge.exporters")] = Field(description="The file format.")

    in_chain: ClassVar[bool] = False

    def makes_format(self) -> str:
        return self.exporter.kind

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        return self.exporter.export(inputs["model"], job)
