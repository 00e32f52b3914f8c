"""Fixtures for every test: a small image interface and one tiny model per family, made from configs."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.stage import Job
from edgeforge.core.task import Input, Interface, Pixels, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes: threads of each would wait for those of the others
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 2]},
    "mobilenet_v2": {"depth_multiplier": 0.1, "finegrained_output": False},
    "vit": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "patch_size": 4,
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [2, 2], "patch_size": 2, "layer_scale_init_value": 1.0},
}
"""The fields of each family's tiny model; all take 16x16 images and have under 50,000 parameters."""


TINY_TEXT: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48},
    "electra": {
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    },
}
"""The same for families that read texts, for the task of the `mails` fixture."""


_DECODER = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
TINY_LM: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, "tie_word_embeddings": True},
    "mistral": {**_DECODER, "tie_word_embeddings": False},
    "qwen2": {**_DECODER, "tie_word_embeddings": False},
    "qwen3": {**_DECODER, "tie_word_embeddings": True, "head_dim": 32},
}
"""The same for families that write texts, for the task of the `tales` fixture. Qwen3's heads are together wider than
the model is, as the published ones are."""


@pytest.fixture
def tiny_interface() -> Interface:
    """One-channel 16x16 images, four labels."""
    return Interface(
        inputs=(Input("pixel_values", (1, 16, 16)),),
        output_name="logits",
        labels=("north", "east", "south", "west"),
        pixels=Pixels((0.5,), (0.25,)),
    )


@pytest.fixture
def tiny_model(tiny_interface: Interface) -> Callable[[str], PreTrainedModel]:
    """Family name -> its tiny image classifier, the same weights at every call, batch statistics not trivial."""

    def make(family: str) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForImageClassification

        from edgeforge.architectures import Architecture
        from edgeforge.core.kinds import discover

        cls = discover("edgeforge.architectures", Architecture)[family]
        spec = cls.model_validate({"kind": family, **TINY[family]})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForImageClassification.from_config(spec.config(tiny_interface)).float()
            # The library's initial weights are so small that some signals die; here every layer must matter.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.xavier_normal_(parameter)
            norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = 1.0
            model.train()(torch.randn(32, *tiny_interface.image_shape))
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        return model.eval()

    return make


@pytest.fixture(params=sorted(TINY))
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(request.param)


@dataclass
class Notes:
    """Progress that keeps what was warned of."""

    warnings: list[str] = field(default_factory=list)

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def accelerator() -> Any:
    """Of one process, on the CPU."""
    from accelerate import Accelerator

    return Accelerator(cpu=True)


