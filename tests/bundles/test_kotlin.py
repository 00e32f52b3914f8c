"""Kotlin in the bundles compiles against stand-ins for Android, and what needs no Android gives what Python gives."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (shutil.which("java") and shutil.which("npm")), reason="needs java and npm"),
]

PACKAGE = "kotlin-compiler@2.4.20"
HERE = Path(__file__).parent / "kotlin"

Bundled = Callable[..., tuple[Path, Any]]


def compiled(npm: Path, sources: list[Path], target: Path) -> subprocess.CompletedProcess[str]:
    jars = npm / "kotlin-compiler" / "lib"
    command = [
        "java", "-Xmx1g", "-cp", str(jars / "kotlin-preloader.jar"),
        "org.jetbrains.kotlin.preloading.Preloader", "-cp", str(jars / "kotlin-compiler.jar"),
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-kotlin-home", str(npm / "kotlin-compiler"),
        "-no-reflect", "-Werror", "-d", str(target), *map(str, sources),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=500)


@pytest.fixture(scope="module")
def sources(image_run: Path, text_run: Path, prompt_run: Path, bundled: Bundled) -> list[Path]:
    folders = [bundled(run, "android")[0] for run in (image_run, text_run, prompt_run)]
    return [path for folder in (*folders, HERE) for path in sorted(folder.rglob("*.kt"))]


@pytest.fixture(scope="module")
def built(packages: Callable[..., Path], sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("kotlin") / "classes"
    done = compiled(packages(PACKAGE), sources, target)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


def run(npm: Path, built: Path, lines: Iterator[str]) -> list[str]:
    library = npm / "kotlin-compiler" / "lib" / "kotlin-stdlib.jar"
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", f"{built}:{library}", "MainKt"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_images_are_resized_and_scaled_as_in_training(
    built: Path, packages: Callable[..., Path], cases: dict[str, Any]
) -> None:
    def lines() -> Iterator[str]:
        for case in cases["images"]:
            into = case["input"]
            sizes = [*case["size"], into["channels"], into["width"], into["height"]]
            rgba = np.asarray(case["rgba"], dtype=np.int64).reshape(-1, 4)
            argb = rgba[:, 3] << 24 | rgba[:, 0] << 16 | rgba[:, 1] << 8 | rgba[:, 2]
            lists = (into["mean"], into["std"], argb.tolist())
            yield " ".join(["image", *map(str, sizes), *(",".join(map(str, one)) for one in lists)])

    answers = run(packages(PACKAGE), built, lines())
    assert len(answers) == 12
    for case, answer in zip(cases["images"], answers, strict=True):
        pixels, values = answer.split(" ")
        assert [int(value) for value in pixels.split(",")] == case["pixels"]
        np.testing.assert_array_equal(np.float32(values.split(",")), np.float32(case["values"]))


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (["Paris, and", " Paris.", "Berlin", "\n Paris"], "true 0.75"),
        (["paris", "Paris", "Paris", ""], "false 0.5"),
    ],
)
def test_the_answers_of_a_binding_are_judged(
    built: Path, packages: Callable[..., Path], found: list[str], answer: str
) -> None:
    pairs = [encoded(text) for one in found for text in ("Paris", one)]
    assert run(packages(PACKAGE), built, iter([" ".join(["answers", "0.75", *pairs])])) == [answer]


def test_texts_get_the_ids_of_the_original_tokenizer(
    built: Path, packages: Callable[..., Path], cases: dict[str, Any]
) -> None:
    def lines() -> Iterator[str]:
        for case in cases["texts"]:
            said = case["settings"]
            flags = ("lowercase", "strip_accents", "clean_text", "handle_chinese_chars")
            special = "\n".join(f"{token} {index}" for token, index in said["special"].items())
            words = [
                "".join(str(int(said[flag])) for flag in flags), encoded(said["prefix"]), said["longest_word"],
                encoded(said["unknown"]), said["before"], said["after"], encoded(special), case["input"]["max_length"],
                int(case["input"]["truncate"] == "right"), encoded(case["vocabulary"]),
            ]  # fmt: skip
            for text in case["texts"]:
                yield " ".join(["text", *map(str, words), encoded(text)])

    answers = iter(run(packages(PACKAGE), built, lines()))
    wrong = [
        (text, wanted, got)
        for case in cases["texts"]
        for text, wanted in zip(case["texts"], case["ids"], strict=True)
        if (got := [int(one) for one in next(answers).split(",")]) != wanted
    ]
    assert wrong == []


def test_the_compiler_finds_a_mistake(
    packages: Callable[..., Path], text_run: Path, bundled: Bundled, tmp_path: Path
) -> None:
    folder, _ = bundled(text_run, "android")
    broken = tmp_path / "Prediction.kt"
    source = next(folder.rglob("Prediction.kt")).read_text(encoding="utf-8")
    broken.write_text(source.replace("labels: List<String>)", "labels: Lisst<String>)"), encoding="utf-8")
    done = compiled(packages(PACKAGE), [broken], tmp_path / "classes")
    assert done.returncode != 0 and "Lisst" in done.stderr
