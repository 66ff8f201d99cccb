"""The bytes of Insula's guest agent protocol, without I/O; specified in docs/reference/guest-agent.md.

A frame is a 16-byte header, up to 64 KiB of payload and a 4-byte seal: the low half of the session's nonce. A
frame that a dying host left half-written is completed with bytes of its successor, and the seal shows it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from insula.engine.agent.protocol import GuestInfo, Identity, Interface

MAGIC = b"\x89INS"
VERSION = 1
MAX_PAYLOAD = 64 * 1024
MAX_WORDS = 4096  # of argv, and of env
HEADER = struct.Struct("<4sIII")  # magic, type, stream, payload length
SEAL = struct.Struct("<I")
MAX_FRAME = HEADER.size + MAX_PAYLOAD + SEAL.size
_SYNC = struct.Struct("<QI")
_SYNC_REPLY = struct.Struct("<QIIII")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
FLAG_TTY = 1
CAN_RENEW, CAN_FREEZE, CAN_REFRESH = 4, 8, 16  # capabilities


class FrameType(IntEnum):
    """The second word of a header."""

    SYNC = 1
    SYNC_REPLY = 2
    PING = 3
    PONG = 4
    INFO = 5
    INFO_REPLY = 6
    SHUTDOWN = 7
    SHUTDOWN_REPLY = 8
    RENEW = 9
    RENEW_REPLY = 10
    FREEZE = 11
    FREEZE_REPLY = 12
    THAW = 13
    THAW_REPLY = 14
    EXEC = 16
    STARTED = 17
    STDIN = 18
    STDIN_EOF = 19
    STDOUT = 20
    STDERR = 21
    WINDOW = 22
    SIGNAL = 23
    RESIZE = 24
    EXIT = 25
    CLOSE = 26
    ERROR = 31


class Reason(IntEnum):
    """Why the agent said ERROR."""

    PROTOCOL = 1
    EXEC = 2
    CWD = 3
    USER = 4
    BUSY = 5
    SYSTEM = 6
    UNSUPPORTED = 7
    FROZEN = 8
    FILE_SYSTEM = 9


class Malformed(Exception):
    """Bytes that are no frame of this session."""


@dataclass(frozen=True)
class Frame:
    """A frame as received: type is a plain number, for a newer agent may have more of them."""

    type: int
    stream: int
    payload: bytes


@dataclass(frozen=True)
class Hello:
    """A SYNC_REPLY: what the agent can, and how much input it takes ahead per command."""

    version: int
    capabilities: int
    max_streams: int
    stdin_window: int


@dataclass(frozen=True)
class Refusal:
    """An ERROR: reason is a Reason (or a newer number), errno the guest's, text words or a mount point."""

    reason: int
    errno: int
    text: str


def encode_frame(type: FrameType, stream: int, payload: bytes, seal: int) -> bytes:
    return HEADER.pack(MAGIC, type, stream, len(payload)) + payload + SEAL.pack(seal)


def seal_of(nonce: int) -> int:
    return nonce & 0xFFFFFFFF


def encode_sync(nonce: int) -> bytes:
    return encode_frame(FrameType.SYNC, 0, _SYNC.pack(nonce, VERSION), seal_of(nonce))


def find_hello(buffer: bytearray, nonce: int) -> Hello | None:
    """The reply to our SYNC if it is there, consumed with all before it: that was said to somebody else."""
    start = HEADER.pack(MAGIC, FrameType.SYNC_REPLY, 0, _SYNC_REPLY.size) + _U64.pack(nonce)
    size = HEADER.size + _SYNC_REPLY.size + SEAL.size
    at = buffer.find(start)
    if at < 0:
        del buffer[: max(0, len(buffer) - len(start) + 1)]
        return None
    if len(buffer) - at < size:
        return None
    _, version, capabilities, max_streams, window = _SYNC_REPLY.unpack_from(buffer, at + HEADER.size)
    del buffer[: at + size]
    return Hello(version, capabilities, max_streams, window)


