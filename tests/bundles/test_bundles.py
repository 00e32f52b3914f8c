"""What is in a bundle, that it is the same twice, and that its recorded answers are the model's own."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from tokenizers import Tokenizer

from edgeforge.bundles import _golden_prompts, bundle_for
from edgeforge.bundles._check import verify_bundle
from edgeforge.bundles._contract import Array, Contract, Golden, GoldenPrompts, ImageInput, PromptInput, TextInput
from edgeforge.bundles._lineage import licences, lineage
from edgeforge.bundles._source import open_source
from edgeforge.bundles._writing import write_bundle
from edgeforge.core.errors import ConfigurationError, ModelError

Bundled = Callable[..., tuple[Path, Contract]]

KOTLIN = {"Contract.kt", "ModelSession.kt", "Prediction.kt", "SelfTest.kt"}
SWIFT = {"Contract.swift", "Model.swift", "SelfTest.swift", "Benchmark.swift", "Command.swift", "Package.swift"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def golden_array(folder: Path, contract: Contract, array: Array) -> np.ndarray:
    """Read by hand, without the code that wrote it."""
    assert isinstance(contract.golden, Golden)
    (path,) = folder.rglob(contract.golden.file)
    kinds = {"uint8": "u1", "int32": "<i4", "float32": "<f4"}
    count = int(np.prod(array.shape))
    return np.frombuffer(path.read_bytes()[array.offset :], kinds[array.dtype])[:count].reshape(array.shape)


def test_android_holds_what_an_app_needs(image_run: Path, text_run: Path, bundled: Bundled) -> None:
    images, contract = bundled(image_run, "android")
    assert KOTLIN | {"ImageClassifier.kt", "Images.kt", "model.ort", "model.onnx", "golden.bin"} <= names(images)
    assert {"build.gradle", "AndroidManifest.xml", "required_operators_and_types.config"} <= names(images)
    assert contract.identifier == "digits_demo_phone"
    assert [model.format for model in contract.models] == ["ort", "onnx"]
    texts, _ = bundled(text_run, "android")
    assert KOTLIN | {"TextClassifier.kt", "WordPiece.kt", "vocab.txt", "tokenizer.json"} <= names(texts)
    assets = {path.name for path in (texts / "src" / "main" / "assets" / "mails_phone").iterdir()}
    assert assets == {"edgeforge.json", "golden.bin", "model.ort", "vocab.txt"}  # nothing an app carries for nothing
    config = (images / "model" / "required_operators_and_types.config").read_text(encoding="utf-8")
    assert "Conv" in config and "/tmp" not in config and "edgeforge-" not in config


def test_ios_and_web_hold_what_an_app_needs(image_run: Path, text_run: Path, bundled: Bundled) -> None:
    images, contract = bundled(image_run, "ios", "ios")
    assert SWIFT | {"ImageClassifier.swift", "Pixels.swift", "weight.bin", "golden.bin"} <= names(images)
    assert isinstance(contract.input, ImageInput) and contract.input.normalised_inside
    assert contract.deployment == {"ios": "17.0", "macos": "14.0"}
    manifest = (images / "Package.swift").read_text(encoding="utf-8")
    assert '.iOS("17.0")' in manifest and 'name: "DigitsDemoIos"' in manifest
    row = next(row for row in json.loads((image_run / "report.json").read_text())["artifacts"] if row["name"] == "ios")
    assert contract.model.sha256 == row["sha256"]  # by which a benchmark's result is known again
    texts, contract = bundled(text_run, "ios", "ios")
    assert isinstance(contract.input, TextInput) and contract.input.lengths == (16,) and contract.input.dtype == "int32"
    assert SWIFT | {"TextClassifier.swift", "WordPiece.swift", "vocab.txt"} <= names(texts)
    page, _ = bundled(text_run, "web")
    assert {"index.html", "page.js", "page.ts", "package.json", "tsconfig.json", "serve.mjs"} <= names(page)
    wanted = json.loads((page / "package.json").read_text(encoding="utf-8"))["dependencies"]
    assert wanted == {"onnxruntime-web": "1.30.0"}


def test_a_language_model_goes_to_android_as_gguf_with_its_sha256(prompt_run: Path, bundled: Bundled) -> None:
    folder, contract = bundled(prompt_run, "android")
    assert isinstance(contract.input, PromptInput)
    assert (contract.input.context, contract.input.chat_template) == (256, True)
    model = folder / "model" / "model.gguf"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    source = next(folder.rglob("ModelFile.kt")).read_text(encoding="utf-8")
    assert f'SHA256 = "{digest}"' in source and f"BYTES = {model.stat().st_size}L" in source
    assert "onnxruntime" not in (folder / "build.gradle").read_text(encoding="utf-8")


def test_a_language_model_goes_to_iphones_as_gguf_too(prompt_run: Path, bundled: Bundled) -> None:
    folder, contract = bundled(prompt_run, "ios")
    model = folder / "model" / "model.gguf"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    source = next(folder.rglob("ModelFile.swift")).read_text(encoding="utf-8")
    assert f'sha256 = "{digest}"' in source and f"bytes = {model.stat().st_size}\n" in source
    assert "context = 256" in source and "chatTemplate = true" in source
    assert (contract.model.sha256, contract.deployment["ios"]) == (digest, "16.4")
    assert {"model", "data", "llama.cpp"} <= {item.what for item in contract.licences}
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "import TalesPhone\n" in text and "edgeforge-benchmark" not in text and "SelfTest.run {" in text
    assert names(folder) == {
        "Package.swift", "ModelFile.swift", "SelfTest.swift",
        "model.gguf", "edgeforge.json", "README.md", "LICENCES.md", "SHA256SUMS",
    }  # fmt: skip


def test_a_language_model_s_answers_are_those_of_torch_and_clear(
    prompt_run: Path, bundled: Bundled, tales: Any
) -> None:
    """The tiny model's tokens after each prompt, by torch, begin as recorded, and every choice was clear."""
    import torch
    from tokenizers import Tokenizer

    from edgeforge.models import loading

    _, contract = bundled(prompt_run, "android")
    golden = contract.golden
    assert isinstance(golden, GoldenPrompts) and len(golden.prompts) >= 4
    tokenizer = Tokenizer.from_file(str(tales.root / "tokenizer" / "tokenizer.json"))
    model = loading.load(tales.torch("llama").path)
    for one in golden.prompts:
        ids, text = tokenizer.encode(one.prompt, add_special_tokens=False).ids, ""
        start = len(ids)
        while len(text) < len(one.text):
            first, second = model(torch.tensor([ids])).logits[0, -1].topk(2).values.tolist()
            assert first - second > 0.9 * golden.margin
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            text = tokenizer.decode(ids[start:]).strip()
        assert text == one.text and len(ids) - start <= golden.max_new_tokens


