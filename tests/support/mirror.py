"""A server on loopback for files to be downloaded, which can be told to misbehave."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass
class Mirror:
    """files: path -> content. cut: path -> bytes after which the connection breaks, once. redirects: path ->
    URL.

    seen: (path, Range header or "") of every request. no_ranges: paths whose Range is ignored. lengthless:
    without Content-Length. hold: a server that stops in the middle until it is set.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    no_ranges: set[str] = field(default_factory=set)
    lengthless: set[str] = field(default_factory=set)
    seen: list[tuple[str, str]] = field(default_factory=list)
    hold: threading.Event | None = None

    def __enter__(self) -> Self:
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path, request.headers.get("Range", "")
        self.seen.append((path, wanted))
        if path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[path])
            request.end_headers()
            return
        if path not in self.files:
            request.send_error(404)
            return
        data = self.files[path]
        tag = f'"{hashlib.sha256(data).hexdigest()[:8]}"'
        start = 0
        if wanted and path not in self.no_ranges and request.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        request.send_header("ETag", tag)
        if path not in self.lengthless:
            request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        self._send(request, path, data[start:], start)

    def _send(self, request: BaseHTTPRequestHandler, path: str, data: bytes, start: int) -> None:
        try:
            if path in self.cut:
                request.wfile.write(data[: self.cut.pop(path) - start])
            elif self.hold is not None:
                request.wfile.write(data[: len(data) // 2])
                request.wfile.flush()
                self.hold.wait(20)
            else:
                request.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        request.close_connection = True
