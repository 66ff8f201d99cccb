"""Memory without a name: sealed for good, and kept by a process of its own."""

from __future__ import annotations

import asyncio
import mmap
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.engine import frozen, process
from insula.engine.errors import MachineDirectoryBusy
from insula.kit.paths import DEVICE_STATE, PID_FILE

SIZE = 2**20


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Path]:
    """A directory whose sealed memory begins with 'frozen'."""
    memory = frozen.create_memory(SIZE)
    os.pwrite(memory, b"frozen", 0)
    frozen.seal(memory)
    await frozen.hold(tmp_path, memory)
    os.close(memory)
    yield tmp_path
    await frozen.release(tmp_path)


def opened(memory: int) -> int:
    """As a fork that is out for mischief would open it: anew, for writing."""
    return os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_CLOEXEC)


def test_sealed_memory_can_be_changed_by_nobody() -> None:
    memory = frozen.create_memory(SIZE)
    os.pwrite(memory, b"frozen", 0)
    frozen.seal(memory)
    for descriptor in (memory, opened(memory)):
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"thawed", 0)
        for size in (SIZE // 2, SIZE * 2):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, SIZE, mmap.MAP_SHARED)
        with mmap.mmap(descriptor, SIZE, mmap.MAP_PRIVATE) as private:
            private[:6] = b"mine!!"
        assert os.pread(descriptor, 6, 0) == b"frozen"
        os.close(descriptor)


def test_memory_is_as_large_as_was_asked_and_takes_nothing_yet() -> None:
    memory = frozen.create_memory(SIZE)
    stat = os.fstat(memory)
    assert (stat.st_size, stat.st_blocks) == (SIZE, 0)
    assert not os.get_inheritable(memory)
    os.close(memory)


async def test_a_process_keeps_it(held: Path) -> None:
    memory = frozen.open_memory(held)
    assert memory is not None
    assert os.pread(memory, 6, 0) == b"frozen"
    os.close(memory)
    assert frozen.held_bytes(held) == mmap.PAGESIZE
    assert process.is_locked(held)


async def test_one_directory_keeps_one(held: Path) -> None:
    memory = frozen.create_memory(SIZE)
    with pytest.raises(MachineDirectoryBusy):
        await frozen.hold(held, memory)
    os.close(memory)


async def test_release_ends_the_process_and_can_be_said_twice(held: Path) -> None:
    holder = process.Process.open(held)
    assert holder is not None
    await frozen.release(held)
    await asyncio.wait_for(holder.wait(), 5)
    holder.close()
    assert frozen.open_memory(held) is None
    assert frozen.held_bytes(held) is None
    assert not any(held.iterdir())
    await frozen.release(held)


async def test_a_mapping_outlives_the_release(held: Path) -> None:
    memory = frozen.open_memory(held)
    assert memory is not None
    with mmap.mmap(memory, SIZE, mmap.MAP_PRIVATE) as mapped:
        os.close(memory)
        await frozen.release(held)
        assert mapped[:6] == b"frozen"


async def test_a_recycled_pid_is_not_taken_for_the_keeper(held: Path) -> None:
    pid, start_time, boot = (held / PID_FILE).read_text().split()
    kept = (held / PID_FILE).read_text()
    for other in (f"{pid} {int(start_time) + 1} {boot}", f"{pid} {start_time} another-boot", "nonsense"):
        (held / PID_FILE).write_text(other)
        assert frozen.open_memory(held) is None
    (held / PID_FILE).write_text(kept)


async def test_a_state_is_kept_beside_memory_that_is_somebody_elses(tmp_path: Path) -> None:
    memory = frozen.create_memory(2**20)
    os.pwrite(memory, b"theirs" * 1000, 0)
    state = frozen.create_state([b"the ", memoryview(b"state")])
    with pytest.raises(PermissionError):
        os.pwrite(state, b"x", 0)
    (tmp_path / DEVICE_STATE).touch()
    assert frozen.keeps_state(tmp_path)
    assert frozen.open_state(tmp_path) is None
    assert frozen.held_bytes(tmp_path) is None
    await frozen.hold(tmp_path, memory, state)
    os.close(memory)
    os.close(state)
    for opened, content in (
        (frozen.open_memory(tmp_path), b"theirs"),
        (frozen.open_state(tmp_path), b"the st"),
    ):
        assert opened is not None
        assert os.pread(opened, 6, 0) == content
        os.close(opened)
    assert frozen.held_bytes(tmp_path) == os.sysconf("SC_PAGE_SIZE")
    await frozen.release(tmp_path)
    assert frozen.open_state(tmp_path) is None


def test_a_state_is_found_while_its_keeper_opens_and_closes_other_files() -> None:
    state = frozen.create_state([b"state"])
    busy = "while :; do exec 3</dev/null 4</dev/null 3<&- 4<&-; done"
    keeper = subprocess.Popen(["sh", "-c", busy], pass_fds=[state])
    try:
        for _ in range(500):
            assert frozen._find_state(keeper.pid) is not None
    finally:
        keeper.kill()
        keeper.wait()
        os.close(state)


def mapped_pages() -> int:
    """How many pages of held memory are there in our private mappings (/proc/PID/pagemap, proc(5))."""
    count = 0
    page = os.sysconf("SC_PAGE_SIZE")
    with Path("/proc/self/maps").open() as maps, Path("/proc/self/pagemap").open("rb") as pages:
        for line in maps:
            if "memfd:insula-memory" in line:
                start, end = (int(number, 16) for number in line.split(" ", 1)[0].split("-"))
                pages.seek(start // page * 8)
                count += sum(byte >> 7 for byte in pages.read((end - start) // page * 8)[7::8])
    return count


def test_all_of_a_forks_memory_is_mapped_and_none_of_it_is_changed() -> None:
    page, size = os.sysconf("SC_PAGE_SIZE"), 3 * 2**20
    memory = frozen.create_memory(size)
    os.pwrite(memory, b"frozen", 5 * page)
    frozen.seal(memory)
    with mmap.mmap(memory, size, mmap.MAP_PRIVATE) as private:
        before = mapped_pages()
        for at in (0, 7 * page, size - page):
            private[at : at + 4] = b"mine"
        for _ in range(2):
            frozen.touch_all(os.getpid())
            assert mapped_pages() - before == size // page
        for at, content in ((0, b"mine"), (7 * page, b"mine"), (size - page, b"mine"), (5 * page, b"frozen")):
            assert private[at : at + len(content)] == content
        assert private[page : 2 * page] == bytes(page)
    os.close(memory)


def test_the_memory_of_a_process_that_has_ended_is_touched_by_nobody() -> None:
    frozen.touch_all(2**22 - 1)
