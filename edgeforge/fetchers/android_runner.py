"""ONNX Runtime for phones: what `adb` and `ssh` copy to a device that has none, and `qemu` runs (links/_runner).

From Microsoft's npm package onnxruntime-node, which holds the library for Linux on Arm64 and x86-64. Licence: MIT.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgeforge.fetchers import Fetcher
from edgeforge.fetchers._output import Files, bring, checked, is_there
from edgeforge.fetchers._registry import npm_package, reading, tar_member
from edgeforge.links import _runner

PACKAGE = "onnxruntime-node@1.30.0"
MEMBERS = {
    _runner.library("aarch64"): "package/bin/napi-v6/linux/arm64/libonnxruntime.so.1",
    _runner.library("x86_64"): "package/bin/napi-v6/linux/x64/libonnxruntime.so.1",
}
SHA256 = {
    _runner.library("aarch64"): "1f549d46250b005580b597f4164984aaf75b3bcb9f3aeb07c7f8a8fe60b23c76",
    _runner.library("x86_64"): "ffb75a925ba05e47b235bb66e3e3911714a80b328a9c9425539feb204aa32a23",
}
LIMIT_BYTES = 200_000_000


class AndroidRunner(Fetcher):
    """The native runner: ONNX Runtime 1.30.0 (114 MB to fetch, 71 MB kept), and a small program that is compiled.

    It goes where the links look for it, in the user's cache folder, whatever `--out` says.
    """

    kind: Literal["android_runner"] = "android_runner"

    def fetch(self, folder: Path, *, say: Callable[[str], None]) -> Path:
        """See Fetcher. Raises EnvironmentProblem, and DeviceProblem where there is no compiler for Arm64."""
        path = _runner.folder()
        if is_there(path, SHA256):
            say("ONNX Runtime is there already")
        else:
            say(f"fetching {PACKAGE} (npm)")
            size = bring(path, SHA256, _libraries)
            say(f"wrote ONNX Runtime for Arm64 and x86-64 ({size / 1e6:.0f} MB, sha256 checked)")
        files = _runner.built(_runner.MACHINES["aarch64"])
        size = sum(file.stat().st_size for file in files.values())
        say(f"the runner for Arm64 is built; {size / 1e6:.0f} MB are copied to a phone")
        return path


def _libraries() -> Files:
    """The libraries, read in the package. Raises EnvironmentProblem where they are not what they should be."""
    with npm_package(PACKAGE) as path, reading(PACKAGE), tarfile.open(path) as archive:
        files = {
            name: tar_member(archive, archive.getmember(member), limit_bytes=LIMIT_BYTES)
            for name, member in MEMBERS.items()
        }
    return checked(files, SHA256, what="ONNX Runtime", where=PACKAGE, remedy="try again")
