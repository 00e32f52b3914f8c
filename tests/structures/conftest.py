"""A job without data, models that the shared families do not cover, and small transformers with data of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from edgeforge.core.stage import Job
from edgeforge.core.task import NO_LABEL, Input, Interface, Tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
ENCODERS = ("bert", "distilbert", "electra", "roberta", "vit")
VOCABULARY = 60


class Progress:
    """Remembers its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def job(tiny_interface: Interface) -> Callable[..., Any]:
    """seed -> a job whose task knows its interface and nothing else."""
    task: Any = SimpleNamespace(open=lambda model=None: SimpleNamespace(interface=tiny_interface))

    def make(seed: int = 0) -> Job:
        return Job(task, Path(), seed, lambda: pytest.fail("no device is needed"), Progress())  # type: ignore[arg-type,return-value]

    return make


@pytest.fixture(params=["bottleneck", "convnext", "mobilenet_v2", "resnet", "vit"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """Each family in turn, and a ResNet of bottlenecks."""
    if request.param != "bottleneck":
        return tiny_model(request.param)
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="bottleneck", num_labels=4
    )
    made = ResNetForImageClassification(config)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    return made.eval()


def text_model(family: str) -> PreTrainedModel:
    """A classifier of four labels: 3 blocks of 4 heads of 8, 48 neurons. Its weights are large enough to matter."""
    import torch
    import transformers

    names = {"bert": "Bert", "distilbert": "DistilBert", "electra": "Electra", "roberta": "Roberta"}
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    if family == "distilbert":
        sizes = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
    if family == "electra":
        sizes["embedding_size"] = 16
    config = getattr(transformers, f"{names[family]}Config")(
        **sizes, vocab_size=VOCABULARY, max_position_embeddings=40, num_labels=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{names[family]}ForSequenceClassification")(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    made: PreTrainedModel = model.float().eval()
    return made


@dataclass
class Samples:
    """Samples of random numbers with labels; texts of 4 to 9 tokens, padded to the longest of a batch."""

    interface: Interface
    asked: list[str] = field(default_factory=list)

    def size(self, split: str) -> int:
        return 40

    def batch(self, split: str, indices: Sequence[int], *, augment_seed: int | None = None) -> dict[str, torch.Tensor]:
        import torch

        self.asked.append(split)
        labels = {"labels": torch.tensor([index % 4 for index in indices]), "rows": torch.tensor(list(indices))}
        if self.interface.tokens is None:
            made = [torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(index)) for index in indices]
            return {"pixel_values": torch.stack(made), **labels}
        longest = max(4 + index % 6 for index in indices)
        ids = torch.full((len(indices), longest), self.interface.tokens.pad_id)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(indices):
            length = 4 + index % 6
            generator = torch.Generator().manual_seed(index)
            ids[row, :length] = torch.randint(5, VOCABULARY, (length,), generator=generator)
            mask[row, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, **labels}


@dataclass
class Subject:
    """A model and a job whose task has data for it."""

    model: PreTrainedModel
    job: Job
    data: Samples

    def answer(self, model: PreTrainedModel | None = None) -> torch.Tensor:
        import torch

        batch = self.data.batch("test", range(7))
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "rows")}
        with torch.no_grad():
            logits: torch.Tensor = (model or self.model)(**inputs).logits
        return logits

    def loss(self, model: PreTrainedModel, rows: Sequence[int] = range(40)) -> float:
        """The mean loss of these training samples, one by one: padding plays no part."""
        import torch
        from torch.nn import functional

        total = 0.0
        for row in rows:
            batch = self.data.batch("train", [row])
            inputs = {name: value for name, value in batch.items() if name not in ("labels", "rows")}
            with torch.no_grad():
                total += float(functional.cross_entropy(model(**inputs).logits, batch["labels"]))
        return total / len(rows)


