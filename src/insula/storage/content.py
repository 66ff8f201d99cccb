"""What a disk holds, as one digest: of its bytes, whatever file and format they came in.

SHA-256 over, for each aligned block of 1 MiB that is not all zeros, its offset (8 bytes, little-endian) and
its bytes. Holes and zeros are one and the same, so a sparse copy and a full one have the same digest, and a
disk of 64 TiB with little in it is read quickly.

A `Follower` computes it while the disk is still being written, which costs no time where there are two
processors. That is right because qemu-img writes in ascending order unless told otherwise (qemu-img(1), -W):
what lies before the last byte that was written is final.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable

_BLOCK = 2**20
_ZEROS = bytes(_BLOCK)
_PAUSE = 0.02  # seconds between looks at a growing file


class Follower:
    """The digest of a file of a known size that somebody fills from its beginning to its end."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._digest = hashlib.sha256()
        self._position = 0
        self.given_up = False

    def give_up(self) -> None:
        """Nobody wants the digest any more: `follow` comes to its end at once."""
        self.given_up = True

    def follow(self, ended: threading.Event, look: Callable[[], None] = lambda: None) -> str:
        """Until `ended` and then to the end: the digest in hexadecimal. look: called now and then."""
        while not ended.wait(_PAUSE):
            look()
            last = self._last_written()
            self._advance((last - 1) // _BLOCK * _BLOCK if last else 0)
        self._advance(self._size)
        return self._digest.hexdigest()

    def _last_written(self) -> int:
        """Where the data ends that is there so far; 0 when none is beyond what was read."""
        last = at = self._position
        while (found := _seek(self._descriptor, at, os.SEEK_DATA)) is not None:
            last = at = _seek(self._descriptor, found, os.SEEK_HOLE) or self._size
        return last

    def _advance(self, end: int) -> None:
        """Take in all blocks up to `end`. Asks where data is once for each stretch of it: the file's lock,
        which that takes, is also the writer's."""
        while self._position < end and not self.given_up:
            found = _seek(self._descriptor, self._position, os.SEEK_DATA)
            if found is None or found >= end:
                self._position = end
                return
            stretch = min(end, _seek(self._descriptor, found, os.SEEK_HOLE) or end)
            self._position = found // _BLOCK * _BLOCK
            while self._position < stretch and not self.given_up:
                self._take_block()

    def _take_block(self) -> None:
        data = os.pread(self._descriptor, _BLOCK, self._position)
        if data != _ZEROS[: len(data)]:
            self._digest.update(self._position.to_bytes(8, "little"))
            self._digest.update(data)
        self._position += _BLOCK


def digest_of(descriptor: int, size: int) -> str:
    """The digest of a disk that is whole."""
    ended = threading.Event()
    ended.set()
    return Follower(descriptor, size).follow(ended)


def _seek(descriptor: int, at: int, whence: int) -> int | None:
    """lseek(2); None where there is no more data."""
    try:
        return os.lseek(descriptor, at, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
