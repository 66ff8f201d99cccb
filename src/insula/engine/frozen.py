"""The memory of frozen machines: without a name, sealed, and kept by a process that outlives the daemon.

    create_memory ──> a machine runs in it ──> seal ──> hold: a process keeps it ──> open_memory: forks map it
                                                              └── release, or the host's end

Memory is a memfd (memfd_create(2)): no path leads to it, it is never written to a disk, and what is not used
of it takes no room. Once sealed, nobody who opens it can change it or its size, so forks can trust it. It is
kept by a supervised process like a machine's monitor (`process`), which does nothing but have it open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from insula.engine import process
from insula.engine.errors import MachineDirectoryBusy
from insula.engine.plan import MEMORY_DESCRIPTOR
from insula.kit.clock import boot_id
from insula.kit.paths import DEVICE_STATE, EXIT_STATUS, PID_FILE, QEMU_STDERR, RUN_LOCK
from insula.kit.run import find_program, run

HOLDER = ("sleep", "2147483647")  # 68 years, the longest that every sleep(1) takes
_SPAWN_TIMEOUT = 10.0  # seconds
MEMORY_NAME = "insula-memory"  # as it shows in /proc/PID/maps
_STATE_NAME = "insula-state"
_CHUNK = 2**20
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
# /proc/PID/pagemap (proc(5)) has 8 bytes a page; the two highest bits say that it is there, or swapped.
_ENTRY = 8
_ABSENT = re.compile(rb"[\x00-\x3f]+")
# linux/fcntl.h; the module has it from Python 3.13 on. Mappings that are there go on, new ones cannot write.
_F_SEAL_FUTURE_WRITE = 0x10


def create_memory(size: int) -> int:
    """A descriptor of `size` bytes of memory without a name. Raises OSError."""
    descriptor = os.memfd_create(MEMORY_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def create_state(pieces: Iterable[bytes | memoryview]) -> int:
    """A descriptor of nameless memory, sealed, with these pieces in it. Raises OSError."""
    descriptor = os.memfd_create(_STATE_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(descriptor), "wb", buffering=_CHUNK) as stream:
            for piece in pieces:
                stream.write(piece)
        seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


async def dig_holes(pid: int) -> None:
    """Give back what is nothing but zeros in the memory that a monitor shares, before it is sealed.

    A monitor that takes another one's memory touches every page of it, and what was never used would be
    counted, and be in the way of others, as if it had been. Raises CommandFailed.
    """
    await run(["fallocate", "--dig-holes", f"/proc/{pid}/fd/{MEMORY_DESCRIPTOR}"])


def touch_all(pid: int) -> None:
    """Have every page of a fork's memory mapped, as it runs: read once what is not.

    To capture it, its monitor reads a byte of each page while its vCPUs stand. A page that neither it nor its
    template has used yet takes long then (0.3 s for 512 MiB of them), and nothing once it is mapped.
    """
    buffer = memoryview(bytearray(_CHUNK))
    with (
        contextlib.suppress(OSError, ValueError),
        Path(f"/proc/{pid}/maps").open() as maps,
        Path(f"/proc/{pid}/pagemap").open("rb") as pages,
        Path(f"/proc/{pid}/mem").open("rb", 0) as memory,
    ):
        for line in maps:
            if f"memfd:{MEMORY_NAME}" not in line:
                continue
            start, end = (int(number, 16) for number in line.split(" ", 1)[0].split("-"))
            pages.seek(start // _PAGE_SIZE * _ENTRY)
            states = pages.read((end - start) // _PAGE_SIZE * _ENTRY)[_ENTRY - 1 :: _ENTRY]
            for absent in _ABSENT.finditer(states):
                memory.seek(start + absent.start() * _PAGE_SIZE)
                left = len(absent[0]) * _PAGE_SIZE
                while left > 0 and (read := memory.readinto(buffer[:left])):
                    left -= read


def seal(memory: int) -> None:
    """From now on nobody can change the memory, or its size, for good."""
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)


async def hold(directory: Path, memory: int, state: int | None = None) -> None:
    """Have a process of its own keep the memory. Raises MachineDirectoryBusy when the directory has one.

    state: what forks are to load, where that is no file of the directory.
    """
    lock = process.take_lock(directory)
    if lock is None:
        raise MachineDirectoryBusy(f"A process still runs in {directory}.")
    try:
        holder = await process.start(
            [find_program(HOLDER[0]), *HOLDER[1:]],
            directory,
            lock,
            _SPAWN_TIMEOUT,
            memory,
            () if state is None else (state,),
        )
    finally:
        os.close(lock)
    if holder is None:
        raise MachineDirectoryBusy(f"The process that was to keep the memory of {directory} ended at once.")
    holder.close()


def open_memory(directory: Path) -> int | None:
    """A descriptor of the memory that is kept for the directory; None when there is none."""
    return _open_kept(directory, lambda pid: Path(f"/proc/{pid}/fd/{MEMORY_DESCRIPTOR}"), os.O_RDWR)


def keeps_state(directory: Path) -> bool:
    """Whether a frozen machine's state is kept beside its memory, and its file is empty."""
    try:
        return (directory / DEVICE_STATE).stat().st_size == 0
    except OSError:
        return False


def open_state(directory: Path) -> int | None:
    """A descriptor of the state that is kept for the directory beside its memory; None when there is none."""
    return _open_kept(directory, _find_state, os.O_RDONLY)


def _find_state(pid: int) -> Path | None:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        # Its supervisor's own are closed as it begins, perhaps just now.
        with contextlib.suppress(FileNotFoundError):
            if str(path.readlink()).startswith(f"/memfd:{_STATE_NAME}"):
                return path
    return None


def _open_kept(directory: Path, find: Callable[[int], Path | None], flags: int) -> int | None:
    identity = process.read_identity(directory)
    if identity is None or identity.boot_id != boot_id():
        return None
    try:
        path = find(identity.pid)
        descriptor = os.open(path, flags | os.O_CLOEXEC) if path is not None else None
    except OSError:
        return None
    if descriptor is None:
        return None
    # Opened first, compared after: a pid that another process has by now is found out.
    stat = process.read_stat(identity.pid)
    if stat is None or stat.start_time != identity.start_time:
        os.close(descriptor)
        return None
    return descriptor


def held_bytes(directory: Path) -> int | None:
    """How much of the host's memory is used by what is kept for the directory; None when nothing is.

    Where a state is kept, the memory is somebody else's, and counted there.
    """
    descriptor = open_state(directory) if keeps_state(directory) else open_memory(directory)
    if descriptor is None:
        return None
    try:
        return os.fstat(descriptor).st_blocks * 512  # stat(2)
    finally:
        os.close(descriptor)


async def release(directory: Path) -> None:
    """Let go of the memory; what forks have mapped stays theirs.

    Also ends a monitor that was being frozen when its daemon died.
    """
    holder = process.Process.open(directory)
    if holder is not None:
        await holder.end()
    for name in (PID_FILE, EXIT_STATUS, RUN_LOCK, QEMU_STDERR):
        (directory / name).unlink(missing_ok=True)
