"""What every data kind promises: it reads what it holds, and says which kinds hold what it does not."""

from __future__ import annotations

import pytest

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.kinds import discover
from edgeforge.data import DataSource
from edgeforge.data.image_folder import ImageFolder
from edgeforge.data.jsonl import Jsonl

KINDS = discover("edgeforge.data", DataSource)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_reads_what_it_holds(name: str) -> None:
    kind = KINDS[name]
    assert issubclass(kind, DataSource)
    assert kind.holds == {
        medium
        for medium in ("images", "texts", "documents")
        if getattr(kind, medium) is not getattr(DataSource, medium)
    }
    assert kind.digest is not DataSource.digest


def test_the_wrong_kind_names_the_right_ones() -> None:
    with pytest.raises(ConfigurationError, match="the data kind 'image_folder' holds images, not texts") as caught:
        ImageFolder(path="x").texts()
    assert caught.value.remedy == "use one of csv, hub, jsonl, text_folder, or a task for images"
    with pytest.raises(
        ConfigurationError, match="the data kind 'jsonl' holds documents and texts, not images"
    ) as caught:
        Jsonl(train="x", test="y").images(None)
    assert "hub, image_folder, npz, sklearn_digits" in str(caught.value.remedy)
    with pytest.raises(ConfigurationError, match="the data kind 'image_folder' holds images, not documents") as caught:
        ImageFolder(path="x").documents()
    assert caught.value.remedy == "use one of hub, jsonl, text_files, or a task for images"
