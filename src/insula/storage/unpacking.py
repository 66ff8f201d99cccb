"""Unpacking what publishers compress: xz and gzip, in bounded memory, sparse, and never more than there is
room for."""

from __future__ import annotations

import lzma
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from insula.kit.units import format_size
from insula.storage.conversion import RESERVE
from insula.storage.download import Stopped
from insula.storage.errors import ImageDamaged, ImageRefused, disk_full, free_bytes

MOST_UNPACKED = 2**40  # bytes: a download that unpacks to more is an attack
_MEMORY = 256 * 2**20  # bytes for xz's dictionary: twice what `xz -9` needs
_PIECE = 2**20
_ZEROS = bytes(_PIECE)


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


class _Gzip:
    """zlib's way to say what bz2 and lzma say: input that was not taken is kept."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def unpack(
    packed: Path,
    compression: str,
    target: Path,
    name: str,
    stop: threading.Event,
    tell: Callable[[float], None],
) -> None:
    """Unpack into `target`, a new file. tell(fraction of the input). Raises ImageDamaged, ImageRefused,
    DiskFull and Stopped."""
    size = max(1, packed.stat().st_size)
    written = 0
    with packed.open("rb") as reader, target.open("xb") as writer:
        try:
            for data in _unpacked(reader, compression):
                if stop.is_set():
                    raise Stopped
                tell(min(1.0, reader.tell() / size))
                written += len(data)
                _check(written, target, name)
                if data == _ZEROS[: len(data)]:
                    writer.seek(len(data), os.SEEK_CUR)
                else:
                    writer.write(data)
        except (lzma.LZMAError, zlib.error, EOFError) as error:
            raise ImageDamaged(
                f"The image '{name}' is damaged: it cannot be unpacked as {compression}.",
                hint="The catalogue may name the wrong compression.",
            ) from error
        writer.truncate(written)


def _unpacked(reader: IO[bytes], compression: str) -> Iterator[bytes]:
    """What comes out, in pieces of at most _PIECE; of all streams, where several follow each other. Raises
    EOFError when it ends in the middle of one."""
    unpacker = _new_unpacker(compression)
    while piece := reader.read(_PIECE):
        while True:
            if unpacker.eof:
                # Between streams xz may have zeros (stream padding).
                piece = (unpacker.unused_data + piece).lstrip(b"\0")
                if not piece:
                    break
                unpacker = _new_unpacker(compression)
            data = unpacker.decompress(piece, _PIECE)
            piece = b""
            if not data and not unpacker.eof:
                break
            yield data
    if not unpacker.eof:
        raise EOFError("it ends in the middle")


def _new_unpacker(compression: str) -> _Unpacker:
    return _Gzip() if compression == "gzip" else lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)


def _check(written: int, target: Path, name: str) -> None:
    if written > MOST_UNPACKED:
        raise ImageRefused(
            f"The image '{name}' is refused: it unpacks to more than {format_size(MOST_UNPACKED)}."
        )
    if free_bytes(target.parent) < RESERVE:
        raise disk_full(target.parent, RESERVE, f"unpacking image '{name}'")
