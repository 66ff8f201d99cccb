"""Copies of a process' memory: what is in them is what was there when it stood, and no more than that."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from insula.engine import frozen, guestmemory
from insula.engine.copying import MemoryCopy
from insula.engine.guestmemory import GuestMemory, Page

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
        yield mapped, file  # which whoever looks closes


def address(mapped: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapped))


def write(mapped: mmap.mmap, pages: set[int], content: bytes) -> None:
    for page in pages:
        mapped[page * PAGE : (page + 1) * PAGE] = content * PAGE


@pytest.fixture(autouse=True)
def _small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few pages take several, as a machine's do."""
    monkeypatch.setattr(guestmemory, "_LONGEST", 3)
    monkeypatch.setattr(guestmemory, "_MOST_PIECES", 4)
    monkeypatch.setattr(guestmemory, "_CHUNK", 5 * PAGE)


@contextmanager
def looked_at(mapped: mmap.mmap, file: int | None) -> Iterator[GuestMemory]:
    source = GuestMemory(os.getpid(), address(mapped), SIZE, file)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def copied(source: GuestMemory) -> Iterator[MemoryCopy]:
    copy = MemoryCopy(source)
    try:
        yield copy
    finally:
        copy.close()


def together(pages: Iterable[Page], onto: bytes = bytes(SIZE)) -> bytes:
    found = bytearray(onto)
    for at, page in pages:
        found[at : at + PAGE] = page
    return bytes(found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.none() | numbers,
    before=numbers,
    between=numbers,
    zeroed=numbers,
    read=numbers,
    given_back=numbers,
)
def test_a_copy_is_what_was_there_when_it_stood(
    base: set[int] | None,
    before: set[int],
    between: set[int],
    zeroed: set[int],
    read: set[int],
    given_back: set[int],
) -> None:
    template = None if base is None else dict.fromkeys(base, b"t")
    with memory(template) as (mapped, file), looked_at(mapped, file) as source, copied(source) as copy:
        write(mapped, before, b"b")
        assert source.own_bytes() >= len(before) * PAGE
        for page in read:
            assert mapped[page * PAGE] in b"tb\0"
        copy.prepare(whole=True)
        write(mapped, between, b"w")
        write(mapped, zeroed, b"\0")
        for page in given_back:
            mapped.madvise(mmap.MADV_DONTNEED, page * PAGE, PAGE)
        stood = mapped[:]
        copy.finish()
        write(mapped, set(range(PAGES)), b"l")
        assert os.pread(copy.memory, SIZE, 0) == stood
        # So the base and the pages that are its own are the whole; those that are in both ways, too.
        shared = os.pread(file, SIZE, 0) if file is not None else bytes(SIZE)
        assert together(copy.own_pages(), shared) == stood
        assert together(copy.pages()) == stood


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=st.none() | numbers, own=numbers, zeroed=numbers)
def test_memory_that_stands_is_read_where_it_is_and_leaves_what_it_shares_as_it_was(
    base: set[int] | None, own: set[int], zeroed: set[int]
) -> None:
    template = None if base is None else dict.fromkeys(base, b"t")
    with memory(template) as (mapped, file), looked_at(mapped, file) as source:
        write(mapped, own, b"w")
        write(mapped, zeroed, b"\0")
        held = source.base_bytes()
        seen = [(at, bytes(page)) for at, page in source.pages()]
        assert source.base_bytes() == held
        assert len({at for at, _ in seen}) == len(seen), "a page came twice"
        assert {at // PAGE for at, _ in seen} == ((base or set()) | own) - zeroed
        assert together((at, memoryview(page)) for at, page in seen) == mapped[:]


def test_what_was_never_used_takes_no_room_in_the_copy() -> None:
    with memory({3: b"t"}) as (mapped, file), looked_at(mapped, file) as source, copied(source) as copy:
        write(mapped, {5}, b"w")
        assert mapped[9 * PAGE] == 0  # read, which is not to use it
        assert source.own_bytes() == PAGE
        copy.prepare(whole=True)
        copy.finish()
        assert os.fstat(copy.memory).st_blocks * 512 <= 3 * PAGE  # reading 9 has used it in the template
        assert {at // PAGE for at, _ in copy.pages()} == {3, 5}


def test_scattered_pages_count_for_more_than_as_many_in_a_row() -> None:
    needed = []
    for pages in (set(range(0, 20)), set(range(0, 40, 2))):
        with memory(None) as (mapped, _), looked_at(mapped, None) as source:
            write(mapped, pages, b"w")
            assert source.own_bytes() == 20 * PAGE
            needed.append(source.standing_bytes())
    assert needed[0] < 22 * PAGE
    assert needed[1] > 50 * PAGE


def test_a_process_that_has_ended_is_told() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's matter
        GuestMemory(pid, 2**20, SIZE, None)
