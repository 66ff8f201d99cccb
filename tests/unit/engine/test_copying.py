"""Copies of a process' memory: what is in them is what was there when it stood, and no more than that."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from insula.engine import copying, frozen
from insula.engine.copying import MemoryCopy

PAGE = os.sysconf("SC_PAGE_SIZE")
PAGES = 64
SIZE = PAGES * PAGE
numbers = st.sets(st.integers(0, PAGES - 1))


@contextmanager
def memory(base: dict[int, bytes] | None) -> Iterator[tuple[mmap.mmap, int | None]]:
    """Memory of this process as a machine has it: a template's (page -> content), or nobody's."""
    if base is None:
        with mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
            yield mapped, None
        return
    file = frozen.create_memory(SIZE)
    for page, content in base.items():
        os.pwrite(file, content * PAGE, page * PAGE)
    frozen.seal(file)
    with mmap.mmap(file, SIZE, mmap.MAP_PRIVATE) as mapped:
        yield mapped, file  # which the copy closes


def address(mapped: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapped))


def write(mapped: mmap.mmap, pages: set[int], content: bytes) -> None:
    for page in pages:
        mapped[page * PAGE : (page + 1) * PAGE] = content * PAGE


@pytest.fixture(autouse=True)
def _small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few pages take several, as a machine's do."""
    monkeypatch.setattr(copying, "_LONGEST", 3)
    monkeypatch.setattr(copying, "_MOST_PIECES", 4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=st.none() | numbers, before=numbers, between=numbers, read=numbers, given_back=numbers)
def test_a_copy_is_what_was_there_when_it_stood(
    base: set[int] | None, before: set[int], between: set[int], read: set[int], given_back: set[int]
) -> None:
    template = None if base is None else dict.fromkeys(base, b"t")
    with memory(template) as (mapped, file):
        write(mapped, before, b"b")
        copy = MemoryCopy(os.getpid(), address(mapped), SIZE, file)
        try:
            assert copy.own_bytes() >= len(before) * PAGE
            for page in read:
                assert mapped[page * PAGE] in b"tb\0"
            copy.prepare(whole=True)
            write(mapped, between, b"w")
            for page in given_back:
                mapped.madvise(mmap.MADV_DONTNEED, page * PAGE, PAGE)
            stood = mapped[:]
            copy.finish()
            write(mapped, set(range(PAGES)), b"l")
            assert os.pread(copy.memory, SIZE, 0) == stood
            found = bytearray(os.pread(file, SIZE, 0) if file is not None else SIZE)
            for at, page in copy.own_pages():
                found[at : at + PAGE] = page
            assert found == stood  # so the base and the pages that are its own are the whole
        finally:
            copy.close()


def test_what_was_never_used_takes_no_room_in_the_copy() -> None:
    with memory({3: b"t"}) as (mapped, file):
        write(mapped, {5}, b"w")
        assert mapped[9 * PAGE] == 0  # read, which is not to use it
        copy = MemoryCopy(os.getpid(), address(mapped), SIZE, file)
        try:
            assert copy.own_bytes() == PAGE
            copy.prepare(whole=True)
            copy.finish()
            assert os.fstat(copy.memory).st_blocks * 512 <= 3 * PAGE  # reading 9 has used it in the template
        finally:
            copy.close()


def test_scattered_pages_count_for_more_than_as_many_in_a_row() -> None:
    needed = []
    for pages in (set(range(0, 20)), set(range(0, 40, 2))):
        with memory(None) as (mapped, _):
            write(mapped, pages, b"w")
            copy = MemoryCopy(os.getpid(), address(mapped), SIZE, None)
            assert copy.own_bytes() == 20 * PAGE
            needed.append(copy.standing_bytes())
            copy.close()
    assert needed[0] < 22 * PAGE
    assert needed[1] > 50 * PAGE


def test_a_process_that_has_ended_is_told() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's matter
        MemoryCopy(pid, 2**20, SIZE, None)