def test_a_language_model_that_is_sure_of_nothing_has_no_self_test(
    prompt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_golden_prompts, "MARGIN", 1e6)
    for target in ("android", "ios"):
        kind = bundle_for(target)
        folder, _ = write_bundle(open_source(prompt_run, "phone", kind), kind, tmp_path)
        assert not {name for name in names(folder) if name.startswith("SelfTest")}
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert "no recorded answers" in text and "Does it work on this device?" not in text
        assert [check.passed for check in verify_bundle(folder)] == [True] * 4


def test_the_gradle_module_fits_plugins_with_and_without_kotlin(image_run: Path, bundled: Bundled) -> None:
    """Android's plugin refuses Kotlin's own from version 9 on, and `kotlinOptions` went with it."""
    folder, _ = bundled(image_run, "android")
    build = (folder / "build.gradle").read_text(encoding="utf-8")
    always, _, rest = build.partition("if (extensions.findByName('kotlin') == null) {")
    before_nine, _, after = rest.partition("\n}\n")
    assert "id 'com.android.library'" in always and "org.jetbrains" not in always + after
    assert "apply plugin: 'org.jetbrains.kotlin.android'" in before_nine and "JVM_17" in before_nine
    assert "kotlinOptions" not in build and "implementation 'com.microsoft.onnxruntime:onnxruntime-android:" in after


@pytest.mark.parametrize("target", ["android", "web"])
def test_checksums_are_of_every_file_and_right(text_run: Path, bundled: Bundled, target: str) -> None:
    folder, contract = bundled(text_run, target)
    listed = dict(
        reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    )
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert listed.keys() == files.keys() - {"SHA256SUMS"}
    assert all(hashlib.sha256(files[name].read_bytes()).hexdigest() == digest for name, digest in listed.items())
    assert all(model.sha256 == listed[model.file] for model in contract.models)
    with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
        inside = {name.removeprefix(f"{folder.name}/"): archive.read(name) for name in archive.namelist()}
    assert inside == {name: path.read_bytes() for name, path in files.items()}