def take_frames(buffer: bytearray, seal: int) -> Iterator[Frame]:
    """The complete frames at the buffer's start, consumed as they are taken. Raises Malformed."""
    while len(buffer) >= HEADER.size:
        magic, type, stream, length = HEADER.unpack_from(buffer)
        if magic != MAGIC or length > MAX_PAYLOAD:
            raise Malformed(f"no frame begins with {bytes(buffer[: HEADER.size]).hex(' ')}")
        end = HEADER.size + length
        if len(buffer) < end + SEAL.size:
            return
        if SEAL.unpack_from(buffer, end)[0] != seal:
            raise Malformed(f"a frame of type {type} has the seal of another session")
        payload = bytes(buffer[HEADER.size : end])
        del buffer[: end + SEAL.size]
        yield Frame(type, stream, payload)


def _string(text: str) -> bytes:
    raw = text.encode(errors="surrogateescape")
    return _U32.pack(len(raw)) + raw


def encode_exec(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    user: str,
    tty: bool,
    rows: int,
    cols: int,
    window: int,
) -> bytes:
    head = struct.pack("<IIHH", window, FLAG_TTY if tty else 0, rows & 0xFFFF, cols & 0xFFFF)
    words = _U32.pack(len(argv)) + b"".join(_string(word) for word in argv)
    additions = _U32.pack(len(env)) + b"".join(_string(f"{name}={value}") for name, value in env.items())
    return head + words + additions + _string(cwd) + _string(user)


def encode_renew(identity: Identity | None, entropy: bytes, nanoseconds: int) -> bytes:
    """Without an identity: the guest keeps its own."""
    identity = identity or Identity("", "")
    cards = b"".join(_string(old) + _string(new) for old, new in identity.macs)
    return (
        _U64.pack(nanoseconds)
        + _U32.pack(len(entropy))
        + entropy
        + _string(identity.hostname)
        + _string(identity.machine_id)
        + _U32.pack(len(identity.macs))
        + cards
    )


def decode_renewed(payload: bytes) -> list[tuple[str, int]]:
    """What was renewed, in order, each with 0 or the guest's errno."""
    cursor = _Cursor(payload)
    return [(cursor.string(), cursor.number()) for _ in range(cursor.number())]


def encode_number(number: int) -> bytes:
    return _U32.pack(number)


def encode_size(rows: int, cols: int) -> bytes:
    return struct.pack("<HH", rows & 0xFFFF, cols & 0xFFFF)


class _Cursor:
    """Reads a payload from its start. Raises Malformed when it is too short."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def bytes(self, length: int) -> bytes:
        piece = self._payload[self._at : self._at + length]
        if len(piece) < length:
            raise Malformed("a payload ends too early")
        self._at += length
        return piece

    def number(self) -> int:
        return int(_U32.unpack(self.bytes(4))[0])

    def long(self) -> int:
        return int(_U64.unpack(self.bytes(8))[0])

    def string(self) -> str:
        return self.bytes(self.number()).decode(errors="replace")


def decode_number(payload: bytes) -> int:
    return _Cursor(payload).number()


def decode_exit(payload: bytes) -> tuple[bool, int]:
    """(killed by a signal, the signal or the exit code)."""
    cursor = _Cursor(payload)
    return bool(cursor.number()), cursor.number()


def decode_refusal(payload: bytes) -> Refusal:
    cursor = _Cursor(payload)
    return Refusal(cursor.number(), cursor.number(), cursor.string())


def decode_info(payload: bytes) -> GuestInfo:
    cursor = _Cursor(payload)
    hostname, os, kernel, uptime_ms = cursor.string(), cursor.string(), cursor.string(), cursor.long()
    interfaces = []
    for _ in range(cursor.number()):
        name, mac = cursor.string(), cursor.string()
        addresses = tuple(cursor.string() for _ in range(cursor.number()))
        interfaces.append(Interface(name, mac, addresses))
    return GuestInfo(hostname, tuple(interfaces), os, kernel, uptime_ms / 1000)
