"""A browser without a window and with a profile of its own: started, watched, and ended with all its processes."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from edgeforge.core.errors import DeviceProblem
from edgeforge.core.stage import Progress

END_S = 10.0
LONGEST_FOLDER = 40
"""Characters: a socket's path has at most 104, and Chromium's own part of it, in this folder's, needs 64."""
NOISE = re.compile("dbus|gcm|vaapi|vulkan|crashpad", re.IGNORECASE)
"""What Chromium says everywhere of services that a machine without a desktop lacks."""
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--mute-audio",
    # Nothing of the user's, and no question that would wait for an answer.
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--password-store=basic",
    "--use-mock-keychain",
    # Nothing beside the page: what runs in the background disturbs the measurement.
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-field-trial-config",
    "--disable-quic",
    "--disable-sync",
    # A page that nobody looks at is measured as one that somebody does.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-dev-shm-usage",  # in containers it is often too small
)


class Browser:
    """A running browser."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def ended(self) -> DeviceProblem | None:
        """Why it is not running any more; None while it is."""
        code = self._process.poll()
        if code is None:
            return None
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip() and not NOISE.search(line)]
        fatal = [line for line in lines if "FATAL" in line] or lines
        said = re.sub(r"^\[[^]]*\]\s*", "", fatal[-1]) if fatal else "no message"
        sandbox = any("sandbox" in line.lower() for line in lines)
        return DeviceProblem(
            f"the browser ended with exit code {code}: {said}",
            where="browser",
            remedy="its sandbox needs user namespaces, which this system does not allow" if sandbox else None,
        )

    def peak_rss_mb(self) -> float | None:
        """Most memory (10^6 bytes) that the page's own process ever held; None where the system does not say.

        The renderer of the page, with the runtime and the model in it; without the browser's other processes.
        """
        peaks = []
        for process in self._family():
            if "--type=renderer" in _command_line(process):
                path = Path(f"/proc/{process.pid}/status")
                status = path.read_text(encoding="ascii") if path.is_file() else ""
                peaks += [int(found) * 1024 / 1e6 for found in re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)]
        return max(peaks, default=None)

    def processor_s(self) -> float:
        """Processor time of all its processes until now (s)."""
        used = 0.0
        for process in self._family():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue  # it ended meanwhile
            used += times.user + times.system
        return used

    def end(self) -> None:
        """End every one of its processes, by its own id, and wait for that."""
        family = self._family()
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        psutil.wait_procs(family, timeout=END_S)

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _command_line(process: psutil.Process) -> Sequence[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ()  # it ended, or is somebody else's


@contextmanager
def browsing(program: Path, address: str, progress: Progress) -> Iterator[Browser]:
    """A browser that shows a page, until the block ends. Raises DeviceProblem where it cannot be started."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > LONGEST_FOLDER and Path("/tmp").is_dir():
        base = Path("/tmp")
    with tempfile.TemporaryDirectory(prefix="edgeforge-", dir=base, ignore_cleanup_errors=True) as name:
        folder, log = Path(name), Path(name) / "log"
        own = dict.fromkeys(("TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(folder))
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        flags = (*FLAGS, "--no-sandbox") if root else FLAGS  # Chromium refuses root a sandbox
        with log.open("wb") as stream:
            try:
                process = subprocess.Popen(
                    [str(program), *flags, f"--user-data-dir={folder / 'profile'}", address],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stream,
                    env={**os.environ, **own},
                    start_new_session=True,  # Ctrl-C is this program's to handle
                )
            except OSError as error:
                raise DeviceProblem(f"it cannot be started: {error.strerror}", where=f"browser {program}") from error
        browser = Browser(process, log)
        try:
            yield browser
        finally:
            browser.end()
    if folder.exists():
        progress.warn(f"{folder} may be left: its files could not be removed")
