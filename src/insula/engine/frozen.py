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
from pathlib import Path

from insula.engine import process
from insula.engine.errors import MachineDirectoryBusy
from insula.engine.plan import MEMORY_DESCRIPTOR
from insula.kit.clock import boot_id
from insula.kit.paths import EXIT_STATUS, PID_FILE, QEMU_STDERR, RUN_LOCK
from insula.kit.run import find_program, run

HOLDER = ("sleep", "2147483647")  # 68 years, the longest that every sleep(1) takes
_SPAWN_TIMEOUT = 10.0  # seconds
MEMORY_NAME = "insula-memory"  # as it shows in /proc/PID/maps
_CHUNK = 2**20
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


async def dig_holes(pid: int) -> None:
    """Give back what is nothing but zeros in the memory that a monitor shares, before it is sealed.

    A monitor that takes another one's memory touches every page of it, and what was never used would be
    counted, and be in the way of others, as if it had been. Raises CommandFailed.
    """
    await run(["fallocate", "--dig-holes", f"/proc/{pid}/fd/{MEMORY_DESCRIPTOR}"])


def touch_all(pid: int) -> None:
    """Have every page of a fork's memory mapped, as it runs: read it once.

    To capture it, its monitor reads a byte of each page while its vCPUs stand. A page that neither it nor its
    template has used yet takes long then (0.3 s for 512 MiB of them), and nothing once it is mapped.
    """
    with contextlib.suppress(OSError, ValueError):
        buffer = bytearray(_CHUNK)
        with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
            for line in maps:
                if f"memfd:{MEMORY_NAME}" not in line:
                    continue
                start, end = (int(number, 16) for number in line.split(" ", 1)[0].split("-"))
                memory.seek(start)
                for _ in range(start, end, _CHUNK):
                    memory.readinto(buffer)


def seal(memory: int) -> None:
    """From now on nobody can change the memory, or its size, for good."""
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)


async def hold(directory: Path, memory: int) -> None:
    """Have a process of its own keep the memory. Raises MachineDirectoryBusy when the directory has one."""
    lock = process.take_lock(directory)
    if lock is None:
        raise MachineDirectoryBusy(f"A process still runs in {directory}.")
    try:
        holder = await process.start(
            [find_program(HOLDER[0]), *HOLDER[1:]], directory, lock, _SPAWN_TIMEOUT, memory
        )
    finally:
        os.close(lock)
    if holder is None:
        raise MachineDirectoryBusy(f"The process that was to keep the memory of {directory} ended at once.")
    holder.close()


def open_memory(directory: Path) -> int | None:
    """A descriptor of the memory that is kept for the directory; None when there is none."""
    identity = process.read_identity(directory)
    if identity is None or identity.boot_id != boot_id():
        return None
    try:
        descriptor = os.open(f"/proc/{identity.pid}/fd/{MEMORY_DESCRIPTOR}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    # Opened first, compared after: a pid that another process has by now is found out.
    stat = process.read_stat(identity.pid)
    if stat is None or stat.start_time != identity.start_time:
        os.close(descriptor)
        return None
    return descriptor


def held_bytes(directory: Path) -> int | None:
    """How much of the host's memory is used by what is kept for the directory; None when nothing is."""
    descriptor = open_memory(directory)
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
