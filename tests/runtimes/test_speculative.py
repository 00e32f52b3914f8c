"""Drafted texts against those that are written plainly, and acceptance against a draft asked anew each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeforge.runtimes._llama.speculative import Pair, acceptance, projected_speedup

if TYPE_CHECKING:
    from tests.conftest import Tales

ENDS = (0, 2)
LIMIT = 24


class Scripted:
    """A model whose next token is a function of how long the text is; it checks that it is asked in order."""

    def __init__(self, script: list[int]) -> None:
        self.script, self.text = script, list[int]()
        self.model = SimpleNamespace(ends=lambda token: token in ENDS)
        self.batches: list[int] = []

    def prefill(self, tokens: Any, *, room: int = 256) -> int:
        self.text = list(tokens)
        return self._next()

    def read(self, tokens: Any) -> list[int]:
        self.batches.append(len(tokens))
        found = []
        for token in tokens:
            self.text.append(token)
            found.append(self._next())
        return found

    def go_back(self, length: int) -> None:
        assert 0 < length <= len(self.text)
        del self.text[length:]

    def _next(self) -> int:
        return self.script[len(self.text)]


def written(teacher: list[int], draft: list[int], **settings: int) -> tuple[Any, Scripted, Scripted]:
    """A prompt of three tokens, continued: scripts say the token at each place of the text."""
    pair = Pair(Scripted(teacher), Scripted(draft), room=100)  # type: ignore[arg-type]
    prompt = [90, 91, 92]
    first = pair.begin(prompt)
    return pair.write(prompt, first, **settings), pair.teacher, pair.draft  # type: ignore[return-value]


SCRIPT = list(range(100, 160))


def test_a_draft_that_is_always_right_saves_readings() -> None:
    found, teacher, _ = written(SCRIPT, SCRIPT, limit=13, length=3)
    assert found.tokens == SCRIPT[3:16]
    assert found.drafts == [(3, 3), (3, 3), (3, 3)]
    assert teacher.batches == [4, 4, 4], "the last reading gives the thirteenth token"


def test_a_draft_that_is_always_wrong_changes_nothing() -> None:
    found, teacher, draft = written(SCRIPT, [7] * 60, limit=5, length=2)
    assert found.tokens == SCRIPT[3:8]
    assert found.drafts == [(2, 0), (2, 0), (1, 0)]
    assert teacher.batches == [3, 3, 2, 1], "what cannot be used any more is not drafted"
    assert draft.text == [90, 91, 92, *SCRIPT[3:6]]


def test_without_drafts_each_token_is_read_alone() -> None:
    found, teacher, draft = written(SCRIPT, SCRIPT, limit=6, length=0)
    assert (found.tokens, found.drafts, teacher.batches, draft.batches) == (SCRIPT[3:9], [], [1] * 5, [])


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("place", [3, 4, 5, 6, 9])
def test_the_token_that_ends_a_text_ends_it(place: int, length: int) -> None:
    """Wherever it comes, drafted or not, with a draft that is right now and then."""
    script = [*SCRIPT[:place], 2, *SCRIPT[place + 1 :]]
    draft = [token if index % 4 else 7 for index, token in enumerate(script)]
    found, _, _ = written(script, draft, limit=20, length=length)
    assert found.tokens == script[3:place]
    assert all(0 <= accepted <= drafted for drafted, accepted in found.drafts)


def test_shares_are_of_whole_drafts() -> None:
    assert acceptance([(3, 3), (3, 1), (3, 0), (2, 2)], 3) == [2 / 3, 1 / 3, 1 / 3]
    assert acceptance([(1, 1)], 2) == [None, None]


def test_the_projection_is_the_formula_of_leviathan_for_greedy_drafts() -> None:
    """Theorem 3.8 with equal acceptance a at each position: (1 - a^(k+1)) / ((1 - a) (k c + 1)), reading k+1 at the
    price of one."""
    a, c, k = 0.8, 0.1, 4
    shares = [a**position for position in range(1, k + 1)]
    found = projected_speedup(shares, draft_ms=c * 7.0, verify_ms=dict.fromkeys(range(1, k + 2), 7.0))
    assert found == pytest.approx((1 - a ** (k + 1)) / ((1 - a) * (k * c + 1)))
    slow = projected_speedup([0.5], draft_ms=3.0, verify_ms={1: 4.0, 2: 5.0})
    assert slow == pytest.approx(1.5 * 4 / 8), "a loss is said to be one"
    assert projected_speedup([0.5, None], draft_ms=3.0, verify_ms={1: 4.0, 2: 5.0, 3: 6.0}) is None


# -- on llama.cpp


@pytest.fixture(scope="module")
def folders(tales: Tales, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny Llama as float16, one that is a little different, and one that is another model altogether."""
    pytest.importorskip("llama_cpp")
    import torch

    from edgeforge.exporters.gguf import Gguf
    from edgeforge.models import loading

    found = {}
    for name, noise in (("teacher", 0.0), ("near", 0.12), ("far", 3.0)):
        source = tmp_path_factory.mktemp(f"{name}-torch")
        model = loading.load(tales.torch("llama").path)
        with torch.no_grad():
            torch.manual_seed(1)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.add_(noise * parameter.std() * torch.randn_like(parameter))
        loading.save(model, source)
        tales.data.write_reader(source)
        found[name] = tmp_path_factory.mktemp(name)
        Gguf(type="f16").export(tales.artifact(source, "torch"), tales.job(found[name]))
    return found


