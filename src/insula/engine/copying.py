"""A live machine's memory, copied from outside: once as it runs, and in part once more as it stands.

    template's file ──what it has not written──┐ (`whole`)
                                               ├──> a file of its own, as large as the memory
    process' own pages ──all, then all again───┘

A fork's memory is its template's file, but for the pages that it has written: these are the process' own.
What is not its own cannot change, so it need not stand while that is copied. What is its own is copied twice:
as it runs, which makes room for it, and again as it stands, which is then a matter of moving bytes (4 GB/s
here). Nothing tells which of them were written in between (soft-dirty bits would, where a kernel has them):
so this is for machines that have written little.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
from array import array
from collections.abc import Iterator, Sequence

from insula.engine import frozen

_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
# /proc/PID/pagemap (proc(5)) has 8 bytes a page. Of the highest of these, bit 7: it is there; bit 6: it is
# swapped; bit 5: it is a file's, so not the process' own.
_ENTRY = 8
_OWN = bytes(1 if state & 0xC0 and not state & 0x20 else 0 for state in range(256))
_RUN, _GAP = re.compile(rb"\x01+"), re.compile(rb"\x00+")
_RUN_COST = 2**13  # bytes that are copied in the 2 us which it takes to begin with another run of pages
_MOST_PIECES = 1024  # of one request (IOV_MAX, <limits.h>)
_LONGEST = 256  # pages of a piece: so no request is for more than the kernel does at once (2 GiB, read(2))

_libc = ctypes.CDLL(None, use_errno=True)
_read_memory = _libc.process_vm_readv
_read_memory.restype = ctypes.c_ssize_t
_read_memory.argtypes = (ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong)


class MemoryCopy:
    """One copy of one process' memory. Raises OSError where this user may not look into the process.

    address, size: of the machine's memory in that process, in bytes. base: what is mapped there copy on
    write, if anything is; closed with the copy. memory: the file that is copied to.
    """

    def __init__(self, pid: int, address: int, size: int, base: int | None) -> None:
        self._pid = pid
        self._address = address
        self._size = size
        self.base = base
        self._own = bytes(size // _PAGE_SIZE)  # the pages that were copied as the process' own: 1
        self._pages = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.memory = frozen.create_memory(size)
        except BaseException:
            os.close(self._pages)
            raise
        try:
            self._target = mmap.mmap(self.memory, size)
        except BaseException:
            os.close(self._pages)
            os.close(self.memory)
            raise
        self._target_address = ctypes.addressof(ctypes.c_char.from_buffer(self._target))

    def close(self) -> None:
        """Give the descriptors back, that of the copy too."""
        with contextlib.suppress(BufferError):  # somebody still looks at a page of it: then it goes later
            self._target.close()
        for descriptor in (self._pages, self.memory, self.base):
            if descriptor is not None:
                os.close(descriptor)

    def own_bytes(self) -> int:
        """How much the process has written."""
        return self._own_pages().count(1) * _PAGE_SIZE

    def standing_bytes(self) -> int:
        """What it takes to copy that while the machine stands, in bytes that would be copied in one run."""
        own = self._own_pages()
        return own.count(1) * _PAGE_SIZE + own.count(b"\x00\x01") * _RUN_COST

    def base_bytes(self) -> int:
        """How much there is in what it shares with others."""
        return os.fstat(self.base).st_blocks * 512 if self.base is not None else 0  # stat(2)

    def prepare(self, *, whole: bool) -> None:
        """Copy what is the process' own while the machine runs. whole: what it shares with others, too."""
        self._own = self._own_pages()
        self._copy(self._own)
        if not whole or self.base is None:
            return
        for start, end in _data(self.base):
            for gap in _GAP.finditer(self._own[start // _PAGE_SIZE : -(-end // _PAGE_SIZE)]):
                at = start + gap.start() * _PAGE_SIZE
                _copy_file(self.base, self.memory, at, min(start + gap.end() * _PAGE_SIZE, end))

    def finish(self) -> None:
        """Copy what may be different by now; the machine stands."""
        # A page may be the file's again that was its own: its monitor gave it back.
        both = int.from_bytes(self._own, "little") | int.from_bytes(self._own_pages(), "little")
        self._own = both.to_bytes(len(self._own), "little")
        self._copy(self._own)

    def own_pages(self) -> Iterator[tuple[int, memoryview]]:
        """Where each page that was copied as the process' own belongs, and what is in it."""
        content = memoryview(self._target)
        for run in _RUN.finditer(self._own):
            for at in range(run.start() * _PAGE_SIZE, run.end() * _PAGE_SIZE, _PAGE_SIZE):
                yield at, content[at : at + _PAGE_SIZE]

    def _own_pages(self) -> bytes:
        """A byte for each page: 1 where it is the process' own."""
        length = self._size // _PAGE_SIZE * _ENTRY
        entries = os.pread(self._pages, length, self._address // _PAGE_SIZE * _ENTRY)
        if len(entries) < length:
            raise OSError(f"The memory of process {self._pid} is not there any more.")
        return entries[_ENTRY - 1 :: _ENTRY].translate(_OWN)

    def _copy(self, own: bytes) -> None:
        runs = [
            (at * _PAGE_SIZE, (min(at + _LONGEST, run.end()) - at) * _PAGE_SIZE)
            for run in _RUN.finditer(own)
            for at in range(run.start(), run.end(), _LONGEST)
        ]
        for first in range(0, len(runs), _MOST_PIECES):
            some = runs[first : first + _MOST_PIECES]
            here, there = _pieces(some, self._target_address), _pieces(some, self._address)
            read = _read_memory(
                self._pid, here.buffer_info()[0], len(some), there.buffer_info()[0], len(some), 0
            )
            if read < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            if read < sum(length for _, length in some):
                raise OSError(f"The memory of process {self._pid} is not there any more.")


def _pieces(runs: Sequence[tuple[int, int]], address: int) -> array[int]:
    """An array of struct iovec: where each begins, and how long it is. Packed at once: it is made while a
    machine stands, and there may be thousands."""
    return array("Q", [number for at, length in runs for number in (address + at, length)])


def _copy_file(source: int, target: int, start: int, end: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        sent = os.sendfile(target, source, start, end - start)
        if sent == 0:
            raise OSError("The memory of a template is shorter than it was.")
        start += sent


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
