"""The web bundle's page in Chromium: it tests itself, says when it fails, and classifies images and texts."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(CHROMIUM is None or not shutil.which("npm"), reason="needs chromium and npm"),
]

RUNTIME = "onnxruntime-web@1.30.0"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)  # fmt: skip
WAIT_S = 120
MAIL = "Winner! Click to claim the prize of 1,000,000: urgent, guarantee."

PROBE = """
const shown = async (id) => {
  const element = document.getElementById(id);
  while (!element.dataset.result) await new Promise((resolve) => setTimeout(resolve, 20));
  return JSON.parse(element.dataset.result);
};
const found = { errors: [], isolated: crossOriginIsolated };
addEventListener('error', (event) => found.errors.push(event.message));
found.test = await shown('status');
found.status = document.getElementById('status').textContent;
found.title = document.title;
const act = await (await fetch('/act.json')).json();
if (found.test.passed && act.text) {
  document.getElementById('text').value = act.text;
  document.getElementById('classify').click();
  found.answer = await shown('answer');
}
if (found.test.passed && act.rgba) {
  const canvas = document.getElementById('canvas');
  [canvas.width, canvas.height] = act.size;
  canvas.getContext('2d').putImageData(new ImageData(Uint8ClampedArray.from(act.rgba), ...act.size), 0, 0);
  canvas.dispatchEvent(new Event('pointerup'));
  found.answer = await shown('answer');
}
await fetch('/found', { method: 'POST', body: JSON.stringify(found) });
"""

Bundled = Callable[..., tuple[Path, Any]]


class Server(http.server.ThreadingHTTPServer):
    """Serves a bundle as its own serve.mjs does, with a probe in the page, and keeps what the probe sends."""

    def __init__(self, folder: Path, act: dict[str, Any]) -> None:
        self.folder, self.act = folder, act
        self.found: queue.Queue[dict[str, Any]] = queue.Queue()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

    def translate_path(self, path: str) -> str:
        return str(self.server.folder / path.partition("?")[0].lstrip("/"))

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def do_GET(self) -> None:
        page = (self.server.folder / "index.html").read_text(encoding="utf-8")
        probed = page.replace("</body>", '<script type="module" src="/probe.js"></script></body>')
        texts = {"/": ("text/html", probed), "/probe.js": ("text/javascript", PROBE)}
        texts["/act.json"] = ("application/json", json.dumps(self.server.act))
        if self.path not in texts:
            super().do_GET()
            return
        kind, text = texts[self.path]
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        self.server.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def chromium(address: str, profile: Path) -> Iterator[None]:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", address]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def visit(folder: Path, act: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """What the probe found in the page."""
    server = Server(folder, act)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with chromium(f"http://127.0.0.1:{server.server_port}/", scratch / "profile"):
            return server.found.get(timeout=WAIT_S)
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(bundled: Bundled, packages: Callable[..., Path], tmp_path: Path) -> Callable[[Path], Path]:
    def make(run: Path) -> Path:
        folder, _ = bundled(run, "web")
        copied = Path(shutil.copytree(folder, tmp_path / "site"))
        (copied / "node_modules").symlink_to(packages(RUNTIME))
        return copied

    return make


def softmax(logits: np.ndarray) -> list[float]:
    powers = np.exp(logits - logits.max())
    return list(map(float, powers / powers.sum()))


def test_a_mail_is_classified_as_onnx_runtime_does(
    text_run: Path, site: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = site(text_run)
    found = visit(folder, {"text": MAIL}, tmp_path)
    assert found["errors"] == [] and found["isolated"]
    assert found["test"]["passed"] and found["test"]["samples"] == 8 and found["test"]["wrongTexts"] == []
    assert 0 <= found["test"]["maxAbsError"] <= found["test"]["limit"]
    assert "Self-test passed" in found["status"] and found["title"] == "mails: phone"
    reader = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    reader.enable_truncation(16)
    ids = np.asarray([reader.encode(MAIL).ids])
    session = onnxruntime.InferenceSession(str(folder / "model" / "model.onnx"))
    (logits,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    probabilities = [one["probability"] for one in found["answer"]["probabilities"]]
    np.testing.assert_allclose(probabilities, softmax(logits[0]), atol=1e-5)
    assert found["answer"]["label"] == ("ham", "spam")[int(logits[0].argmax())]


def test_a_drawn_image_is_classified_as_onnx_runtime_does(
    image_run: Path, site: Callable[[Path], Path], tmp_path: Path, cases: dict[str, Any]
) -> None:
    folder = site(image_run)
    contract = json.loads((folder / "model" / "edgeforge.json").read_text(encoding="utf-8"))
    drawn = next(case for case in cases["images"] if case["size"] == [40, 30] and case["input"]["channels"] == 1)
    found = visit(folder, {"rgba": drawn["rgba"], "size": drawn["size"]}, tmp_path)
    assert found["errors"] == [] and found["test"]["passed"]
    pixels = np.asarray(drawn["pixels"], dtype=np.float64).reshape(1, 1, 8, 8)
    mean, std = contract["input"]["mean"][0], contract["input"]["std"][0]
    session = onnxruntime.InferenceSession(str(folder / "model" / "model.onnx"))
    (logits,) = session.run(None, {"pixel_values": ((pixels / 255 - mean) / std).astype(np.float32)})
    probabilities = [one["probability"] for one in found["answer"]["probabilities"]]
    np.testing.assert_allclose(probabilities, softmax(logits[0]), atol=1e-5)


def test_the_page_says_when_the_model_is_not_the_recorded_one(
    text_run: Path, site: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = site(text_run)
    path = folder / "model" / "golden.bin"
    content = path.read_bytes()
    answers = np.frombuffer(content[-64:], "<f4") + 1
    path.write_bytes(content[:-64] + answers.tobytes())
    found = visit(folder, {}, tmp_path)
    assert not found["test"]["passed"] and found["test"]["maxAbsError"] == pytest.approx(1, abs=0.01)
    assert "Self-test FAILED" in found["status"]


def test_the_page_says_when_there_is_no_model(text_run: Path, site: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = site(text_run)
    (folder / "model" / "model.onnx").unlink()
    found = visit(folder, {}, tmp_path)
    assert not found["test"]["passed"] and "404" in found["status"]
