"""The serial console for whoever types, and its log for whoever reads."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from insula.engine.errors import EngineLost
from insula.engine.inotify import CREATED, IN_MODIFY, watching
from insula.engine.qmp import connect_socket
from insula.kit.paths import SERIAL_LOG

LOG_LIMIT = 16 * 2**20  # bytes; a guest that prints without end would otherwise fill the host's disk
_CHUNK = 64 * 1024


class SerialConsole:
    """The serial port's socket, held by one person at a time (see Console)."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, on_close: Callable[[], None]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_close = on_close

    @classmethod
    async def connect(cls, path: Path, name: str, on_close: Callable[[], None]) -> SerialConsole:
        """Raises EngineLost when the socket leads nowhere. name: of the machine."""
        try:
            reader, writer = await asyncio.open_unix_connection(sock=connect_socket(path))
        except OSError as error:
            raise EngineLost(f"The console of machine '{name}' cannot be reached.") from error
        return cls(reader, writer, on_close)

    async def read(self) -> bytes:
        try:
            return await self._reader.read(_CHUNK)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise EngineLost("The machine ended while the console was written to.") from error

    async def close(self) -> None:
        self._on_close()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def follow_log(
    directory: Path, *, follow: bool = False, tail: int | None = None
) -> AsyncIterator[bytes]:
    """The serial log from its start, or its last `tail` lines; with follow, on until closed.

    Follows through rotation: after a truncation it goes on at the new start.
    """
    path = directory / SERIAL_LOG
    if not follow:
        with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as stream:
            stream.seek(_tail_offset(stream.fileno(), tail))
            while data := stream.read(_CHUNK):
                yield data
        return
    with watching(directory, CREATED) as created:
        while not path.exists():
            await created.wait()
    with watching(path, IN_MODIFY) as grown, path.open("rb", buffering=0) as stream:
        stream.seek(_tail_offset(stream.fileno(), tail))
        while True:
            while data := stream.read(_CHUNK):
                yield data
            await grown.wait()
            if os.fstat(stream.fileno()).st_size < stream.tell():
                stream.seek(0)


def _tail_offset(descriptor: int, tail: int | None) -> int:
    """Where the last `tail` lines begin; a last line without its newline counts as one."""
    if tail is None:
        return 0
    end = position = os.fstat(descriptor).st_size
    if tail <= 0:
        return end
    missing = tail
    while position > 0:
        start = max(0, position - _CHUNK)
        block = os.pread(descriptor, position - start, start)
        at = (
            len(block) - 1 if position == end else len(block)
        )  # the newline that ends the file begins no line
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            missing -= 1
            if missing == 0:
                return start + at + 1
        position = start
    return 0


def rotate_log(directory: Path, limit: int = LOG_LIMIT) -> bool:
    """Once the serial log is larger than the limit (bytes), move it to `serial.log.1`. True if it did.

    QEMU keeps the file open for appending, so it is copied and cut; bytes written between the two are lost,
    and no more of the past is kept than `limit` bytes.
    """
    path = directory / SERIAL_LOG
    try:
        stream = path.open("r+b", buffering=0)
    except FileNotFoundError:
        return False
    with stream:
        size = os.fstat(stream.fileno()).st_size
        if size <= limit:
            return False
        stream.seek(size - limit)
        target = path.with_name(f"{SERIAL_LOG}.1")
        temporary = path.with_name(f".{SERIAL_LOG}.1.new")
        with temporary.open("wb") as kept:
            while data := stream.read(_CHUNK):
                kept.write(data)
        temporary.replace(target)
        stream.truncate(0)
    return True
