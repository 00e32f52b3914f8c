"""A model somebody trained: a local folder, or a model of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import hash_file
from edgeforge.core.errors import ModelError
from edgeforge.core.spec import digest_of
from edgeforge.models import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface, Task


class Pretrained(Model):
    """Config and safetensors weights, as ``save_pretrained`` or EdgeForge wrote them. Pickles are refused."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = Field(min_length=1, description="A folder with config.json and safetensors, or a hub id (owner/name).")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub model; absent: its newest.")
    new_head: bool = Field(
        default=False, description="Replace the classifier by a fresh one for the task's labels, to be trained."
    )

    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.building",
        "edgeforge.models.loading",
        "edgeforge.models.surgery",
    )

    def digest(self) -> str:
        from edgeforge.models import tokenizer
        from edgeforge.models.folder import model_files, read_config_data, tensor_shapes

        folder = self.folder()
        read_config_data(folder)
        tensor_shapes(folder)  # refuses damaged files before any work is planned on them
        files = {path.name: hash_file(path) for path in model_files(folder)}
        if tokenizer.present(folder):
            files["tokenizer"] = tokenizer.digest(folder)
        return digest_of({"kind": self.kind, "new_head": self.new_head, "files": files})

    def untrained(self) -> bool:
        return self.new_head

    def build(self, task: Task, interface: Interface) -> PreTrainedModel:
        from edgeforge.models.building import adapt
        from edgeforge.models.loading import load

        model = load(self.folder())
        return adapt(model, task, interface, new_head=self.new_head, where=f"model {self.path}")

    def folder(self) -> Path:
        path = Path(self.path).expanduser()
        if path.exists():
            if self.revision is not None:
                raise ModelError(
                    "a local folder has no revisions",
                    where=f"model {self.path}",
                    remedy="remove `revision`, or rename the folder if the hub model was meant",
                )
            return path
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", self.path):
            raise ModelError(
                "there is no such folder, and it is no hub id (owner/name)",
                where=f"model {self.path}",
                remedy="check the path; it is taken from the folder the command runs in",
            )
        from edgeforge.models._hub import fetch

        return fetch(self.path, self.revision)
