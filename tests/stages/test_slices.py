"""How the test split is cut: by columns and by rules."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgeforge.core.errors import ConfigurationError, DataError, IncompatiblePlanError
from edgeforge.core.task import Samples, Task
from edgeforge.data.csv import Csv
from edgeforge.data.jsonl import Jsonl
from edgeforge.data.npz import Npz
from edgeforge.stages.slices import MOST_VALUES, Slice, Slices
from edgeforge.tasks.image_classification import ImageClassification
from edgeforge.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from tests.conftest import Digits, Mails

TEXTS = ("one", "two words", "a b c d e", "see http://x.org now", "two more")


def no_columns(name: str) -> tuple[str, ...]:
    raise AssertionError(name)


def cut(texts: tuple[str, ...], **rule: Any) -> dict[str, list[int]]:
    """Group -> positions of its samples."""
    names, members = Slice(**rule).cut(Samples(len(texts), no_columns, texts=texts))
    assert members.shape == (len(texts),)
    return {name: np.flatnonzero(members == number).tolist() for number, name in enumerate(names)}


def test_words_between_bounds() -> None:
    assert cut(TEXTS, words=[2, 4]) == {"below 2": [0], "2 to 3": [1, 3, 4], "4 and above": [2]}


def test_texts_in_which_a_pattern_is_found() -> None:
    assert cut(TEXTS, pattern="https?://") == {"found": [3], "not found": [0, 1, 2, 4]}


def test_a_slice_may_be_empty() -> None:
    assert cut(TEXTS, words=[100]) == {"below 100": [0, 1, 2, 3, 4], "100 and above": []}


def test_images_by_their_mean(tmp_path: Path) -> None:
    images = np.zeros((4, 2, 2, 3), dtype=np.uint8)
    images[1], images[2, :, :, 0], images[3] = 51, 255, 255  # means 0.2, 1/3, 1
    samples = Samples(4, no_columns, images=images)
    names, members = Slice(brightness=(0.2, 0.5)).cut(samples)
    assert names == ["below 0.2", "0.2 to 0.5", "0.5 and above"]
    assert members.tolist() == [0, 1, 1, 2], "a bound belongs to the slice above it"


def test_values_of_a_column_most_frequent_first() -> None:
    values = ("en", "de", "en", "fr", "de", "en")
    names, members = Slice(column="language").cut(Samples(6, lambda name: values))
    assert (names, members.tolist()) == (["en", "de", "fr"], [0, 1, 0, 2, 1, 0])


def test_rare_values_are_the_others() -> None:
    values = tuple(f"v{min(number, 2 * MOST_VALUES):02d}" for number in range(3 * MOST_VALUES))
    names, members = Slice(column="id").cut(Samples(len(values), lambda name: values))
    assert len(names) == MOST_VALUES
    assert names[0] == f"v{2 * MOST_VALUES}" and names[-1] == "others"
    assert np.bincount(members).sum() == len(values)
    assert (members == MOST_VALUES - 1).sum() == 2 * MOST_VALUES + 1 - (MOST_VALUES - 1)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "a slice has one of column, pattern, words, brightness"),
        ({"column": "a", "pattern": "b"}, "a slice has one of"),
        ({"pattern": "("}, "no regular expression"),
        ({"words": [5, 5]}, "must rise"),
        ({"words": [0]}, "greater than 0"),
        ({"brightness": [0.5, 0.2]}, "must rise"),
        ({"brightness": [1.5]}, "less than 1"),
        ({"words": []}, "at least 1"),
    ],
)
def test_what_is_no_slice(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Slice.model_validate(said)


def test_titles() -> None:
    said = [Slice(column="lang"), Slice(pattern="a+"), Slice(words=(3,)), Slice(words=(3,), name="length")]
    assert [one.title for one in said] == ["lang", "/a+/", "words", "length"]


# -- columns of data


def write(folder: Path, rows: list[dict[str, Any]]) -> Jsonl:
    for part in ("train", "test"):
        lines = [json.dumps(row if part == "test" else {"text": f"{part} {row['text']}", "label": row["label"]})
                 for row in rows]  # fmt: skip
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Jsonl(train=str(folder / "train.jsonl"), test=str(folder / "test.jsonl"))


ROWS = [
    {"text": "a", "label": "x", "source": "web", "year": 2024, "new": True},
    {"text": "b", "label": "y", "source": "mail", "new": False},
    {"text": "c", "label": "x", "source": None, "year": 1.5},
]


def test_a_column_of_jsonl_lies_beside_its_samples(tmp_path: Path) -> None:
    data = write(tmp_path, ROWS)
    assert data.texts().test.texts == ("a", "b", "c")
    assert data.column("source") == ("web", "mail", "(none)")
    assert data.column("year") == ("2024", "(none)", "1.5")
    assert data.column("new") == ("true", "false", "(none)")
    with pytest.raises(ConfigurationError, match="perhaps you meant 'source'"):
        data.column("sources")


def test_a_column_of_csv(tmp_path: Path) -> None:
    for part in ("train", "test"):
        with (tmp_path / f"{part}.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerows([["text", "label", "team"], [f"{part}, 1", "x", "red"], ["two\nlines", "y", ""]])
    data = Csv(train=str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"))
    assert data.column("team") == ("red", "(none)")
    with pytest.raises(DataError, match="no column is named 'theme'"):
        data.column("theme")


def test_a_column_of_the_hub(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from edgeforge.data.hub import Hub

    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]), kind=datasets.Value("string")
    )
    parts = {}
    for part in ("train", "test"):
        rows = {"text": [f"{part} a", f"{part} b"], "label": [0, 1], "kind": ["short", None]}
        parts[part] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    data = Hub(path=str(tmp_path / "saved"), text="text")
    assert data.column("kind") == ("short", "(none)")
    assert data.column("label") == ("no", "yes")
    with pytest.raises(ConfigurationError, match="no column is named"):
        data.column("nothing")


def test_a_value_that_is_none_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path, [{**row, "source": ["a", "list"]} for row in ROWS])
    with pytest.raises(DataError, match="the value is a list") as refused:
        data.column("source")
    assert str(refused.value.where).endswith("test.jsonl:1")


def test_data_without_columns_say_so() -> None:
    with pytest.raises(ConfigurationError, match="'npz' has no columns"):
        Npz(path="x.npz").column("a")


# -- the stage


def test_the_stage_keeps_groups_and_members(mails: Mails, tmp_path: Path) -> None:
    stage = Slices(slices=(Slice(words=(10,)), Slice(pattern="prize", name="prizes")))
    job = mails.job(tmp_path / "s")
    facts = stage.run({}, job)
    members = np.load(job.folder / "members.npy")
    assert [one["rule"] for one in facts["slices"]] == ["words", "prizes"]
    assert members.shape == (2, 80)
    texts = mails.task.data.texts().test.texts  # type: ignore[attr-defined]
    assert (members[0] == [len(text.split()) >= 10 for text in texts]).all()
    assert (members[1] == ["prize" not in text for text in texts]).all()


def test_the_stage_cuts_images(digits: Digits, tmp_path: Path) -> None:
    job = digits.job(tmp_path / "s")
    facts = Slices(slices=(Slice(brightness=(0.3,)),)).run({}, job)
    members = np.load(job.folder / "members.npy")[0]
    parts = digits.task.data.images(None)  # type: ignore[attr-defined]
    means = parts.test.images[range(len(parts.test.labels))].mean(axis=(1, 2, 3)) / 255
    assert facts["slices"] == [{"rule": "brightness", "groups": ["below 0.3", "0.3 and above"]}]
    assert (members == (means >= 0.3)).all()


@pytest.mark.parametrize(
    ("task", "rule"),
    [
        (ImageClassification(), {"words": [3]}),
        (TextClassification(data=Jsonl(train="a", test="b")), {"brightness": [0.5]}),
    ],
)
def test_rules_are_for_what_they_look_at(task: Task, rule: dict[str, Any]) -> None:
    Slice(column="c").check(task, "slices[0]")
    with pytest.raises(IncompatiblePlanError) as refused:
        Slice(**rule).check(task, "slices[1]")
    assert refused.value.where == "slices[1]"


def test_language_models_have_no_samples_to_cut(tales: Any) -> None:
    for refuse in (tales.task.tested, lambda: tales.task.open_probe("p.txt")):
        with pytest.raises(IncompatiblePlanError, match="one label for each sample"):
            refuse()
