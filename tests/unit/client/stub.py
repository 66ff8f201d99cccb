"""A daemon that says what a test scripts: HTTP/1.1 and websockets on a unix socket, in threads.

    with Stub(home) as stub:
        stub.answer("GET", "/v1/machines", [])
        ...
        assert stub.requests[0].headers["insula-version"] == insula.__version__

What is scripted for a path (without its query) is used in order, the last answer again and again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insula.client.locate import daemon_directory, daemon_socket


@dataclass
class Asked:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Handler = Callable[["Asked", "Peer"], None]


class Peer:
    """The server's end of a connection; after `accept` a websocket."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.channel.sendall(data)

    def read(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = self.channel.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def read_request(self) -> Asked:
        while b"\r\n\r\n" not in self.buffer:
            data = self.channel.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, target, _version = first.split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        path, _, query = target.partition("?")
        return Asked(method, path, query, headers, self.read(int(headers.get("content-length", 0))))

    def respond(self, value: object, status: int = 200, kind: str = "application/json") -> None:
        body = b"" if value is None else json.dumps(value).encode()
        head = f"HTTP/1.1 {status} Any\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.send(head.encode() + body)

    # As a websocket

    def accept(self, asked: Asked) -> None:
        key = asked.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        head = "HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.send(f"{head}Sec-WebSocket-Accept: {accept}\r\n\r\n".encode())

    def frame(self, opcode: int, payload: bytes, final: bool = True) -> None:
        size = len(payload)
        if size < 126:
            head = bytes([(0x80 if final else 0) | opcode, size])
        elif size < 65536:
            head = bytes([(0x80 if final else 0) | opcode, 126]) + size.to_bytes(2, "big")
        else:
            head = bytes([(0x80 if final else 0) | opcode, 127]) + size.to_bytes(8, "big")
        self.send(head + payload)

    def say(self, **message: Any) -> None:
        self.frame(1, json.dumps(message).encode())

    def output(self, channel: int, data: bytes) -> None:
        self.frame(2, bytes([channel]) + data)

    def close_with(self, code: int = 1000) -> None:
        self.frame(8, code.to_bytes(2, "big"))

    def hear(self) -> Any:
        """The next message: text as JSON, binary as bytes, None for the end."""
        while True:
            first, second = self.read(2)
            assert second & 0x80, "a client must mask"
            size = second & 0x7F
            if size >= 126:
                size = int.from_bytes(self.read(2 if size == 126 else 8), "big")
            mask = self.read(4)
            payload = bytes(b ^ mask[i % 4] for i, b in enumerate(self.read(size)))
            if first & 0x0F == 1:
                return json.loads(payload)
            if first & 0x0F == 2:
                return payload
            if first & 0x0F == 8:
                return None


@dataclass
class Stub:
    home: Path
    requests: list[Asked] = field(default_factory=list)
    _script: dict[tuple[str, str], list[Handler]] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Stub:
        Path(daemon_directory(str(self.home))).mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        path = daemon_socket(str(self.home))
        Path(path).unlink(missing_ok=True)
        here = os.open(Path(path).parent, os.O_PATH)
        self._listener.bind(f"/proc/self/fd/{here}/{Path(path).name}")
        os.close(here)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def on(self, method: str, path: str, *handlers: Handler) -> None:
        self._script.setdefault((method, path), []).extend(handlers)

    def answer(self, method: str, path: str, *values: object, status: int = 200) -> None:
        """Answer with JSON, each value once, the last for good."""
        for value in values:
            self.on(method, path, lambda _asked, peer, value=value: peer.respond(value, status))

    def refuse(self, method: str, path: str, **problem: Any) -> None:
        told = {"family": "conflict", "status": 409, "exit_status": 73, **problem}
        self.on(method, path, lambda _, peer: peer.respond(told, told["status"], "application/problem+json"))

    def raw(self, method: str, path: str, *pieces: bytes) -> None:
        """Send the bytes as they are and hang up."""
        self.on(method, path, lambda _, peer: [peer.send(piece) for piece in pieces])

    def websocket(self, path: str, talk: Callable[[Peer], None]) -> None:
        def handler(asked: Asked, peer: Peer) -> None:
            peer.accept(asked)
            talk(peer)

        self.on("GET", path, handler)

    def asked(self, method: str, path: str) -> list[Asked]:
        return [asked for asked in self.requests if (asked.method, asked.path) == (method, path)]

    def wait_asked(self, method: str, path: str) -> Asked:
        """Wait until something was asked."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.asked(method, path), 20), (
                f"nobody asked {method} {path}"
            )
        return self.asked(method, path)[-1]

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(channel,), daemon=True).start()

    def _serve(self, channel: socket.socket) -> None:
        with channel:
            try:
                peer = Peer(channel)
                asked = peer.read_request()
                handlers = self._script.get((asked.method, asked.path))
                handler = None
                if handlers:
                    handler = handlers.pop(0) if len(handlers) > 1 else handlers[0]
                with self._changed:
                    self.requests.append(asked)
                    self._changed.notify_all()
                if handler is None:
                    what = f"unscripted: {asked.method} {asked.path}"
                    peer.respond(
                        {"code": "no-such-route", "detail": what, "status": 404, "family": "invalid"}, 404
                    )
                else:
                    handler(asked, peer)
            except (EOFError, OSError):
                pass


def machine(name: str = "web", **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "project": "default",
        "uid": f"uid-{name}",
        "generation": 3,
        "phase": "running",
        "since": "2026-05-01T12:00:00.250Z",
        "reason": "",
        "image": "micro",
        "image_digest": "sha256:0123456789abcdef",
        "cpus": 2,
        "memory_bytes": 512 * 2**20,
        "pid": 4242,
        "addresses": ["10.0.2.15"],
        "created": "2026-05-01T12:00:00.250Z",
        "power": "on",
        "run_policy": "keep",
        "ephemeral": False,
        "boot": "direct",
        "firmware": "bios",
        "network": "user",
        "publish": [{"host_address": "127.0.0.1", "host_port": 2222, "guest_port": 22, "protocol": "tcp"}],
        "volumes": [],
        "cdrom": None,
        "accelerator": {"name": "tcg", "reason": "KVM opens and does not run"},
        "engine_version": "7.2.9",
        "agent": "connected",
        "restarts": 0,
        "directory": "/h/machines/uid-web",
        "last_exit": None,
        **fields,
    }


def operation(verb: str = "start", state: str = "done", **fields: Any) -> dict[str, Any]:
    return {
        "uid": "0123456789abcdef",
        "project": "default",
        "name": "web",
        "generation": 3,
        "created": "2026-05-01T12:00:00.250Z",
        "kind": "operation",
        "verb": verb,
        "target_kind": "machine",
        "target": "uid-web",
        "parameters": {},
        "state": state,
        "steps": [],
        "progress": None,
        "cancel_requested": False,
        "outcome": None,
        "problem": None,
        "notes": [],
        "recovered": 0,
        "started": None,
        "finished": None,
        **fields,
    }


def snapshot(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "uid": f"uid-{name}",
        "project": "default",
        "machine": "web",
        "parent": None,
        "depth": 0,
        "current": False,
        "whole": True,
        "taken": "2026-05-01T12:00:00.250Z",
        "description": "",
        "phase": "running",
        "memory_bytes": 2 * 2**20,
        "quiesced": False,
        "stood_seconds": 0.064,
        "exclusive_bytes": 3 * 2**20,
        "disks": [{"id": "vol-1", "size_bytes": 64 * 2**20, "volume": "data"}],
        **fields,
    }


def losses(**fields: Any) -> dict[str, Any]:
    return {
        "since": "2026-05-01T12:00:00.250Z",
        "memory": True,
        "written_bytes": {"data": 9 * 2**20},
        "detached": [],
        **fields,
    }


MACHINES = "/v1/projects/default/machines"
WEB = f"{MACHINES}/web"
OPERATION = "/v1/operations/0123456789abcdef"
