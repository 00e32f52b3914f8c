"""A stand-in for the daemon that adb talks to on a phone, for the genuine adb client: a program of its own.

It speaks the device's side of the protocol over TCP on 127.0.0.1 (CNXN, AUTH, OPEN, OKAY, WRTE, CLSE; the services
``shell,v2`` with exit codes and ``sync:`` with STAT, SEND, RECV) and runs commands on this machine, with
``/data/local/tmp`` below a folder of the test's. It is not Android: no SELinux, no bionic, no throttling, and the
processor is this machine's, so that the runner is its x86-64 build.

    python adbd_double.py ROOT [--model NAME] [--abi ABI] [--space BYTES] [--unauthorized]
                               [--vanish-after ROUNDS] [--kill-after ROUNDS]

It prints its port, and ends by itself when its stdin is closed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import psutil


def word(name: str) -> int:
    return int(struct.unpack("<I", name.encode())[0])


CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = map(word, ("CNXN", "AUTH", "OPEN", "OKAY", "WRTE", "CLSE"))
VERSION, MAX_DATA = 0x01000001, 256 * 1024
TOKEN = 1
STDOUT, STDERR, EXIT = 1, 2, 3


class Device:
    """What the command line said, and how much was written so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.root = Path(options.root).absolute()
        self.written = 0
        (self.root / "data/local/tmp").mkdir(parents=True, exist_ok=True)
        properties = {"ro.product.model": options.model, "ro.product.cpu.abilist": options.abi}
        cases = "".join(f"{name}) echo '{value}';;\n" for name, value in properties.items())
        tools = self.root / "bin"
        tools.mkdir(exist_ok=True)
        (tools / "getprop").write_text(f"#!/bin/sh\ncase $1 in\n{cases}*) echo;;\nesac\n")
        (tools / "getprop").chmod(0o755)

    def here(self, text: str) -> str:
        return text.replace("/data/local/tmp", f"{self.root}/data/local/tmp")

    def there(self, data: bytes) -> bytes:
        return data.replace(f"{self.root}/data".encode(), b"/data")

    @property
    def banner(self) -> bytes:
        facts = {"name": "double", "model": self.options.model.replace(" ", "_"), "device": "double"}
        said = "".join(f"ro.product.{name}={value};" for name, value in facts.items())
        return f"device::{said}features=shell_v2,cmd".encode()


