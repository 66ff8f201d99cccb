"""The supervisor, the lock and identity, with small programs in QEMU's place."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.engine import process
from insula.engine.process import (
    Process,
    is_locked,
    read_exit_status,
    read_identity,
    start,
    take_lock,
    wait_unlocked,
)
from insula.kit.clock import boot_id
from insula.kit.paths import EXIT_STATUS, PID_FILE, QEMU_STDERR, RUN_LOCK
from insula.model.observation import ProcessIdentity


async def started(directory: Path, *argv: str) -> Process | None:
    lock = take_lock(directory)
    assert lock is not None
    try:
        return await start(argv, directory, lock, timeout=5)
    finally:
        os.close(lock)


@pytest.fixture
async def sleeper(tmp_path: Path) -> AsyncIterator[Process]:
    child = await started(tmp_path, "/bin/sleep", "60")
    assert child is not None
    yield child
    await child.end()


async def test_the_lock_is_free_once_everything_has_ended(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    child = await started(tmp_path, "/bin/sleep", "60")
    assert child is not None
    assert is_locked(tmp_path)
    assert take_lock(tmp_path) is None
    await child.end()
    assert not is_locked(tmp_path)
    assert read_exit_status(tmp_path) == 137


async def test_a_program_that_ends_at_once(tmp_path: Path) -> None:
    child = await started(tmp_path, "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    if child is not None:
        await child.wait()
        assert await child.exit_status() == 3
        child.close()
    assert read_exit_status(tmp_path) == 3
    assert (tmp_path / QEMU_STDERR).read_text() == "out\nerr\n"


async def test_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    words = ["a b", "*", "$HOME", "'", '"', "", "-n", "\\"]
    child = await started(tmp_path, "/usr/bin/env", "printf", "%s|", *words)
    if child is not None:
        await child.wait()
        await child.exit_status()
        child.close()
    assert (tmp_path / QEMU_STDERR).read_text() == "".join(f"{word}|" for word in words)


async def test_the_pid_file_names_the_process(tmp_path: Path, sleeper: Process) -> None:
    identity = read_identity(tmp_path)
    assert identity == sleeper.identity
    # The pid is known before the shell that has it has become the program.
    program, deadline = Path(f"/proc/{sleeper.identity.pid}/cmdline"), time.monotonic() + 5
    while not program.read_bytes().startswith(b"/bin/sleep") and time.monotonic() < deadline:
        os.sched_yield()
    assert program.read_bytes().startswith(b"/bin/sleep")
    assert sleeper.identity.boot_id == boot_id()
    again = Process.open(tmp_path)
    assert again is not None
    again.close()


@pytest.mark.parametrize("change", ["start", "boot", "garbage", "empty"])
async def test_another_identity_is_not_opened(tmp_path: Path, sleeper: Process, change: str) -> None:
    pid, start_time, boot = (tmp_path / PID_FILE).read_text().split()
    text = {
        "start": f"{pid} {int(start_time) + 1} {boot}",
        "boot": f"{pid} {start_time} other",
        "garbage": "x y z",
        "empty": "",
    }[change]
    (tmp_path / PID_FILE).write_text(text)
    assert Process.open(tmp_path) is None


async def test_who_cannot_be_written_down_is_not_left_running(tmp_path: Path) -> None:
    (tmp_path / PID_FILE).mkdir()
    assert await started(tmp_path, "/bin/sleep", "60") is None
    assert await wait_unlocked(tmp_path, timeout=5)
    assert PID_FILE in (tmp_path / QEMU_STDERR).read_text()
    assert not process._own_supervisors


async def test_an_end_that_cannot_be_written_down_is_an_end(tmp_path: Path) -> None:
    (tmp_path / EXIT_STATUS).mkdir()
    child = await started(tmp_path, "/bin/sleep", "60")
    assert child is not None
    child.kill()
    await child.wait()
    assert await child.exit_status() is None
    child.close()
    assert await wait_unlocked(tmp_path, timeout=5)


async def test_each_file_is_one_write_and_no_process_more(tmp_path: Path) -> None:
    """A reader who comes at any moment finds all of it, or nothing that can be read."""
    seen = set[ProcessIdentity | None]()
    starting = asyncio.create_task(started(tmp_path, "/bin/sleep", "60"))
    while not starting.done():
        seen.add(read_identity(tmp_path))
        await asyncio.sleep(0)
    child = await starting
    assert child is not None
    assert seen <= {None, child.identity}
    await child.end()
    assert sorted(os.listdir(tmp_path)) == sorted([EXIT_STATUS, PID_FILE, QEMU_STDERR, RUN_LOCK])  # noqa: PTH208


async def test_an_end_is_seen_by_whoever_adopted(tmp_path: Path, sleeper: Process) -> None:
    adopted = Process.open(tmp_path)
    assert adopted is not None
    assert not adopted.has_ended
    sleeper.kill()
    async with asyncio.timeout(1):
        await adopted.wait()
    assert await adopted.exit_status() == 137
    adopted.kill()  # harmless: it goes to this process and to no other
    adopted.close()


async def test_supervisors_of_ours_are_reaped(tmp_path: Path) -> None:
    for _ in range(3):
        child = await started(tmp_path, "/bin/sleep", "60")
        assert child is not None
        await child.end()
    assert not process._own_supervisors


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    child = await started(tmp_path, "/bin/sleep", "60")
    assert child is not None
    await child.end()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
