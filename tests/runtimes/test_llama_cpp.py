"""llama.cpp's answers against torch's, on tiny models; and what it says of files it cannot open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgeforge.core.errors import ModelError
from edgeforge.exporters.gguf import Gguf
from edgeforge.gguf_file import MODEL
from edgeforge.models import loading
from edgeforge.runtimes import Processor
from edgeforge.runtimes._llama import model as llama_model
from edgeforge.runtimes._llama.session import AT_ONCE, LlamaCppSession
from edgeforge.runtimes.llama_cpp import LlamaCpp

pytest.importorskip("llama_cpp")

if TYPE_CHECKING:
    from tests.conftest import Tales

FAMILY = "llama"
ENDS = (0, 2)
"""<|endoftext|> and <|im_end|>."""


@pytest.fixture(scope="module")
def folder(tales: Tales, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama in float32."""
    made = tmp_path_factory.mktemp("float")
    Gguf(type="f32").export(tales.torch(FAMILY), tales.job(made))
    return made


@pytest.fixture
def session(folder: Path, processor: Processor) -> Iterator[LlamaCppSession]:
    opened = LlamaCpp(processor=processor).open(folder, threads=1)
    yield opened
    opened.close()


def torch_logits(tales: Tales, ids: list[int]) -> np.ndarray:
    """(L, vocabulary) of the torch model."""
    import torch

    with torch.no_grad():
        return loading.load(tales.torch(FAMILY).path)(torch.tensor([ids])).logits[0].numpy()


