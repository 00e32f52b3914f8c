"""What the link `browser` serves to the page it measures in (edgeforge/links/_browser): runtimes as WebAssembly.

From Microsoft's npm package onnxruntime-web and from @wllama/wllama, which holds llama.cpp. Licence of both: MIT.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from edgeforge.fetchers import Fetcher
from edgeforge.fetchers._output import Files, bring, checked, is_there
from edgeforge.fetchers._registry import npm_package, reading, tar_member
from edgeforge.links import _browser
from edgeforge.links._browser import Library

SHA256 = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "index.min.js": "834d7be963172248caf13c6f2ae786009b43edfeefc85eeadc20609e8447d118",
    "wllama.wasm": "551f13439366eff11e057b1b91fe46a7fdac29d56d67372d4c5f19a549dfe70c",
}
LIMIT_BYTES = 50_000_000


class BrowserRunner(Fetcher):
    """onnxruntime-web 1.30.0 and wllama 3.8.1, as WebAssembly (23 MB kept).

    They go where the link looks for them, in the user's cache folder, whatever `--out` says.
    """

    kind: Literal["browser_runner"] = "browser_runner"

    def fetch(self, folder: Path, *, say: Callable[[str], None]) -> Path:
        """See Fetcher. Raises EnvironmentProblem."""
        for library in _browser.LIBRARIES.values():
            digests = {name: SHA256[name] for name in (library.module, library.wasm)}
            if is_there(library.folder(), digests):
                say(f"{library.package} is there already")
            else:
                say(f"fetching {library.package} (npm)")
                size = bring(library.folder(), digests, partial(_files, library, digests))
                say(f"wrote {library.package} ({size / 1e6:.0f} MB, sha256 checked)")
        return _browser.folder()


def _files(library: Library, digests: dict[str, str]) -> Files:
    """The module and its WebAssembly, read in the package. Raises EnvironmentProblem where they are other files."""
    with npm_package(library.package) as path, reading(library.package), tarfile.open(path) as archive:
        files = {
            name: tar_member(archive, archive.getmember(f"package/{place}/{name}"), limit_bytes=LIMIT_BYTES)
            for name, place in zip(digests, library.places, strict=True)
        }
    return checked(files, digests, what=library.package, where=library.package, remedy="try again")