@pytest.mark.parametrize(("target", "artifact"), [("web", "phone"), ("ios", "ios"), ("android", "phone")])
def test_the_same_run_gives_the_same_bytes(image_run: Path, tmp_path: Path, target: str, artifact: str) -> None:
    """Of Android's the second is made where the first one lies: ONNX Runtime's converter orders a table by chance."""
    kind = bundle_for(target)
    found = []
    for place in ("a", "a" if target == "android" else "b"):
        _, archive = write_bundle(open_source(image_run, artifact, kind), kind, tmp_path / place)
        found.append(archive.read_bytes())
    assert found[0] == found[1]
    assert [path.name for path in (tmp_path / "a").iterdir() if path.name.startswith(".")] == []


def test_an_ort_file_that_was_tampered_with_is_not_kept(image_run: Path, tmp_path: Path) -> None:
    kind = bundle_for("android")
    folder, _ = write_bundle(open_source(image_run, "phone", kind), kind, tmp_path)
    (model,) = folder.rglob("model.ort")
    model.write_bytes(b"not a model")
    folder, _ = write_bundle(open_source(image_run, "phone", kind), kind, tmp_path)
    assert onnxruntime.InferenceSession(str(next(folder.rglob("model.ort")))).get_inputs()[0].name == "pixel_values"


# -- recorded answers


@pytest.mark.parametrize("name", ["model.ort", "model.onnx"])
def test_images_of_the_golden_file_get_its_answers(image_run: Path, bundled: Bundled, name: str) -> None:
    folder, contract = bundled(image_run, "android")
    assert isinstance(contract.golden, Golden) and isinstance(contract.input, ImageInput)
    pixels = golden_array(folder, contract, contract.golden.inputs["pixels"])
    assert pixels.dtype == np.uint8 and pixels.shape[1:] == (8, 8, 1) and pixels.std() > 10
    values = (pixels.transpose(0, 3, 1, 2) / 255 - contract.input.mean[0]) / contract.input.std[0]
    session = onnxruntime.InferenceSession(str(next(folder.rglob(name))))
    (found,) = session.run(None, {contract.input.name: values.astype(np.float32)})
    np.testing.assert_allclose(found, golden_array(folder, contract, contract.golden.outputs), atol=1e-4, rtol=0)
    assert np.ptp(found, axis=0).max() > 10 * contract.golden.max_abs_error  # another sample's answer would not do


def test_texts_of_the_golden_file_get_its_answers(text_run: Path, bundled: Bundled) -> None:
    folder, contract = bundled(text_run, "android")
    assert isinstance(contract.golden, Golden) and contract.output is not None
    inputs = {
        name: golden_array(folder, contract, array).astype(np.int64) for name, array in contract.golden.inputs.items()
    }
    assert inputs["attention_mask"].min() == 0  # there is padding
    (found,) = onnxruntime.InferenceSession(str(next(folder.rglob("model.ort")))).run([contract.output.name], inputs)
    np.testing.assert_allclose(found, golden_array(folder, contract, contract.golden.outputs), atol=1e-4, rtol=0)
    assert contract.output.labels == ("ham", "spam")


def test_core_ml_answers_are_probabilities(image_run: Path, bundled: Bundled) -> None:
    _, android = bundled(image_run, "android")
    folder, contract = bundled(image_run, "ios", "ios")
    assert isinstance(contract.golden, Golden) and contract.output is not None and isinstance(android.golden, Golden)
    found = golden_array(folder, contract, contract.golden.outputs)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-3)
    other, _ = bundled(image_run, "android")
    logits = golden_array(other, android, android.golden.outputs)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=0.01)


def test_the_vocabulary_and_the_tricky_texts_are_the_tokenizer_s(text_run: Path, bundled: Bundled) -> None:
    folder, contract = bundled(text_run, "web")
    assert isinstance(contract.input, TextInput) and isinstance(contract.golden, Golden)
    reader = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    lines = (folder / "model" / "vocab.txt").read_bytes().decode().split("\n")[:-1]
    assert {token: index for index, token in enumerate(lines)} == reader.get_vocab()
    reader.enable_truncation(contract.input.max_length)
    assert len(contract.golden.texts) >= 8
    for one in contract.golden.texts:
        assert reader.encode(one.text).ids == list(one.ids)
    assert {len(one.ids) for one in contract.golden.texts} >= {2, contract.input.max_length}


