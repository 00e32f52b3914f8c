"""TypeScript in the web bundle type-checks, and the JavaScript beside it is what the compiler makes of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="needs node and npm"),
]

Bundled = Callable[..., tuple[Path, Any]]
USER = """
import { Classifier } from './classifier.js';
import type { Prediction } from './classifier.js';
export async function ask(image: ImageData): Promise<[string, number]> {
  const { label, probability }: Prediction = await (await Classifier.open()).classifyImage(image);
  return [label, probability];
}
"""


@pytest.fixture
def project(image_run: Path, bundled: Bundled, packages: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle beside what its package.json asks for."""
    folder, _ = bundled(image_run, "web")
    copied = Path(shutil.copytree(folder, tmp_path / "project"))
    (copied / "node_modules").symlink_to(packages("onnxruntime-web@1.30.0", "typescript@7.0.2"))
    return copied


def tsc(project: Path, *options: str) -> subprocess.CompletedProcess[str]:
    node = shutil.which("node")
    assert node is not None
    command = [node, str(project / "node_modules" / "typescript" / "bin" / "tsc"), "-p", str(project), *options]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=200)


def test_the_shipped_javascript_is_the_compiler_s(project: Path) -> None:
    shipped = {path.name: path.read_text(encoding="utf-8") for path in (project / "src").glob("*.js")}
    for name in shipped:
        (project / "src" / name).unlink()
    done = tsc(project)
    assert done.returncode == 0, done.stdout
    made = {path.name: path.read_text(encoding="utf-8") for path in (project / "src").glob("*.js")}
    assert made == shipped and len(made) == 6


def test_users_get_types_and_mistakes_are_found(project: Path) -> None:
    user = project / "src" / "user.ts"
    user.write_text(USER, encoding="utf-8")
    done = tsc(project, "--noEmit")
    assert done.returncode == 0, done.stdout
    user.write_text(USER.replace("probability }", "probabilty }"), encoding="utf-8")
    done = tsc(project, "--noEmit")
    assert done.returncode != 0 and "probabilty" in done.stdout