class Digits:
    """The real task on the digits that ship with scikit-learn, and artifacts of tiny models for it, made once."""

    tiny: ClassVar[Mapping[str, dict[str, Any]]] = TINY

    def __init__(self, root: Path) -> None:
        self.root = root
        self.task: Task = self.make_task()
        self.data = self.task.open()
        self.made: dict[str, Artifact] = {}

    def make_task(self) -> Task:
        from edgeforge.tasks.image_classification import ImageClassification

        return ImageClassification()

    def job(self, folder: Path) -> Job:
        folder.mkdir(parents=True, exist_ok=True)
        return Job(self.task, folder, 0, accelerator, Notes())

    def artifact(self, folder: Path, format: str, facts: Mapping[str, Any] | None = None) -> Artifact:
        """What is in `folder`, as if it were sealed."""
        files = hash_folder(folder)
        return Artifact(folder.name, "", format, folder, digest_files(files), files, {}, {}, facts or {})

    def torch(self, family: str) -> Artifact:
        """The family's tiny model, its weights random and its batch statistics those of real images."""
        import torch
        import transformers

        from edgeforge.architectures import Architecture
        from edgeforge.core.kinds import discover
        from edgeforge.core.task import model_inputs
        from edgeforge.models import loading

        if f"{family}.torch" not in self.made:
            cls = discover("edgeforge.architectures", Architecture)[family]
            config = cls.model_validate({"kind": family, **self.tiny[family]}).config(self.data.interface)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = getattr(transformers, self.task.auto_class).from_config(config).float()
                norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
                for norm in norms:
                    norm.momentum = None
                    norm.weight.data.uniform_(0.5, 1.5)
                    norm.bias.data.normal_(0, 0.3)
                model.train()
                with torch.no_grad():
                    model(**model_inputs(self.data.batch("train", range(min(256, self.data.size("train"))))))
            for norm in norms:
                norm.momentum = 0.1
            folder = self.root / f"{family}.torch"
            loading.save(model.eval(), folder)
            self.data.write_reader(folder)
            self.made[f"{family}.torch"] = self.artifact(folder, "torch")
        return self.made[f"{family}.torch"]

    def onnx(self, family: str) -> Artifact:
        """The same model as a float ONNX file."""
        from edgeforge.exporters.onnx import Onnx

        if f"{family}.onnx" not in self.made:
            folder = self.root / f"{family}.onnx"
            facts = Onnx().export(self.torch(family), self.job(folder))
            self.made[f"{family}.onnx"] = self.artifact(folder, "onnx", facts)
        return self.made[f"{family}.onnx"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Digits, and tiny models as torch and ONNX artifacts."""
    return Digits(tmp_path_factory.mktemp("digits"))


WORDS = {
    "ham": [
        "meeting",
        "project",
        "notes",
        "agenda",
        "review",
        "schedule",
        "office",
        "report",
        "attached",
        "regards",
        "team",
        "budget",
    ],
    "spam": [
        "winner",
        "prize",
        "credit",
        "cheap",
        "offer",
        "money",
        "pills",
        "lottery",
        "urgent",
        "click",
        "guarantee",
        "millions",
    ],
}
UNUSED_WORDS = ["zebra", "quartz", "##ing", "##ed"]
COMMON_WORDS = ["the", "a", "to", "of", "and", "you", "is", "in", "for", "we", "it", "on", "this", "with", "that", "at"]


class Mails(Digits):
    """The same for texts: short made-up mails, some without a label, and a WordPiece tokenizer for them."""

    tiny = TINY_TEXT

    def make_task(self) -> Task:
        from edgeforge.data.jsonl import Jsonl
        from edgeforge.tasks.text_classification import TextClassification

        chance = random.Random(0)
        for part, count in (("train", 300), ("test", 80)):
            lines = []
            for index in range(count):
                label = ("ham", "spam")[index % 2]
                words = chance.choices(COMMON_WORDS + WORDS[label], k=chance.randint(3, 20))
                known = {"label": label} if part == "test" or index < 260 else {}
                lines.append(json.dumps({"text": " ".join(words).capitalize() + ".", **known}))
            (self.root / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_tokenizer(self.root / "tokenizer")
        data = Jsonl(train=str(self.root / "train.jsonl"), test=str(self.root / "test.jsonl"))
        return TextClassification(data=data, tokenizer=str(self.root / "tokenizer"), max_length=16)


def write_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer like BERT's: the words above, letters, and pieces of one letter."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*COMMON_WORDS, *WORDS["ham"], *WORDS["spam"], *UNUSED_WORDS]
    vocabulary = list(dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words]))
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def mails(tmp_path_factory: pytest.TempPathFactory) -> Mails:
    """Mails, and tiny models as torch and ONNX artifacts."""
    return Mails(tmp_path_factory.mktemp("mails"))


ANIMALS = {
    "fox": "red",
    "whale": "grey",
    "raven": "black",
    "swan": "white",
    "frog": "green",
    "lion": "yellow",
    "crab": "orange",
    "mouse": "brown",
}
PLACES = ["forest", "sea", "café", "harbour", "garden", "old mill", "snow ☃"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LM_VOCABULARY = 352
LM_WINDOW = 32


class Tales(Digits):
    """The same for language models: made-up tales and chats about the colours of animals."""

    tiny = TINY_LM

    def make_task(self) -> Task:
        from edgeforge.data.jsonl import Jsonl
        from edgeforge.tasks.causal_lm import CausalLm

        chance = random.Random(0)
        for part, count in (("train", 90), ("test", 24)):
            lines = [{"messages": chat(chance)} if index % 3 == 2 else {"text": tale(chance)} for index in range(count)]
            write_lines(self.root / f"{part}.jsonl", lines)
        asked = [
            {"messages": chat(random.Random(1))[:1], "pattern": "red|grey"},
            {"prompt": "What colour is the fox?", "answer": "red"},
        ]
        write_lines(self.root / "prompts.jsonl", asked)
        write_lm_tokenizer(self.root / "tokenizer")
        data = Jsonl(train=str(self.root / "train.jsonl"), test=str(self.root / "test.jsonl"))
        return CausalLm(data=data, tokenizer=str(self.root / "tokenizer"), max_length=LM_WINDOW)

    def torch(self, family: str) -> Artifact:
        """The family's tiny model, its weights random, its norms and biases not trivial; and the tokenizer."""
        from edgeforge.models import loading

        if f"{family}.torch" not in self.made:
            folder = self.root / f"{family}.torch"
            loading.save(make_lm(family), folder)
            self.data.write_reader(folder)
            self.made[f"{family}.torch"] = self.artifact(folder, "torch")
        return self.made[f"{family}.torch"]


def tale(chance: random.Random) -> str:
    """A few sentences, with digits, and letters of more than one byte."""
    animal = chance.choice(sorted(ANIMALS))
    sentences = [
        f"The {animal} is {ANIMALS[animal]}.",
        *(f"The {animal} ran {chance.randint(1, 999)} miles to the {chance.choice(PLACES)}." for _ in range(4)),
        f"There it met the {chance.choice(sorted(ANIMALS))}.",
    ]
    return " ".join(sentences[: chance.randint(2, len(sentences))])


def chat(chance: random.Random) -> list[dict[str, str]]:
    """Questions and answers, as messages."""
    messages = []
    for animal in chance.sample(sorted(ANIMALS), chance.randint(1, 2)):
        messages.append({"role": "user", "content": f"What colour is the {animal}?"})
        messages.append({"role": "assistant", "content": ANIMALS[animal]})
    return messages


def write_lines(path: Path, values: list[Any]) -> Path:
    """A file with one JSON value per line."""
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def write_lm_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer like SmolLM2's: its special tokens, all bytes, merges of the tales' words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    chance = random.Random(2)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LM_VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [tale(chance) for _ in range(200)] + [turn["content"] for _ in range(200) for turn in chat(chance)]
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == LM_VOCABULARY
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<|endoftext|>", **names)
    fast.chat_template = CHAT_TEMPLATE
    fast.model_input_names = ["input_ids", "attention_mask"]
    fast.save_pretrained(folder)


def make_lm(family: str) -> PreTrainedModel:
    """A family's tiny language model for the tokenizer above, the same weights at every call."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = AutoConfig.for_model(
        family, vocab_size=LM_VOCABULARY, max_position_embeddings=256, **ids, **TINY_LM[family]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    torch.nn.init.xavier_normal_(parameter)
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.1)
                else:
                    parameter.uniform_(0.5, 1.5)
            # The library's initial weights answer nearly alike whatever they are asked.
            for table in (model.get_input_embeddings(), model.get_output_embeddings()):
                table.weight.normal_(0, 0.2)
    return model.eval()


@pytest.fixture
def tiny_lm() -> Callable[[str], PreTrainedModel]:
    """Family name -> its tiny language model, the same weights at every call."""
    return make_lm


@pytest.fixture(scope="session")
def tales(tmp_path_factory: pytest.TempPathFactory) -> Tales:
    """Tales and chats, their tokenizer (`tales.root / "tokenizer"`), and tiny language models as torch artifacts."""
    return Tales(tmp_path_factory.mktemp("tales"))


@dataclass
class Case:
    """One family's tiny model and the task it is for."""

    bench: Digits
    family: str

    def model(self) -> PreTrainedModel:
        """The model, the same weights at every call."""
        from edgeforge.models import loading

        return loading.load(self.bench.torch(self.family).path)

    def job(self, folder: Path) -> Job:
        """A job that works in `folder`."""
        return self.bench.job(folder)

    def batch(self, count: int = 8) -> dict[str, Any]:
        """Test samples with their labels."""
        return self.bench.data.batch("test", range(count))


@pytest.fixture(params=[*sorted(TINY), *sorted(TINY_TEXT)])
def case(request: pytest.FixtureRequest, digits: Digits, mails: Mails) -> Case:
    """Every family in turn, of images and of texts."""
    return Case(mails if request.param in TINY_TEXT else digits, str(request.param))
