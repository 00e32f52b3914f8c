"""Serves the page, its job, models and samples to a browser on this machine, and hears what the page says.

Only files that were registered are served, by name and under a random folder; nobody else's page can guess it, and
nothing reaches it from another machine.
"""

from __future__ import annotations

import http.server
import queue
import secrets
import select
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SAID_LIMIT_BYTES = 1_000_000
LOOK_S = 0.2
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
HEADERS = {
    # Both together isolate the page, which gives it threads and a clock of 5 microseconds.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


class Gone:
    """Heard when the page was open and no longer is."""


class Server(http.server.ThreadingHTTPServer):
    """`files` are paths, or their content, by name; `heard` are the page's lines, then `Gone`."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, Path | bytes]) -> None:
        self.files = files
        self.heard: queue.Queue[str | Gone] = queue.Queue()
        self.outputs = b""
        self.secret = secrets.token_urlsafe(16)
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        """The page's URL."""
        return f"http://127.0.0.1:{self.server_port}/{self.secret}/runner.html"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that is ended drops its connections; anything else is a defect, and is shown as one."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(files: Mapping[str, Path | bytes]) -> Iterator[Server]:
    """A server of these files, until the block ends."""
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self._name()
        if name == "alive":
            self._wait()
        elif name is None or name not in self.server.files:
            self._answer(404)
        else:
            self._send(name, self.server.files[name])

    def do_POST(self) -> None:
        name, length = self._name(), self.headers.get("Content-Length", "")
        if name not in ("say", "outputs") or not length.isdigit():
            self.close_connection = True  # what it sends is not read
            self._answer(404)
        elif name == "say" and int(length) > SAID_LIMIT_BYTES:
            self.close_connection = True
            self._answer(413)
        else:
            content = self.rfile.read(int(length))
            if name == "outputs":
                self.server.outputs = content
            else:
                self.server.heard.put(content.decode(errors="replace"))
            self._answer(204)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads a log of this."""

    def end_headers(self) -> None:
        for header, value in HEADERS.items():
            self.send_header(header, value)
        super().end_headers()

    def _name(self) -> str | None:
        """What is asked for; None for what lies outside the page's folder."""
        inside = f"/{self.server.secret}/"
        path = self.path.partition("?")[0]
        return path.removeprefix(inside) if path.startswith(inside) else None

    def _answer(self, code: int) -> None:
        self.send_response(code)
        if code != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, name: str, file: Path | bytes) -> None:
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        self.send_response(200)
        self.send_header("Content-Type", TYPES.get(Path(name).suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if isinstance(file, bytes):
            self.wfile.write(file)
            return
        with file.open("rb") as stream:
            shutil.copyfileobj(stream, self.wfile)

    def _wait(self) -> None:
        """Give no answer until the page is gone, or nobody needs it any more."""
        self.close_connection = True
        while not self.server.closing.is_set():
            readable, _, _ = select.select([self.connection], [], [], LOOK_S)
            if readable:
                with suppress(ConnectionError):
                    if self.connection.recv(1, socket.MSG_PEEK):
                        continue
                self.server.heard.put(Gone())
                return
