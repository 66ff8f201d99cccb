"""What a live machine has in its memory, looked at from outside: nothing is asked of its monitor for it.

    process' own pages ──────────what it has written──────────┐
                                                              ├──> what its guest sees; zeros are the rest
    template's file ──what it has not, and the template had───┘

A fork's memory is its template's file, but for the pages that it has written: these are the process' own.
What neither has used is not looked at here. To read it through the process, as a monitor does that saves its
memory, has the kernel put a page of zeros into the template's file, where it stays.
"""

from __future__ import annotations

import ctypes
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence

Page = tuple[int, memoryview]  # where it is in its block, and what is in it
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
# /proc/PID/pagemap (proc(5)) has 8 bytes a page. Of the highest of these, bit 7: it is there; bit 6: it is
# swapped; bit 5: it is a file's, so not the process' own.
_ENTRY = 8
_OWN = bytes(1 if state & 0xC0 and not state & 0x20 else 0 for state in range(256))
_RUN, _GAP = re.compile(rb"\x01+"), re.compile(rb"\x00+")
_RUN_COST = 2**13  # bytes that are copied in the 2 us which it takes to begin with another run of pages
_MOST_PIECES = 1024  # of one request (IOV_MAX, <limits.h>)
_LONGEST = 256  # pages of a piece: so no request is for more than the kernel does at once (2 GiB, read(2))
_ZEROS = bytes(PAGE_SIZE)
_CHUNK = 2**20  # bytes

_libc = ctypes.CDLL(None, use_errno=True)
_read_memory = _libc.process_vm_readv
_read_memory.restype = ctypes.c_ssize_t
_read_memory.argtypes = (ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong)


class GuestMemory:
    """One machine's memory in its process. Raises OSError where this user may not look into that.

    address, size: of the memory in the process, in bytes. base: what is mapped there copy on write, if
    anything is; closed with this.
    """

    def __init__(self, pid: int, address: int, size: int, base: int | None) -> None:
        self._pid = pid
        self._address = address
        self.size = size
        self.base = base
        self._pages = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._content = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self._pages)
            raise

    def close(self) -> None:
        for descriptor in (self._pages, self._content, self.base):
            if descriptor is not None:
                os.close(descriptor)

    def own(self) -> bytes:
        """A byte for each page: 1 where it is the process' own."""
        length = self.size // PAGE_SIZE * _ENTRY
        entries = os.pread(self._pages, length, self._address // PAGE_SIZE * _ENTRY)
        if len(entries) < length:
            raise self._lost()
        return entries[_ENTRY - 1 :: _ENTRY].translate(_OWN)

    def own_bytes(self) -> int:
        """How much the process has written."""
        return self.own().count(1) * PAGE_SIZE

    def standing_bytes(self) -> int:
        """What it takes to copy that while the machine stands, in bytes that would be copied in one run."""
        own = self.own()
        return own.count(1) * PAGE_SIZE + own.count(b"\x00\x01") * _RUN_COST

    def base_bytes(self) -> int:
        """How much there is in what it shares with others."""
        return os.fstat(self.base).st_blocks * 512 if self.base is not None else 0  # stat(2)

    def copy_own(self, own: bytes, target: int) -> None:
        """Copy the pages that are 1 in `own` to where they belong in memory of ours, which begins there."""
        pieces = [
            (at, min(at + _LONGEST * PAGE_SIZE, end) - at)
            for start, end in runs(own)
            for at in range(start, end, _LONGEST * PAGE_SIZE)
        ]
        for first in range(0, len(pieces), _MOST_PIECES):
            some = pieces[first : first + _MOST_PIECES]
            here, there = _vector(some, target), _vector(some, self._address)
            read = _read_memory(
                self._pid, here.buffer_info()[0], len(some), there.buffer_info()[0], len(some), 0
            )
            if read < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            if read < sum(length for _, length in some):
                raise self._lost()

    def shared(self, own: bytes) -> Iterator[tuple[int, int]]:
        """What there is in the template's file where nothing is 1 in `own`: from here to there, in bytes."""
        if self.base is None:
            return
        for start, end in _data(self.base):
            for gap in _GAP.finditer(own[start // PAGE_SIZE : -(-end // PAGE_SIZE)]):
                yield start + gap.start() * PAGE_SIZE, min(start + gap.end() * PAGE_SIZE, end)

    def pages(self) -> Iterator[Page]:
        """All that is in the memory of a machine that stands, but for pages of zeros; see `read_pages`."""
        own = self.own()
        yield from read_pages(self._content, runs(own), self._address)
        yield from self.shared_pages(own)

    def shared_pages(self, own: bytes) -> Iterator[Page]:
        """What `shared` tells of, likewise."""
        if self.base is not None:
            yield from read_pages(self.base, self.shared(own))

    def _lost(self) -> OSError:
        return OSError(f"The memory of process {self._pid} is not there any more.")


def runs(own: bytes) -> Iterator[tuple[int, int]]:
    """Where there is nothing but 1: from here to there, in bytes of the memory whose pages these are."""
    for run in _RUN.finditer(own):
        yield run.start() * PAGE_SIZE, run.end() * PAGE_SIZE


def read_pages(file: int, parts: Iterable[tuple[int, int]], begin: int = 0) -> Iterator[Page]:
    """What is in these parts of memory, which begins there in a file, page by page, but for zeros.

    A page is there until the next one is asked for. Raises OSError.
    """
    buffer = bytearray(_CHUNK)
    content = memoryview(buffer)
    for start, end in parts:
        for at in range(start, end, _CHUNK):
            length = min(_CHUNK, end - at)
            if os.preadv(file, [content[:length]], begin + at) < length:
                raise OSError("The memory of a machine is not there any more.")
            for offset in range(0, length, PAGE_SIZE):
                if not buffer.startswith(_ZEROS, offset):
                    yield at + offset, content[offset : offset + PAGE_SIZE]


def _vector(pieces: Sequence[tuple[int, int]], address: int) -> array[int]:
    """An array of struct iovec: where each begins, and how long it is. Packed at once: it is made while a
    machine stands, and there may be thousands."""
    return array("Q", [number for at, length in pieces for number in (address + at, length)])


def _data(descriptor: int) -> Iterator[tuple[int, int]]:
    """Where there is something in a file, from here to there."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing more
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