def test_quantized_files_may_move_as_far_as_quantization_did(image_run: Path, tmp_path: Path) -> None:
    from edgeforge.bundles._golden import write_golden
    from edgeforge.bundles._interface import of_onnx

    source = open_source(image_run, "phone", bundle_for("android"))
    plain = write_golden(source, *of_onnx(source.folder), tmp_path / "golden.bin")
    golden = source.golden
    assert golden is not None
    largest = float(np.abs(golden.outputs).max())
    assert plain.max_abs_error == pytest.approx(1e-3 * largest)
    changed = type(golden)(golden.inputs, golden.outputs, golden.outputs + 0.25, golden.about)
    source.__dict__["golden"] = changed
    object.__setattr__(source, "row", source.row.model_copy(update={"quantization": {"kind": "int8_static"}}))
    quantized = write_golden(source, *of_onnx(source.folder), tmp_path / "golden.bin")
    assert quantized.max_abs_error == pytest.approx(1e-3 * largest + 0.25)


# -- where it comes from


def test_no_folder_of_this_machine_is_in_a_bundle(text_run: Path, bundled: Bundled) -> None:
    folder, contract = bundled(text_run, "web")
    assert contract.lineage["data"]["train"] == "train.jsonl"
    assert contract.lineage["model"]["path"] == "nobody/some-model"  # a name on the hub is no folder
    assert contract.lineage["teachers"][0]["model"]["path"] == "big-teacher"
    assert contract.lineage["steps"][0]["key"] == "ab" * 32
    private = str(text_run.parent).encode()
    assert not [path for path in folder.rglob("*") if path.is_file() and private in path.read_bytes()]


def test_licences_are_found_beside_models_and_unknown_otherwise(text_run: Path, bundled: Bundled) -> None:
    folder, contract = bundled(text_run, "web")
    found = {item.what: item.licence for item in contract.licences}
    assert found["model"] == "unknown" and found["data"] == "unknown" and found["ONNX Runtime Web"] == "MIT"
    assert found["teacher_1"] == "cc-by-nc-4.0"
    assert (folder / "licences" / "teacher_1-LICENSE.txt").read_text(encoding="utf-8") == "not for sale\n"
    listed = (folder / "LICENCES.md").read_text(encoding="utf-8")
    assert "| teacher_1 | cc-by-nc-4.0 | big-teacher |" in listed and "| data | unknown | train.jsonl |" in listed


def changed(run: Path, folder: Path, stages: list[Any], sources: list[dict[str, Any]]) -> Any:
    """A copy of a run with other stages, whose report knows where things come from."""
    shutil.copytree(run, folder)
    pipeline = yaml.safe_load((folder / "pipeline.yaml").read_text(encoding="utf-8"))
    (folder / "pipeline.yaml").write_text(yaml.safe_dump({**pipeline, "stages": stages}), encoding="utf-8")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (folder / "report.json").write_text(json.dumps({**report, "lineage": {"sources": sources}}), encoding="utf-8")
    return open_source(folder, "phone", bundle_for("web"))


