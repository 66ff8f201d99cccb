"""HTTP/1.1 over a unix socket: one request per connection, the answer whole or streamed (RFC 9112).

A connection costs 0.1 ms on a unix socket, so none is kept: no pool, no stale connection, no doubt about
whether a request was sent twice. `_socket` is what `socket` wraps; the wrapper's import alone costs 8 ms.

    WireError
    ├── Disconnected   the other side went away in the middle
    └── Garbled        what came is not HTTP
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM
from _socket import socket as Socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LONGEST_HEAD = 65536
_PIECE = 262144
_UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


class WireError(Exception):
    """The conversation broke."""


class Disconnected(WireError):
    """The other side went away before it had said everything."""


class Garbled(WireError):
    """What came is not HTTP as RFC 9112 has it."""


def quote(text: str) -> str:
    """The text as one segment of a path or one value of a query (RFC 3986, section 2.1)."""
    if _UNRESERVED.issuperset(text):
        return text
    return "".join(chr(b) if chr(b) in _UNRESERVED else f"%{b:02X}" for b in text.encode())


def with_query(path: str, **values: object) -> str:
    """The path with a query of the values that are not None; booleans become true and false."""
    pairs = []
    for key, value in values.items():
        if value is not None:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            pairs.append(f"{key}={quote(text)}")
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def open_socket(path: str) -> Socket:
    """A connection to the unix socket at `path`, however long the path. Raises OSError.

    The socket blocks: a connect with a timeout fails at once with EAGAIN where the backlog is full
    (connect(2)).
    """
    channel = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    directory = -1
    try:
        if len(os.fsencode(path)) >= 108:  # sun_path of unix(7); a descriptor of the directory is shorter
            parent, _, name = path.rpartition("/")
            directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{directory}/{name}"
        channel.connect(path)
    except BaseException:
        channel.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)
    return channel


class Response:
    """An answer: status, headers (names in lower case), and a body that is read once, whole or in pieces."""

    def __init__(self, channel: Socket) -> None:
        self.channel = channel
        self.buffer = bytearray()
        self.status = 0
        self.headers: dict[str, str] = {}

    def close(self) -> None:
        self.channel.close()

    def read(self) -> bytes:
        """The whole body; the connection is closed. Raises Disconnected, Garbled, TimeoutError."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives; the connection is closed with the iterator."""
        try:
            if "chunked" in self.headers.get("transfer-encoding", "").lower():
                yield from self._chunks()
            elif "content-length" in self.headers:
                yield from self._counted(_number(self.headers["content-length"], 10))
            elif self.status not in (204, 304):
                while self.buffer or self._receive():
                    yield self._take(len(self.buffer))
        finally:
            self.close()

    def read_head(self) -> None:
        """Read status line and headers, skipping interim answers (100 and 102 to 199)."""
        while True:
            while (end := self.buffer.find(b"\r\n\r\n")) < 0:
                if len(self.buffer) > _LONGEST_HEAD:
                    raise Garbled("the head of the answer has no end")
                self._need()
            lines = self._take(end + 4)[:-4].decode("latin-1").split("\r\n")
            version, _, rest = lines[0].partition(" ")
            if not version.startswith("HTTP/1."):
                raise Garbled(f"'{lines[0][:80]}' is not an HTTP/1.1 status line")
            self.status = _number(rest[:3], 10)
            self.headers = {}
            for line in lines[1:]:
                name, colon, value = line.partition(":")
                if not colon:
                    raise Garbled(f"'{line[:80]}' is not a header")
                self.headers[name.lower()] = value.strip()
            if self.status >= 200 or self.status == 101:
                return

    def _receive(self) -> bool:
        try:
            data = self.channel.recv(_PIECE)
        except ConnectionError as error:
            raise Disconnected("the connection was reset") from error
        self.buffer += data
        return bool(data)

    def _need(self) -> None:
        if not self._receive():
            raise Disconnected("the connection was closed in the middle of an answer")

    def _take(self, count: int) -> bytes:
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def _counted(self, left: int) -> Iterator[bytes]:
        while left > 0:
            if not self.buffer:
                self._need()
            piece = self._take(min(left, len(self.buffer)))
            left -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := _number(self._line().partition(b";")[0].decode("latin-1"), 16):
            yield from self._counted(size)
            if self._line():
                raise Garbled("a chunk is longer than it said")
        while self._line():  # trailers
            pass

    def _line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            if len(self.buffer) > _LONGEST_HEAD:
                raise Garbled("a line has no end")
            self._need()
        return self._take(end + 2)[:-2]


def _number(text: str, base: int) -> int:
    digits = text.strip()
    try:
        if not digits.isalnum():  # int() takes signs and underscores, HTTP does not
            raise ValueError
        return int(digits, base)
    except ValueError:
        raise Garbled(f"'{text[:40]}' is not a number") from None


def send_request(
    channel: Socket, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None
) -> Response:
    """Send one request and read the head of its answer. Closes the channel when that fails.

    Raises Disconnected, Garbled and (when the channel has a timeout) TimeoutError.
    """
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None or method != "GET":
        lines.append(f"Content-Length: {len(body or b'')}")
    try:
        try:
            channel.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        except ConnectionError as error:
            raise Disconnected("the connection was closed before the request was sent") from error
        response = Response(channel)
        response.read_head()
    except BaseException:
        channel.close()
        raise
    return response