@pytest.fixture
def opened(folders: dict[str, Path]) -> Iterator[dict[str, Any]]:
    from edgeforge.runtimes.llama_cpp import LlamaCpp

    sessions = {name: LlamaCpp().open(folder, threads=1) for name, folder in folders.items()}
    yield sessions
    for session in sessions.values():
        session.close()


PROMPTS = [np.random.RandomState(seed).randint(3, 352, size=6).tolist() for seed in range(6)]


@pytest.mark.parametrize("name", ["near", "far"])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_the_text_is_the_float16_models_own(opened: dict[str, Any], name: str, length: int) -> None:
    expected = opened["teacher"].generate(PROMPTS, LIMIT)
    pair = Pair(opened["teacher"], opened[name], room=LIMIT + length + 1)
    for prompt, text in zip(PROMPTS, expected, strict=True):
        assert pair.write(prompt, pair.begin(prompt), limit=LIMIT, length=length).tokens == text
        assert pair.write(prompt, pair.begin(prompt), limit=LIMIT, length=0).tokens == text


def test_acceptance_is_what_the_draft_would_have_written_itself(opened: dict[str, Any]) -> None:
    """Each verification again, the draft asked from scratch for its own continuation of the text so far."""
    length, seen = 3, set()
    pair = Pair(opened["teacher"], opened["near"], room=LIMIT + length + 1)
    for prompt in PROMPTS:
        found = pair.write(prompt, pair.begin(prompt), limit=LIMIT, length=length)
        text, place = found.tokens, 1
        for drafted, accepted in found.drafts:
            asked, own = [*prompt, *text[:place]], list[int]()
            for _ in range(drafted):
                own.append(opened["near"].prefill([*asked, *own]))
            right = next((i for i in range(drafted) if text[place : place + i + 1] != own[: i + 1]), drafted)
            if place + drafted < len(text):  # where the text goes on, all of it can be compared
                assert accepted == right
                seen.add(accepted)
            place += accepted + 1
    assert len(seen) > 1, "the draft is right now and then"


def test_a_model_that_drafts_for_itself_is_always_right(folders: dict[str, Path]) -> None:
    from edgeforge.runtimes.llama_cpp import LlamaCpp

    pair = Pair(*(LlamaCpp().open(folders["teacher"], threads=1) for _ in range(2)), room=LIMIT + 4)
    drafts = []
    for prompt in PROMPTS:
        drafts += pair.write(prompt, pair.begin(prompt), limit=LIMIT, length=3).drafts
    assert len(drafts) >= 5
    assert all(drafted == accepted for drafted, accepted in drafts)
