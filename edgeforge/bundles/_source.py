"""One shipped artifact of a finished run, with all that is recorded of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from edgeforge.bundles import Bundle
from edgeforge.bundles._contract import Contract
from edgeforge.core.artifact import hash_file
from edgeforge.core.errors import ConfigurationError
from edgeforge.core.report import ArtifactRow, Report
from edgeforge.core.spec import perhaps
from edgeforge.verification import _golden

AGAIN = "run the pipeline again"


@dataclass(frozen=True)
class Source:
    """`run` is the run's folder, `row` the artifact's row in its report."""

    run: Path
    report: Report
    row: ArtifactRow

    @property
    def folder(self) -> Path:
        """The artifact's own folder: the model and what lies beside it."""
        return self.run / "artifacts" / self.row.name

    @property
    def identifier(self) -> str:
        """A name that every language takes: lower-case letters, digits and underscores, a letter first."""
        words = re.sub(r"[^a-z0-9]+", "_", f"{self.report.pipeline}_{self.row.name}".lower()).strip("_")
        return words if words[:1].isalpha() else f"model_{words}"

    def contract(self, target: str, **fields: Any) -> Contract:
        """`fields` and what the report says of this artifact. Devices' own numbers stay in the report."""
        report, row = self.report, self.row
        return Contract(
            identifier=self.identifier,
            artifact=row.name,
            target=target,
            pipeline=report.pipeline,
            run=report.run,
            created=report.created,
            edgeforge=report.edgeforge,
            task=report.task,
            metrics=row.metrics,
            quantization=row.quantization,
            **fields,
        )

    @cached_property
    def pipeline(self) -> dict[str, Any]:
        """pipeline.yaml as plain data. Raises ConfigurationError where it is gone or damaged."""
        path = self.run / "pipeline.yaml"
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigurationError(f"it cannot be read: {error}", where=str(path), remedy=AGAIN) from error
        if not isinstance(content, dict):
            raise ConfigurationError("not a pipeline", where=str(path), remedy=AGAIN)
        return content

    @cached_property
    def golden(self) -> _golden.Golden | None:
        """Recorded answers. Raises ConfigurationError where they are not those the report speaks of."""
        if self.row.golden is None:
            return None
        path = self.run / self.row.golden.path
        if not path.is_file() or hash_file(path) != self.row.golden.sha256:
            raise ConfigurationError("the recorded answers are gone or changed", where=str(path), remedy=AGAIN)
        return _golden.read(path)


def open_source(run: Path, artifact: str | None, bundle: Bundle) -> Source:
    """The artifact that a bundle is made of.

    Raises ConfigurationError where the folder holds no run, and where the artifact is unknown, not shipped, of a
    format that the platform cannot use, changed since it was verified, or not named though there are several.
    """
    path = run / "report.json"
    try:
        report = Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"no run to bundle: {error.strerror}", where=str(path), remedy="name a run's folder, such as runs/NAME"
        ) from error
    except ValidationError as error:
        raise ConfigurationError("not a report of EdgeForge", where=str(path), remedy=AGAIN) from error
    row = _named(report, artifact, bundle) if artifact else _only(report, bundle)
    source = Source(run, report, row)
    _check_whole(source)
    return source


def _named(report: Report, artifact: str, bundle: Bundle) -> ArtifactRow:
    row = report.artifact(artifact)
    if row is None:
        raise ConfigurationError(
            perhaps("unknown artifact", artifact, [item.name for item in report.artifacts]), where="--artifact"
        )
    if row.status != "shipped":
        raise ConfigurationError(
            f"'{artifact}' is {row.status}: {row.reason}", where="--artifact", remedy="only shipped files are bundled"
        )
    if row.format not in bundle.formats:
        raise ConfigurationError(
            f"'{artifact}' is {row.format}, and {bundle.kind} takes {' or '.join(bundle.formats)}",
            where="--artifact",
            remedy=f"add a target with `export: {bundle.formats[0]}` to the pipeline",
        )
    return row


def _only(report: Report, bundle: Bundle) -> ArtifactRow:
    """The one target that fits. The baseline is bundled only by name."""
    fitting = [row for row in report.targets() if row.status == "shipped" and row.format in bundle.formats]
    if not fitting:
        raise ConfigurationError(
            f"this run shipped no target as {' or '.join(bundle.formats)}, which {bundle.kind} takes",
            where=report.run,
            remedy=f"add a target with `export: {bundle.formats[0]}` to the pipeline, or name one with --artifact",
        )
    if len(fitting) > 1:
        raise ConfigurationError(
            f"several artifacts fit: {', '.join(row.name for row in fitting)}", where="--artifact", remedy="name one"
        )
    return fitting[0]


def _check_whole(source: Source) -> None:
    for name, digest in source.row.files.items():
        path = source.folder / name
        if not path.is_file() or hash_file(path) != digest:
            state = "changed since it was verified" if path.is_file() else "gone"
            raise ConfigurationError(f"this file is {state}", where=str(path), remedy=AGAIN)