class Connection:
    """One adb server that is connected."""

    def __init__(self, device: Device, channel: socket.socket) -> None:
        self.device, self.channel = device, channel
        self.streams: dict[int, Stream] = {}
        self.lock = threading.Lock()

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with self.lock, contextlib.suppress(OSError):
            self.channel.sendall(head + data)

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.channel.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def serve(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                command, first, second, size, _, _ = struct.unpack("<6I", self.receive(24))
                self.answer(command, first, second, self.receive(size))
        for stream in list(self.streams.values()):
            stream.close()

    def answer(self, command: int, first: int, second: int, data: bytes) -> None:
        if command in (CNXN, AUTH):
            if self.device.options.unauthorized:
                self.send(AUTH, TOKEN, 0, bytes(20))
            else:
                self.send(CNXN, VERSION, MAX_DATA, self.device.banner)
        elif command == OPEN:
            stream = Stream(self, len(self.streams) + 1, first, data.rstrip(b"\0").decode())
            self.streams[stream.own] = stream
            threading.Thread(target=stream.serve, daemon=True).start()
        elif command == WRTE:
            self.streams[second].inbox.put(data)
            self.send(OKAY, second, first)
        elif command == OKAY:
            self.streams[second].acknowledged.release()
        elif command == CLSE and second in self.streams:
            self.streams[second].close()


class Stream:
    """One opened service. `own` and `other` are the two sides' numbers for it."""

    def __init__(self, connection: Connection, own: int, other: int, service: str) -> None:
        self.connection, self.own, self.other, self.service = connection, own, other, service
        self.inbox: queue.Queue[bytes | None] = queue.Queue()
        self.acknowledged = threading.Semaphore(0)
        self.closed = False
        self.buffer = b""
        self.process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """The other side is gone: what runs for it finds its pipe closed, as on a phone."""
        self.closed = True
        self.inbox.put(None)
        self.acknowledged.release()
        if self.process is not None and self.process.stdout is not None:
            with contextlib.suppress(OSError):
                os.close(self.process.stdout.fileno())

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_DATA):
            if self.closed:
                raise EOFError
            self.connection.send(WRTE, self.own, self.other, data[start : start + MAX_DATA])
            self.acknowledged.acquire()

    def read(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = self.inbox.get()
            if data is None:
                raise EOFError
            self.buffer += data
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def serve(self) -> None:
        name, _, rest = self.service.partition(":")
        if name.split(",")[0] not in ("shell", "sync"):
            self.connection.send(CLSE, 0, self.other)
            return
        self.connection.send(OKAY, self.own, self.other)
        with contextlib.suppress(EOFError, OSError):
            self.sync() if name == "sync" else self.shell(rest)
        if not self.closed:
            self.connection.send(CLSE, self.own, self.other)

    # -- shell

    def shell(self, command: str) -> None:
        device = self.connection.device
        environment = {**os.environ, "PATH": f"{device.root}/bin:{os.environ['PATH']}"}
        with (device.root / "noise").open("w+b") as noise:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", device.here(command)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=noise,
                cwd=device.root,
                env=environment,
            )
            self.forward(command)
            code = self.process.wait()
            noise.seek(0)
            self.packet(STDERR, device.there(noise.read()))
        self.packet(EXIT, bytes([code & 255 if code >= 0 else 128 - code]))

    def forward(self, command: str) -> None:
        assert self.process is not None and self.process.stdout is not None
        options, rounds = self.connection.device.options, 0
        descriptor = self.process.stdout.fileno()
        rest = b""
        while data := os.read(descriptor, 65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.packet(STDOUT, self.connection.device.there(line) + b"\n")
                rounds += b'"round"' in line
                if "race" in command and rounds == options.vanish_after:
                    os._exit(0)
                if "race" in command and rounds == options.kill_after:
                    for child in psutil.Process(self.process.pid).children(recursive=True):
                        child.send_signal(signal.SIGKILL)
        self.packet(STDOUT, self.connection.device.there(rest))

    def packet(self, kind: int, data: bytes) -> None:
        if data:
            self.write(struct.pack("<BI", kind, len(data)) + data)

    # -- files

    def sync(self) -> None:
        while (command := self.read(4)) != b"QUIT":
            (size,) = struct.unpack("<I", self.read(4))
            path = self.read(size).decode()
            {b"STAT": self.stat, b"SEND": self.receive_file, b"RECV": self.send_file}[command](path)

    def stat(self, path: str) -> None:
        try:
            found = Path(self.connection.device.here(path)).stat()
            self.write(b"STAT" + struct.pack("<3I", found.st_mode, found.st_size, int(found.st_mtime)))
        except OSError:
            self.write(b"STAT" + struct.pack("<3I", 0, 0, 0))

    def receive_file(self, path: str) -> None:
        device = self.connection.device
        name, _, mode = path.rpartition(",")
        target = Path(device.here(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        full = False
        with target.open("wb") as file:
            while self.read(4) == b"DATA":
                data = self.read(struct.unpack("<I", self.read(4))[0])
                device.written += len(data)
                full = full or device.written > device.options.space
                if not full:
                    file.write(data)
            self.read(4)
        target.chmod(int(mode) & 0o777)
        self.fail("write failed: No space left on device") if full else self.write(b"OKAY" + struct.pack("<I", 0))

    def send_file(self, path: str) -> None:
        try:
            data = Path(self.connection.device.here(path)).read_bytes()
        except OSError as error:
            self.fail(f"open failed: {error.strerror}")
            return
        for start in range(0, len(data), 65536):
            part = data[start : start + 65536]
            self.write(b"DATA" + struct.pack("<I", len(part)) + part)
        self.write(b"DONE" + struct.pack("<I", 0))

    def fail(self, message: str) -> None:
        self.write(b"FAIL" + struct.pack("<I", len(message)) + message.encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--model", default="Double 8")
    parser.add_argument("--abi", default="x86_64")
    parser.add_argument("--space", type=int, default=10**12)
    parser.add_argument("--unauthorized", action="store_true")
    parser.add_argument("--vanish-after", type=int)
    parser.add_argument("--kill-after", type=int)
    device = Device(parser.parse_args())
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)

    def leave() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=leave, daemon=True).start()
    while True:
        channel, _ = listener.accept()
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=Connection(device, channel).serve, daemon=True).start()


if __name__ == "__main__":
    main()
