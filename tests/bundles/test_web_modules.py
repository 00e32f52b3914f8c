"""The page's modules under Node: images in Pillow's own numbers, texts in the tokenizer's own ids."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeforge.bundles

HERE = Path(__file__).parent
SOURCES = Path(edgeforge.bundles.__file__).parent / "templates" / "web" / "src"


@pytest.fixture(scope="module")
def answers(cases: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    folder = tmp_path_factory.mktemp("modules")
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    for source in SOURCES.glob("*.js"):
        shutil.copy(source, folder)
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    command = [node, str(HERE / "modules.mjs"), str(folder), str(folder / "cases.json")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_images_are_resized_and_scaled_as_in_training(cases: dict[str, Any], answers: dict[str, Any]) -> None:
    assert len(answers["images"]) == 12
    for case, answer in zip(cases["images"], answers["images"], strict=True):
        assert answer["pixels"] == case["pixels"]
        np.testing.assert_array_equal(np.float32(answer["values"]), np.float32(case["values"]))


def test_texts_get_the_ids_of_the_original_tokenizer(cases: dict[str, Any], answers: dict[str, Any]) -> None:
    found = {}
    for number, (case, answer) in enumerate(zip(cases["texts"], answers["texts"], strict=True)):
        for text, wanted, got in zip(case["texts"], case["ids"], answer, strict=True):
            if wanted != got:
                found[number, text] = (wanted, got)
    assert found == {}
    ids = [ids for case in cases["texts"] for ids in case["ids"]]
    assert max(map(len, ids)) == 24 and sum(1 in row for row in ids) < len(ids)  # cut, and not everything unknown
