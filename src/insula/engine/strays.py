"""Processes whose directory is gone: monitors, and those that keep a frozen machine's memory.

    kernel's word: cwd of a process is 'HOME/templates/KEY (deleted)' ── its PID_FILE went with the directory

A supervised process works in its directory for life (`process`), so the kernel still knows which one it was.
Only our own user's processes are looked at, and only where nothing else can be meant: whoever only keeps
memory is a `sleep` that has a memfd of ours at the number which only supervisors give.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from insula.engine.frozen import HOLDER, MEMORY_NAME
from insula.engine.plan import MEMORY_DESCRIPTOR
from insula.engine.process import read_stat

_DELETED = " (deleted)"


@dataclass(frozen=True)
class StrayProcess:
    """A process without its directory. keeper: it does nothing but keep memory. held_bytes: how much."""

    pid: int
    start_time: int
    directory: Path
    keeper: bool
    held_bytes: int = 0


def find_strays(rooms: list[Path]) -> list[StrayProcess]:
    """Those whose directory was right below one of these directories, by pid."""
    return [stray for pid in _pids() if (stray := _look(pid, rooms)) is not None]


def end_keeper(stray: StrayProcess) -> bool:
    """End a process that only keeps memory, if it is still that one; what forks have mapped stays theirs."""
    try:
        descriptor = os.pidfd_open(stray.pid)
    except ProcessLookupError:
        return False
    try:
        # Opened first, compared after: a pid that another process has by now is found out.
        now = _look(stray.pid, [stray.directory.parent])
        if now is None or not now.keeper or now.start_time != stray.start_time:
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)


def _pids() -> Iterator[int]:
    yield from sorted(int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())


def _look(pid: int, rooms: list[Path]) -> StrayProcess | None:
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}").stat().st_uid != os.geteuid():
            return None
        where = str(Path(f"/proc/{pid}/cwd").readlink())
        directory = Path(where.removesuffix(_DELETED))
        if not where.endswith(_DELETED) or directory.parent not in rooms:
            return None
        stat = read_stat(pid)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        if stat is None or words[0] == b"/bin/sh":  # the supervisor ends with whom it waits for
            return None
        keeper = Path(os.fsdecode(words[0])).name == HOLDER[0] and words[1:] == [HOLDER[1].encode()]
        held = _held_bytes(pid) if keeper else None
        return StrayProcess(pid, stat.start_time, directory, held is not None, held or 0)
    return None


def _held_bytes(pid: int) -> int | None:
    """How much memory it keeps; None when it keeps none of ours."""
    path = Path(f"/proc/{pid}/fd/{MEMORY_DESCRIPTOR}")
    with contextlib.suppress(OSError):
        if str(path.readlink()).startswith(f"/memfd:{MEMORY_NAME}"):
            return path.stat().st_blocks * 512  # stat(2)
    return None
