"""A websocket client (RFC 6455) for a unix socket: frames, and a duplex channel that never blocks while
sending.

What is sent is queued and goes out while `exchange` waits for what comes in: two sides that both only send
would wait for each other forever, as `cat` with a large input does.
"""

from __future__ import annotations

import os
import select

from insula.client.wire import Disconnected, Garbled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket
    from collections.abc import Sequence

    from insula.client.transport import Transport

# The key only proves that the other side means to speak websocket. There is no cache to fool on a unix
# socket, so a constant one (RFC 6455, section 1.3) with its known answer saves hashlib, which loads OpenSSL.
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
_ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NORMAL, GOING_AWAY, NO_CLOSE_FRAME = 1000, 1001, 1006
HIGH_WATER = 262144  # bytes queued to be sent above which no more input is taken
_PIECE = 262144


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """A whole message as one frame, masked as a client's must be (section 5.3)."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    mask = os.urandom(4)
    return head + mask + _apply_mask(payload, mask)


def _apply_mask(payload: bytes, mask: bytes) -> bytes:
    # One XOR of two big numbers is some hundred times faster than a loop over bytes.
    size = len(payload)
    pattern = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(pattern, "little")).to_bytes(size, "little")


class Decoder:
    """Messages out of a stream of bytes, however it was cut: (opcode, payload), fragments joined."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._opcode = CONTINUATION

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The messages and control frames that are complete now. Raises Garbled."""
        self._buffer += data
        messages = []
        while (frame := self._next_frame()) is not None:
            final, opcode, payload = frame
            if opcode >= CLOSE:
                messages.append((opcode, payload))
                continue
            if (opcode == CONTINUATION) != (self._opcode != CONTINUATION):
                raise Garbled("a websocket message was cut into in the middle")
            self._opcode = opcode or self._opcode
            self._parts.append(payload)
            if final:
                messages.append((self._opcode, b"".join(self._parts)))
                self._parts, self._opcode = [], CONTINUATION
        return messages

    def _next_frame(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        if buffer[0] & 0x70 or buffer[1] & 0x80:
            raise Garbled("a websocket frame has bits that nobody agreed on, or is masked by a server")
        size, start = buffer[1] & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < start + size:
            return None
        frame = bool(buffer[0] & 0x80), buffer[0] & 0x0F, bytes(buffer[start : start + size])
        del buffer[: start + size]
        return frame


class WebSocket:
    """A duplex channel of messages: str for text, bytes for binary.

    close_code (NO_CLOSE_FRAME: without a word) and close_reason say more once it is closed.
    """

    def __init__(self, channel: Socket, received: bytes = b"") -> None:
        self._channel = channel
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self._early: list[str | bytes] = []
        self._ended = False
        self.close_code = NO_CLOSE_FRAME
        self.close_reason = ""
        channel.setblocking(False)
        if received:
            self._early = self._sort(self._decoder.feed(received))

    @property
    def closed(self) -> bool:
        """Whether the other side has said goodbye or is gone, and all it said before has been taken."""
        return self._ended and not self._early

    def fileno(self) -> int:
        return self._channel.fileno()

    @property
    def congested(self) -> bool:
        """Whether so much waits to be sent that no more should be taken in."""
        return len(self._outgoing) >= HIGH_WATER

    def send(self, message: str | bytes) -> None:
        """Queue a message; what the channel takes at once goes out at once."""
        if self._ended:
            return
        text = isinstance(message, str)
        payload = message.encode() if isinstance(message, str) else message
        self._outgoing += encode_frame(TEXT if text else BINARY, payload)
        self._flush()

    def exchange(
        self, inputs: Sequence[int] = (), timeout: float | None = None
    ) -> tuple[list[str | bytes], list[int]]:
        """Send what is queued and wait until something happens: (messages, those of `inputs` that are
        readable).

        inputs: descriptors to watch as well. timeout: seconds, None for as long as it takes. Messages may
        still come when `closed` is true for the first time. Raises Garbled.
        """
        messages, self._early = self._early, []
        poll = select.poll()
        if not self._ended:
            poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        for descriptor in inputs:
            poll.register(descriptor, select.POLLIN)
        if messages or self._ended:
            timeout = 0
        ready = []
        for descriptor, events in poll.poll(None if timeout is None else max(0, timeout) * 1000):
            if descriptor != self._channel.fileno():
                ready.append(descriptor)
                continue
            if events & select.POLLOUT:
                self._flush()
            if events & ~select.POLLOUT:
                messages += self._receive()
        return messages, ready

    def close(self, code: int = NORMAL) -> None:
        """Say goodbye, as far as the channel takes it without waiting, and hang up. Does nothing a second
        time."""
        if self._channel.fileno() < 0:
            return
        if not self._ended:
            self._outgoing += encode_frame(CLOSE, code.to_bytes(2, "big"))
            self._flush()
            self._ended = True
        self._channel.close()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._channel.send(self._outgoing[:_PIECE])]
        except BlockingIOError:
            pass
        except ConnectionError:
            self._outgoing.clear()  # what the other side said last is still to be read; then its end is seen

    def _receive(self) -> list[str | bytes]:
        messages: list[str | bytes] = []
        while not self._ended:
            try:
                data = self._channel.recv(_PIECE)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                self._ended = True
                break
            messages += self._sort(self._decoder.feed(data))
            if len(data) < _PIECE:
                break
        return messages

    def _sort(self, frames: list[tuple[int, bytes]]) -> list[str | bytes]:
        messages: list[str | bytes] = []
        for opcode, payload in frames:
            if opcode == TEXT:
                messages.append(payload.decode(errors="replace"))
            elif opcode == BINARY:
                messages.append(payload)
            elif opcode == PING:
                self._outgoing += encode_frame(PONG, payload)
                self._flush()
            elif opcode == CLOSE:
                self.close_code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
                self.close_reason = payload[2:].decode(errors="replace")
                self._outgoing += encode_frame(CLOSE, payload[:2])
                self._flush()
                self._ended = True
        return messages


def open_websocket(transport: Transport, target: str) -> WebSocket:
    """The handshake (section 4.1). Raises the error the daemon answers instead, DaemonLost, DaemonGarbled."""
    response = transport.upgrade(
        target,
        {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": _KEY,
        },
    )
    if response.headers.get("sec-websocket-accept") != _ACCEPT:
        response.close()
        raise Disconnected("the daemon accepted a websocket that nobody asked for")
    return WebSocket(response.channel, bytes(response.buffer))
