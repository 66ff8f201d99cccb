"""A live machine's memory, copied from outside: once as it runs, and in part once more as it stands.

    template's file ──what it has not written──┐ (`whole`)
                                               ├──> a file of its own, as large as the memory
    process' own pages ──all, then all again───┘

What is not its own cannot change, so it need not stand while that is copied. What is its own is copied twice:
as it runs, which makes room for it, and again as it stands, which is then a matter of moving bytes (4 to 8
GB/s here). Nothing tells which of them were written in between (soft-dirty bits would, where a kernel has
them): so this is for machines that have written little.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator

from insula.engine import frozen
from insula.engine.guestmemory import PAGE_SIZE, GuestMemory, Page, read_pages, runs


class MemoryCopy:
    """One copy of one machine's memory. Raises OSError.

    source: stays the caller's. memory: the file that is copied to.
    """

    def __init__(self, source: GuestMemory) -> None:
        self._source = source
        self._own = bytes(source.size // PAGE_SIZE)  # the pages that were copied as the process' own: 1
        self.memory = frozen.create_memory(source.size)
        try:
            self._target = mmap.mmap(self.memory, source.size)
        except BaseException:
            os.close(self.memory)
            raise
        self._target_address = ctypes.addressof(ctypes.c_char.from_buffer(self._target))

    def close(self) -> None:
        """Give the copy back."""
        with contextlib.suppress(BufferError):  # somebody still looks at a page of it: then it goes later
            self._target.close()
        os.close(self.memory)

    def prepare(self, *, whole: bool) -> None:
        """Copy what is the process' own while the machine runs. whole: what it shares with others, too."""
        self._own = self._source.own()
        self._source.copy_own(self._own, self._target_address)
        if whole and self._source.base is not None:
            for start, end in self._source.shared(self._own):
                _copy_file(self._source.base, self.memory, start, end)

    def finish(self) -> None:
        """Copy what may be different by now; the machine stands."""
        # A page may be the file's again that was its own: its monitor gave it back.
        both = int.from_bytes(self._own, "little") | int.from_bytes(self._source.own(), "little")
        self._own = both.to_bytes(len(self._own), "little")
        self._source.copy_own(self._own, self._target_address)

    def own_pages(self) -> Iterator[Page]:
        """Where each page that was copied as the process' own belongs, and what is in it."""
        content = memoryview(self._target)
        for start, end in runs(self._own):
            for at in range(start, end, PAGE_SIZE):
                yield at, content[at : at + PAGE_SIZE]

    def pages(self) -> Iterator[Page]:
        """All that was in the machine's memory, what it shares too, without its pages of zeros.

        See `read_pages`. What it shares is still where it was: it cannot change.
        """
        yield from read_pages(self.memory, runs(self._own))
        yield from self._source.shared_pages(self._own)


def _copy_file(source: int, target: int, start: int, end: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        sent = os.sendfile(target, source, start, end - start)
        if sent == 0:
            raise OSError("The memory of a template is shorter than it was.")
        start += sent