def test_every_teacher_has_a_licence_and_the_report_knows_what_the_hub_said(text_run: Path, tmp_path: Path) -> None:
    big, small = ({"kind": "pretrained", "path": str(tmp_path / name)} for name in ("big", "small"))
    for name, licence in (("big", "mit"), ("small", "apache-2.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"license": licence}), encoding="utf-8")
    members = [{"kind": "model", "model": big}, {"kind": "cached", "model": small}, {"kind": "model", "stage": "train"}]
    private = "/home/someone/secret"
    api = {"kind": "endpoint", "model": "large-1", "journal": f"{private}/journal.jsonl"}
    stages = [
        {"kind": "distill", "teacher": {"kind": "ensemble", "members": members}},
        {"kind": "prune", "recover": {"teacher": {"kind": "model", "model": big}}},
        {"kind": "generate", "teacher": api, "spec": f"{private}/spec.yaml", "avoid": [f"{private}/a.jsonl"]},
        {"kind": "generate", "teacher": {"kind": "program", "function": f"{private}/answers.py:answer"}},
    ]
    sources = [
        {"what": "model", "kind": "pretrained", "place": "nobody/some-model", "licence": "cc0-1.0"},
        {"what": "data", "kind": "jsonl", "place": "train.jsonl", "licence": "see LICENSE"},
        {"what": "teacher", "kind": "program", "place": f"{private}/answers.py:answer"},
    ]
    source = changed(text_run, tmp_path / "run", stages, sources)
    found = {item.what: (item.licence, item.source) for item in licences(source, tmp_path / "licences")}
    served = "unknown: the terms of whoever serves it"
    assert found == {
        "model": ("cc0-1.0", "nobody/some-model"),
        "teacher_1": ("mit", "big"),
        "teacher_2": ("apache-2.0", "small"),
        "teacher_3": (served, "large-1"),
        "teacher_4": (served, "answers.py:answer"),
        "data": ("unknown", "train.jsonl"),
    }
    said = json.dumps(lineage(source))
    assert "secret" not in said and "spec.yaml" in said and "journal.jsonl" in said


# -- what cannot be bundled


def refused(run: Path, target: str, artifact: str | None) -> str:
    with pytest.raises(ConfigurationError) as error:
        open_source(run, artifact, bundle_for(target))
    return str(error.value)


def test_what_cannot_be_bundled_is_said(image_run: Path, tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path, "web", None)
    assert "perhaps you meant 'phone'" in refused(image_run, "web", "phon")
    assert "it answers nonsense" in refused(image_run, "web", "broken")
    assert "is coreml, and web takes onnx" in refused(image_run, "web", "ios")
    with pytest.raises(ConfigurationError, match="perhaps you meant 'android'"):
        bundle_for("androd")
    assert open_source(image_run, None, bundle_for("web")).row.name == "phone"  # the baseline only by name
    assert open_source(image_run, "baseline", bundle_for("web")).row.name == "baseline"


def changed_run(run: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    import shutil

    shutil.copytree(run, folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    change(report)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


def test_several_fitting_files_ask_for_a_choice(image_run: Path, tmp_path: Path) -> None:
    def add(report: dict[str, Any]) -> None:
        report["artifacts"].append({**report["artifacts"][1], "name": "tablet"})

    assert "several artifacts fit: phone, tablet" in refused(changed_run(image_run, tmp_path / "a", add), "web", None)


def test_files_that_changed_since_are_refused(image_run: Path, tmp_path: Path) -> None:
    run = changed_run(image_run, tmp_path / "a", lambda report: None)
    with (run / "artifacts" / "phone" / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    assert "changed since it was verified" in refused(run, "web", "phone")
    (run / "golden" / "ios.npz").unlink()
    kind = bundle_for("ios")
    with pytest.raises(ConfigurationError, match="recorded answers are gone"):
        write_bundle(open_source(run, "ios", kind), kind, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())  # nothing half-made


def test_a_file_without_recorded_answers_is_refused(image_run: Path, tmp_path: Path) -> None:
    run = changed_run(image_run, tmp_path / "a", lambda report: report["artifacts"][1].update(golden=None))
    kind = bundle_for("web")
    with pytest.raises(ConfigurationError, match="could not test itself"):
        write_bundle(open_source(run, "phone", kind), kind, tmp_path / "out")


def test_a_file_of_somebody_else_is_refused(image_run: Path, tmp_path: Path) -> None:
    import onnx

    from edgeforge.core.artifact import hash_file

    run = changed_run(image_run, tmp_path / "a", lambda report: None)
    path = run / "artifacts" / "phone" / "model.onnx"
    model = onnx.load(path)
    model.ClearField("metadata_props")
    onnx.save(model, path)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    report["artifacts"][1]["files"]["model.onnx"] = hash_file(path)
    (run / "report.json").write_text(json.dumps(report), encoding="utf-8")
    kind = bundle_for("web")
    with pytest.raises(ModelError, match="no classifier that EdgeForge wrote"):
        write_bundle(open_source(run, "phone", kind), kind, tmp_path / "out")


@pytest.mark.parametrize(("pipeline", "identifier"), [("Fashion Phone!", "fashion_phone_a"), ("3d", "model_3d_a")])
def test_identifiers_suit_every_language(image_run: Path, pipeline: str, identifier: str) -> None:
    source = open_source(image_run, "phone", bundle_for("web"))
    changed = type(source)(
        source.run,
        source.report.model_copy(update={"pipeline": pipeline}),
        source.row.model_copy(update={"name": "a"}),
    )
    assert changed.identifier == identifier
