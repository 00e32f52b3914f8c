"""A model of timm (https://github.com/huggingface/pytorch-image-models), in transformers' wrapper."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.core.artifact import hash_file
from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.extras import require
from edgeforge.core.spec import digest_of, perhaps
from edgeforge.models import Model

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface, Task


class Timm(Model):
    """An image model by its timm name, with timm's own initial weights or its published ones.

    What needs EdgeForge's own knowledge of a family (students by width or layers, config-native pruning) does not
    work for it. Needs a torchvision that matches the installed torch.
    """

    kind: Literal["timm"] = "timm"
    name: str = Field(
        pattern=r"^[a-z0-9_]+(\.[A-Za-z0-9_]+)?$", description="timm's name, with a tag if wanted: resnet18.a1_in1k."
    )
    pretrained: bool = Field(default=False, description="Start from the published weights, from the Hugging Face hub.")
    new_head: bool = Field(
        default=False, description="Replace the published classifier by a fresh one for the task's labels."
    )

    needs: ClassVar[tuple[str, ...]] = ("timm",)
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.building",
        "edgeforge.models.loading",
        "edgeforge.models.surgery",
    )

    @model_validator(mode="after")
    def _a_fresh_model_has_a_fresh_head(self) -> Self:
        if self.new_head and not self.pretrained:
            raise ValueError("new_head is for pretrained models; without them every layer is new")
        return self

    def digest(self) -> str:
        if not self.pretrained:
            return super().digest()
        from edgeforge.models.folder import model_files

        files = {path.name: hash_file(path) for path in model_files(self._published())}
        return digest_of({**self.model_dump(mode="json"), "files": files})

    def build(self, task: Task, interface: Interface) -> PreTrainedModel:
        from edgeforge.models.building import adapt, check_fits
        from edgeforge.models.loading import load, on_meta

        where = f"model timm/{self.name}"
        if self.pretrained:
            return adapt(load(self._published()), task, interface, new_head=self.new_head, where=where)
        timm = self._library()
        from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

        from edgeforge.models.surgery import name_labels

        arguments = self._arguments(timm, interface)
        own = timm.create_model(self.name, num_classes=len(interface.labels), **arguments)
        config = TimmWrapperConfig(architecture=self.name, model_args=arguments)
        name_labels(config, interface.labels)
        model = on_meta(TimmWrapperForImageClassification, config)
        model.timm_model.load_state_dict(own.state_dict())  # the wrapper draws weights its own way
        check_fits(model, interface, where=where)
        return model.float().eval()

    def _arguments(self, timm: ModuleType, interface: Interface) -> dict[str, Any]:
        channels, height, width = interface.image_shape
        arguments: dict[str, Any] = {"in_chans": channels}
        if timm.models.get_pretrained_cfg(self.name, allow_unregistered=True).fixed_input_size:
            if height != width:
                raise ModelError(
                    f"it takes square images, the data has {height}x{width}",
                    where=f"model timm/{self.name}",
                    remedy="set the task's image_size",
                )
            arguments["img_size"] = height
        return arguments

    def _published(self) -> Path:
        """The local folder with the published config and weights."""
        from edgeforge.models._hub import fetch

        published = self._library().models.get_pretrained_cfg(self.name, allow_unregistered=True)
        if published is None or not published.hf_hub_id:
            raise ModelError(
                "timm has published no weights for it on the hub",
                where=f"model timm/{self.name}",
                remedy="set `pretrained: false`, or choose another tag",
            )
        return fetch(published.hf_hub_id, None)

    def _library(self) -> ModuleType:
        """timm, once it is known to have this model."""
        require("torchvision", "timm")
        try:
            timm = require("timm", "timm")
        except RuntimeError as error:  # a torchvision built for another torch registers no operators
            raise EnvironmentProblem(
                f"timm cannot be imported: {error}",
                where=f"model timm/{self.name}",
                remedy="install the torchvision that belongs to this torch, from the same index",
            ) from error
        if not timm.is_model(self.name.partition(".")[0]):
            raise ModelError(
                perhaps("timm has no model", self.name, timm.list_models())[:300],
                where="model",
                remedy="see timm.list_models()",
            )
        return timm