def padded(texts: list[list[int]]) -> dict[str, np.ndarray]:
    longest = max(map(len, texts))
    ids = np.array([[*text, *[2] * (longest - len(text))] for text in texts], dtype=np.int64)
    mask = np.array([[1] * len(text) + [0] * (longest - len(text)) for text in texts], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": mask}


TEXTS = [[5, 9, 200, 31, 17, 300, 4, 8], [40, 41, 42], [351]]


def test_logits_are_those_of_torch_at_every_position(tales: Tales, session: LlamaCppSession) -> None:
    found = session.run(padded(TEXTS))
    assert found.shape == (3, 8, 352)
    assert found.dtype == np.float32
    for row, text in enumerate(TEXTS):
        expected = torch_logits(tales, text)
        # Keys and values are kept as float16, which is the largest rounding here.
        np.testing.assert_allclose(found[row, : len(text)], expected, atol=5e-3 * np.abs(expected).max())
        assert not found[row, len(text) :].any()


def test_a_texts_answer_does_not_depend_on_the_others(session: LlamaCppSession) -> None:
    together = session.run(padded(TEXTS))
    for row, text in enumerate(TEXTS):
        np.testing.assert_array_equal(session.run(padded([text]))[0], together[row, : len(text)])


def test_texts_longer_than_a_batch_are_read_in_parts(
    tales: Tales, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_model, "BATCH", 16)
    session = LlamaCppSession(folder / MODEL, threads=1)
    text = [int(token) for token in np.random.RandomState(0).randint(3, 352, size=50)]
    expected = torch_logits(tales, text)
    np.testing.assert_allclose(session.run(padded([text]))[0], expected, atol=5e-3 * np.abs(expected).max())
    assert session.generate([text], 1) == [[int(expected[-1].argmax())]]


def greedy(tales: Tales, prompt: list[int], limit: int) -> list[int]:
    """What torch writes, one whole forward pass for each token."""
    text = list(prompt)
    while len(text) < len(prompt) + limit:
        token = int(torch_logits(tales, text)[-1].argmax())
        if token in ENDS:
            break
        text.append(token)
    return text[len(prompt) :]


def test_it_writes_what_torch_writes(tales: Tales, session: LlamaCppSession) -> None:
    chance = np.random.RandomState(1)
    prompts = [chance.randint(3, 352, size=chance.randint(1, 9)).tolist() for _ in range(AT_ONCE + 5)]
    written = session.generate(prompts, 6)
    # Every slot is filled, some twice; a few are compared, for torch takes a pass for every token.
    for index in (0, 3, AT_ONCE, AT_ONCE + 4):
        assert written[index] == greedy(tales, prompts[index], 6)
    assert written == [session.generate([prompt], 6)[0] for prompt in prompts]


def test_what_ends_a_text_ends_it_and_is_left_out(tales: Tales, session: LlamaCppSession) -> None:
    """A prompt after which the model writes an end: found by asking, since the weights are random."""
    chance = np.random.RandomState(2)
    for _ in range(400):
        prompt = chance.randint(3, 352, size=3).tolist()
        (text,) = session.generate([prompt], 12)
        if len(text) < 12:
            break
    else:
        pytest.fail("no prompt ended")
    assert int(torch_logits(tales, [*prompt, *text])[-1].argmax()) in ENDS
    assert not set(text) & set(ENDS)


def test_no_more_than_asked_and_nothing_of_nothing(session: LlamaCppSession) -> None:
    assert session.generate([], 5) == []
    assert session.generate([[5], [6]], 0) == [[], []]
    assert all(len(text) <= 2 for text in session.generate([[5], [6], [7]], 2))


def test_a_text_ends_where_the_model_does(session: LlamaCppSession) -> None:
    """The model was made for 256 tokens."""
    prompt = np.random.RandomState(3).randint(3, 352, size=250).tolist()
    (text,) = session.generate([prompt], 100)
    assert len(text) <= 7  # six that are read again, and one behind the last place


def test_step_by_step_is_the_same_as_at_once(session: LlamaCppSession) -> None:
    prompt = [5, 9, 200, 31]
    (expected,) = session.generate([prompt], 8)
    token, found = session.prefill(prompt, room=8), []
    while token not in ENDS and len(found) < 8:
        found.append(token)
        token = session.decode(token)
    assert found == expected
    session.clear()
    with pytest.raises(ModelError, match="no room"):
        session.decode(5)
    assert session.prefill(prompt) == (expected or [None])[0] or not expected


def test_prefill_leaves_the_room_that_was_asked_for(session: LlamaCppSession) -> None:
    session.prefill([5, 6, 7], room=300)
    for _ in range(300):
        session.decode(9)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"input_ids": [[5, 352]], "attention_mask": [[1, 1]]}, "352 tokens"),
        ({"input_ids": [[5, -1]], "attention_mask": [[1, 1]]}, "from -1"),
        ({"input_ids": [[2, 5]], "attention_mask": [[0, 1]]}, "padding must be behind"),
        ({"input_ids": [[5]]}, "input_ids and attention_mask"),
        ({"input_ids": [[5]], "attention_mask": [[1, 1]]}, "shape"),
        ({"input_ids": [5], "attention_mask": [1]}, "shape"),
    ],
)
def test_inputs_that_the_file_does_not_take(
    session: LlamaCppSession, inputs: dict[str, list[list[int]]], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        session.run({name: np.array(value, dtype=np.int64) for name, value in inputs.items()})


@pytest.mark.parametrize("prompt", [[], [5] * 257])
def test_prompts_that_cannot_be_read(session: LlamaCppSession, prompt: list[int]) -> None:
    with pytest.raises(ModelError, match=f"a prompt of {len(prompt)} tokens"):
        session.generate([[5], prompt], 3)


def test_an_id_that_llama_cpp_refuses_is_an_error(session: LlamaCppSession) -> None:
    with pytest.raises(ModelError, match="invalid token"):
        session.generate([[400]], 3)


@pytest.mark.parametrize("kept", [0.3, 0.97])
def test_a_file_cut_short_is_refused_with_llama_cpps_words_and_nothing_is_printed(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kept: float
) -> None:
    content = (folder / MODEL).read_bytes()
    (tmp_path / MODEL).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ModelError, match=r"cannot open it: .*(within the file bounds|failed to read|key)"):
        LlamaCpp().open(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_when_all_is_well(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    LlamaCpp().open(folder, threads=1).run(padded(TEXTS))
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        LlamaCpp().open(tmp_path)


def test_it_is_freed_once_whoever_asks(folder: Path) -> None:
    session = LlamaCpp().open(folder, threads=1)
    session.run(padded(TEXTS))
    cache, model = session._cache, session.model
    assert cache is not None
    session.close()
    session.close()
    assert not cache._free.alive
    assert not model._free.alive


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LlamaCpp().available() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = LlamaCpp().available()
    assert reason is not None
    assert "llama-cpp-python is not installed (pip install 'edgeforge[llama]'" in reason


def test_it_tokenizes_with_the_files_own_tokenizer(tales: Tales, session: LlamaCppSession) -> None:
    from edgeforge.models import tokenizer

    text = "The fox is red.<|im_end|>\nIt ran 42 miles to the café ☃."
    expected = tokenizer.read(tales.root / "tokenizer")(text, add_special_tokens=False)["input_ids"]
    assert session.tokenize(text) == expected
    assert session.tokenize("") == []
    assert session.tokenize(text, add_special=True) == expected  # this file wants none around a text


def test_ids_become_text_again(session: LlamaCppSession) -> None:
    text = "Äpfel für 12 €, 東京 🙂\n" * 20  # more than the buffer that is tried first
    ids = session.tokenize(text)
    assert session.detokenize(ids) == text
    assert session.detokenize([]) == ""
    assert session.detokenize([1, *ids, 2]) == text  # special tokens are no text
    assert session.detokenize(session.tokenize("€")[:1]).endswith("\ufffd")