@pytest.fixture
def subject_of(
    tiny_interface: Interface, tiny_model: Callable[[str], PreTrainedModel], tmp_path: Path
) -> Callable[[str], Subject]:
    """Family name -> its small encoder with 40 training samples."""

    def make(family: str) -> Subject:
        import torch
        from torch.nn import functional

        interface, model = tiny_interface, tiny_model("vit") if family == "vit" else text_model(family)
        if family != "vit":
            pad = int(model.config.pad_token_id)
            interface = Interface(
                inputs=(
                    Input("input_ids", (12,), "int64", variable=True, fill=3),
                    Input("attention_mask", (12,), "int64", variable=True, fill=1),
                ),
                output_name="logits",
                labels=tiny_interface.labels,
                tokens=Tokens(VOCABULARY, 12, pad),
            )
        data = Samples(interface)
        task: Any = SimpleNamespace(
            open=lambda model=None: data, loss=lambda logits, batch: functional.cross_entropy(logits, batch["labels"])
        )
        accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
        return Subject(model, Job(task, tmp_path, 0, lambda: accelerator, Progress(), tmp_path), data)

    return make


@pytest.fixture(params=ENCODERS)
def subject(request: pytest.FixtureRequest, subject_of: Callable[[str], Subject]) -> Subject:
    """Each encoder family in turn."""
    return subject_of(request.param)


class Windows(Samples):
    """Windows of 9 to 12 tokens; the next token is every position's label, but for the last and some others."""

    def batch(self, split: str, indices: Sequence[int], *, augment_seed: int | None = None) -> dict[str, torch.Tensor]:
        import torch

        self.asked.append(split)
        assert self.interface.tokens is not None
        ids = torch.full((len(indices), 12), self.interface.tokens.pad_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, NO_LABEL)
        for row, index in enumerate(indices):
            length, generator = 9 + index % 4, torch.Generator().manual_seed(index)
            size = self.interface.tokens.vocabulary_size
            ids[row, :length] = torch.randint(3, size, (length,), generator=generator)
            mask[row, :length] = 1
            labels[row, index % 5 : length - 1] = ids[row, index % 5 + 1 : length]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "rows": torch.tensor(list(indices))}


@dataclass
class Writer(Subject):
    """A language model and windows for it."""

    def loss(self, model: PreTrainedModel, rows: Sequence[int] = range(40)) -> float:
        """The mean over all labelled tokens, window by window and without padding."""
        import torch

        total, count = 0.0, 0
        for row in rows:
            batch = self.data.batch("train", [row])
            length = int(batch["attention_mask"].sum())
            with torch.no_grad():
                likely = model(input_ids=batch["input_ids"][:, :length]).logits.double().log_softmax(-1)[0]
            for place, label in enumerate(batch["labels"][0, :length].tolist()):
                if label != NO_LABEL:
                    total, count = total - float(likely[place, label]), count + 1
        return total / count


@pytest.fixture
def writer_of(tiny_lm: Callable[[str], PreTrainedModel], tmp_path: Path) -> Callable[[str], Writer]:
    """Family name -> its tiny language model with 40 windows of made-up tokens."""

    def make(family: str) -> Writer:
        import torch
        from torch.nn import functional

        model = tiny_lm(family)
        inputs = [Input(name, (12,), "int64", variable=True, fill=1) for name in ("input_ids", "attention_mask")]
        tokens = Tokens(model.config.vocab_size, 12, 2)
        data = Windows(Interface(inputs=tuple(inputs), output_name="logits", labels=(), tokens=tokens))

        def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())

        task: Any = SimpleNamespace(open=lambda model=None: data, loss=loss)
        accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
        return Writer(model, Job(task, tmp_path, 0, lambda: accelerator, Progress(), tmp_path), data)

    return make


@pytest.fixture(params=DECODERS)
def writer(request: pytest.FixtureRequest, writer_of: Callable[[str], Writer]) -> Writer:
    """Each decoder family in turn."""
    return writer_of(request.param)
