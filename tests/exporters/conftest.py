"""Exported folders as another program finds them, and what the files in them give in ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeforge.exporters.onnx import Onnx
from edgeforge.models import loading, tokenizer
from edgeforge.quantizers.int8_dynamic import Int8Dynamic
from edgeforge.runtimes._llama.library import library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedTokenizerFast

    Digits = Any
    Mails = Any

MAX_LENGTH = 16


@dataclass
class Shipped:
    """An exported folder, and where the texts' tokenizer came from."""

    folder: Path
    tokenizer: Path | None = None

    def ids(self, texts: tuple[str, ...], max_length: int | None = MAX_LENGTH) -> list[list[int]]:
        """What EdgeForge makes of texts, with the original tokenizer."""
        assert self.tokenizer is not None
        return tokenizer.read(self.tokenizer)(  # type: ignore[no-any-return]
            list(texts), truncation=max_length is not None, max_length=max_length, padding=False
        )["input_ids"]

    def logits(self, ids: list[list[int]]) -> np.ndarray:
        """One batch, padded to its longest."""
        assert self.tokenizer is not None
        length = max(map(len, ids))
        pad = tokenizer.read(self.tokenizer).pad_token_id
        padded = [row + [pad] * (length - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (length - len(row)) for row in ids]
        return self.run(input_ids=np.asarray(padded), attention_mask=np.asarray(mask))

    def run(self, **inputs: np.ndarray) -> np.ndarray:
        """Logits, shape (N, labels), far enough apart that a wrong input shows."""
        import onnxruntime

        (found,) = onnxruntime.InferenceSession(self.folder / "model.onnx").run(None, inputs)
        assert len(found) == 1 or np.ptp(found, axis=0).min() > 0.02
        return np.asarray(found)


@pytest.fixture(scope="session")
def shipped(mails: Mails, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Shipped]:
    """`bert`, `roberta`, `resnet` in float, and the same with `-int8`, each made once."""
    root = tmp_path_factory.mktemp("shipped")
    made: dict[str, Shipped] = {}

    def make(name: str) -> Shipped:
        if name not in made:
            family, _, quantized = name.partition("-")
            if quantized:
                bench, folder = digits if family == "resnet" else mails, root / name
                source = make(family)
                Int8Dynamic().quantize(bench.artifact(source.folder, "onnx"), bench.job(folder))
                made[name] = Shipped(folder, source.tokenizer)
            elif family == "resnet":
                made[name] = Shipped(digits.onnx("resnet").path)
            else:
                made[name] = _text_model(mails, family, root)
        return made[name]

    return make


def _text_model(mails: Mails, family: str, root: Path) -> Shipped:
    import torch

    reader = root / f"{family}-tokenizer"
    {"bert": _word_pieces, "roberta": _byte_pairs}[family](mails).save_pretrained(reader)
    root = root / f"{family}-made"
    root.mkdir()
    bench = type(mails)(root)
    bench.task = bench.task.model_copy(update={"tokenizer": str(reader), "max_length": MAX_LENGTH})
    bench.data = bench.task.open()
    model = loading.load(bench.torch(family).path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # the library's initial weights give every text the same logits
                torch.nn.init.xavier_normal_(parameter)
    loading.save(model, root / "torch", tokenizer_from=reader)
    Onnx().export(bench.artifact(root / "torch", "torch"), bench.job(root / "onnx"))
    return Shipped(root / "onnx", reader)


def _word_pieces(mails: Mails) -> PreTrainedTokenizerFast:
    """BERT's, with a length and padding in tokenizer.json that are none of the task's, as MiniLM comes."""
    from tokenizers import Tokenizer
    from transformers import BertTokenizerFast

    made = Tokenizer.from_file(str(mails.root / "tokenizer" / tokenizer.MAIN))
    made.enable_truncation(24)
    made.enable_padding(length=24)
    return BertTokenizerFast(tokenizer_object=made, model_max_length=512)


def _byte_pairs(mails: Mails) -> PreTrainedTokenizerFast:
    """RoBERTa's, whose padding is not id 0; nothing says how long a text may be."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import RobertaTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([(mails.root / "train.jsonl").read_text(encoding="utf-8")], trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return RobertaTokenizerFast(tokenizer_object=made)


class LlamaFile:
    """A GGUF file in llama.cpp's own C interface: which ids and logits it gives."""

    def __init__(self, path: Path, *, vocabulary_only: bool = False) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        library()  # which keeps llama.cpp's log from the terminal
        llama_cpp.llama_backend_init()
        chosen = llama_cpp.llama_model_default_params()
        chosen.vocab_only = vocabulary_only
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), chosen)
        assert self.model, f"llama.cpp does not open {path}"
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)

    def close(self) -> None:
        self.api.llama_model_free(self.model)

    def ids(self, text: str) -> list[int]:
        """With special tokens read as such, and with what is put around every text."""
        raw = text.encode()
        room = len(raw) + 8
        found = (self.api.llama_token * room)()
        count = self.api.llama_tokenize(self.vocabulary, raw, len(raw), found, room, True, True)
        assert count >= 0
        return list(found[:count])

    def logits(self, ids: list[int]) -> np.ndarray:
        """float32, shape (length, vocabulary)."""
        api = self.api
        chosen = api.llama_context_default_params()
        chosen.n_ctx = chosen.n_batch = chosen.n_ubatch = max(64, len(ids))
        chosen.n_threads = chosen.n_threads_batch = 1
        context = api.llama_init_from_model(self.model, chosen)
        batch = api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, 1
        assert api.llama_decode(context, batch) == 0
        shape = (len(ids), api.llama_vocab_n_tokens(self.vocabulary))
        found = np.ctypeslib.as_array(api.llama_get_logits(context), shape=shape).copy()
        api.llama_batch_free(batch)
        api.llama_free(context)
        return found


@pytest.fixture
def llama_file() -> Iterator[Callable[..., LlamaFile]]:
    """Path -> the file in llama.cpp. Skips where llama-cpp-python is not installed."""
    pytest.importorskip("llama_cpp")
    opened: list[LlamaFile] = []

    def open_file(path: Path, *, vocabulary_only: bool = False) -> LlamaFile:
        opened.append(LlamaFile(path, vocabulary_only=vocabulary_only))
        return opened[-1]

    yield open_file
    for file in opened:
        file.close()
