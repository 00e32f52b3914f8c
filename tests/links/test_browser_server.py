"""What the page's server gives, to whom, and what it refuses."""

from __future__ import annotations

import http.client
import queue
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from edgeforge.links._browser.server import SAID_LIMIT_BYTES, Gone, Server, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "model.onnx").write_bytes(b"\x08weights")
    (tmp_path / "secret.txt").write_text("not served")
    files = {"runner.html": b"<p>", "page.js": b"js", "a.wasm": b"\0asm", "model.onnx": tmp_path / "model.onnx"}
    with serving(files) as server:
        yield server


def ask(
    server: Server, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_files_come_with_the_headers_that_isolate_the_page(server: Server) -> None:
    for name, content, kind in (
        ("runner.html", b"<p>", "text/html; charset=utf-8"),
        ("page.js", b"js", "text/javascript"),
        ("a.wasm", b"\0asm", "application/wasm"),
        ("model.onnx?again", b"\x08weights", "application/octet-stream"),
    ):
        status, body, headers = ask(server, f"/{server.secret}/{name}")
        assert (status, body, headers["Content-Type"]) == (200, content, kind)
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
    assert urlsplit(server.address).path == f"/{server.secret}/runner.html"


def test_it_listens_on_this_machine_alone(server: Server) -> None:
    host, port = server.socket.getsockname()
    assert host == "127.0.0.1"
    assert urlsplit(server.address).hostname == "127.0.0.1"
    # All of 127.0.0.0/8 is this machine; a server bound to every address would answer here.
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/runner.html",
        "/model.onnx",
        "/wrong/runner.html",
        "/{secret}",
        "/{secret}/",
        "/{secret}/secret.txt",
        "/{secret}/../{secret}/secret.txt",
        "/{secret}/../../../../etc/passwd",
        "/{secret}/%2e%2e/%2e%2e/etc/passwd",
        "/{secret}//etc/passwd",
        "//etc/passwd",
    ],
)
def test_nothing_else_is_served(server: Server, path: str) -> None:
    status, body, _ = ask(server, path.format(secret=server.secret))
    assert (status, body) == (404, b"")


def test_what_the_page_says_is_heard_in_order(server: Server) -> None:
    for line in (b'{"round": 1}', b'{"end": {}}'):
        status, _, _ = ask(server, f"/{server.secret}/say", "POST", line)
        assert status == 204
    assert [server.heard.get(timeout=5) for _ in range(2)] == ['{"round": 1}', '{"end": {}}']
    assert ask(server, f"/{server.secret}/outputs", "POST", b"\0\1")[0] == 204
    assert server.outputs == b"\0\1"


def test_nobody_else_is_heard(server: Server) -> None:
    assert ask(server, "/say", "POST", b"x")[0] == 404
    assert ask(server, "/wrong/say", "POST", b"x")[0] == 404
    assert ask(server, f"/{server.secret}/model.onnx", "POST", b"x")[0] == 404
    assert ask(server, f"/{server.secret}/say", "POST", b"", {"Content-Length": "-1"})[0] == 404
    too_long = {"Content-Length": str(SAID_LIMIT_BYTES + 1)}
    assert ask(server, f"/{server.secret}/say", "POST", b"", too_long)[0] == 413
    assert server.heard.empty() and server.outputs == b""


def test_a_page_that_is_gone_is_noticed(server: Server) -> None:
    page = socket.create_connection(("127.0.0.1", server.server_port))
    page.sendall(f"GET /{server.secret}/alive HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    with pytest.raises(queue.Empty):
        server.heard.get(timeout=0.5)
    page.close()
    assert isinstance(server.heard.get(timeout=5), Gone)


def test_it_ends_while_a_page_still_waits() -> None:
    with serving({}) as server:
        port = server.server_port
        page = socket.create_connection(("127.0.0.1", port))
        page.sendall(f"GET /{server.secret}/alive HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        ask(server, "/")  # answered after the page's connection was taken
    page.settimeout(5)
    assert page.recv(100) == b""  # the request that was never answered ends
    page.close()
    with socket.socket() as late, pytest.raises(ConnectionRefusedError):
        late.connect(("127.0.0.1", port))
