"""A monitor's process: started under a supervisor, known for good, its end seen at once.

The supervisor is a shell, so it costs a megabyte and no Python. It and QEMU inherit the flock on RUN_LOCK:
as long as either lives the lock is held, and a free lock proves that nothing runs. PID 1 may reap late and
pids are recycled, so an end is a readable pidfd, and a pid counts only together with its start time and the
host's boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from insula.engine.plan import MEMORY_DESCRIPTOR
from insula.kit.clock import boot_id, monotonic
from insula.kit.paths import EXIT_STATUS, PID_FILE, QEMU_STDERR, RUN_LOCK
from insula.kit.run import spawn_detached
from insula.model.observation import ProcessIdentity

# $1 is the host's boot id, $2 the descriptor of memory that the monitor shares ("-": none), the rest its
# argv. It finds the memory at a number that its argv can name; a shell's redirections have one digit only.
# Field 22 of /proc/PID/stat is the start time (proc(5)); after the last ')' it is the 20th word. One line on
# stdout says that PID_FILE stands; nobody needs to be there to read it. What is written was not there before
# and is one write(2), so no `mv` (a process each): whoever looks too early, or after the disk was full, finds
# nothing that can be read, which is as good as no file.
SUPERVISOR = f"""\
boot=$1; memory=$2; shift 2; set -f; umask 077
[ "$memory" = - ] || exec {MEMORY_DESCRIPTOR}<>"/proc/self/fd/$memory"
"$@" >&2 &
pid=$!
stat=; read -r stat </proc/$pid/stat
set -- ${{stat##*) }}
echo "$pid ${{20:-0}} $boot" >{PID_FILE}
trap '' PIPE
echo started
exec >/dev/null 2>&1
wait $pid; status=$?
echo $status >{EXIT_STATUS}
"""

_SETTLE = 1.0  # seconds a supervisor gets to write what it saw, once QEMU has ended


class Child(Protocol):
    """A child of ours that is to be reaped; poll() does so once it has ended."""

    pid: int

    def poll(self) -> int | None: ...


_own_supervisors: dict[int, Child] = {}  # by pid, until they are reaped


@dataclass(frozen=True)
class Stat:
    """Of /proc/PID/stat: the start time, and the session, which is the supervisor's pid.

    processor_seconds: in user and kernel mode (fields 14 and 15, proc(5)).
    """

    session: int
    start_time: int
    processor_seconds: float


def read_stat(pid: int) -> Stat | None:
    """What the kernel says of a pid now; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    words = text[text.rindex(")") + 2 :].split()
    ticks = int(words[11]) + int(words[12])
    return Stat(
        session=int(words[3]),
        start_time=int(words[19]),
        processor_seconds=ticks / os.sysconf("SC_CLK_TCK"),
    )


def resident_bytes(pid: int) -> int:
    """How much of the host's memory a process has in use, also what it shares; 0 when there is none."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def read_identity(directory: Path) -> ProcessIdentity | None:
    """Who PID_FILE says was launched; None when it says nothing that can be read."""
    try:
        pid, start_time, boot = (directory / PID_FILE).read_text().split()
        return ProcessIdentity(pid=int(pid), start_time=int(start_time), boot_id=boot)
    except (OSError, ValueError):
        return None


def read_exit_status(directory: Path) -> int | None:
    """What the supervisor wrote, 0..255 as a shell sees it; None when it wrote nothing."""
    try:
        return int((directory / EXIT_STATUS).read_text())
    except (OSError, ValueError):
        return None


def take_lock(directory: Path) -> int | None:
    """The lock of the directory as a descriptor to be inherited or closed; None when somebody holds it."""
    path = directory / RUN_LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours, named = os.fstat(descriptor), path.stat()
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:  # forgotten between open and flock: the name leads to another file now
            os.close(descriptor)
            continue
        if (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):
            return descriptor
        os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether a monitor or its supervisor lives here. Leaves no trace."""
    try:
        descriptor = os.open(directory / RUN_LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class Process:
    """A monitor that is ours beyond doubt: the pidfd was opened first, and the start time matched after."""

    def __init__(self, directory: Path, identity: ProcessIdentity, descriptor: int, supervisor: int) -> None:
        self.directory = directory
        self.identity = identity
        self._descriptor = descriptor
        self._supervisor = supervisor
        self._supervisor_descriptor = _open_pidfd(supervisor)
        self._ended = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(descriptor, self._on_end)

    @classmethod
    def open(cls, directory: Path) -> Process | None:
        """The process that PID_FILE names, if it is still that one (perhaps just ended), never another."""
        identity = read_identity(directory)
        if identity is None or identity.boot_id != boot_id():
            return None
        descriptor = _open_pidfd(identity.pid)
        if descriptor is None:
            return None
        stat = read_stat(identity.pid)
        if stat is None or stat.start_time != identity.start_time:
            os.close(descriptor)
            return None
        return cls(directory, identity, descriptor, stat.session)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        if not self._ended.done():
            self._ended.set_result(None)

    @property
    def has_ended(self) -> bool:
        return self._ended.done()

    async def wait(self) -> None:
        """Until the process has ended."""
        await asyncio.shield(self._ended)

    def kill(self) -> None:
        """SIGKILL, to this process and to no other that may bear its pid by now."""
        if self._descriptor < 0:  # closed, which is done only after its end or by who gives it up
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it, wait until that has been written down, and close."""
        self.kill()
        await self.wait()
        await self.exit_status()
        self.close()

    async def exit_status(self) -> int | None:
        """Once it has ended: what the supervisor saw; None if the supervisor was killed too."""
        if self._supervisor_descriptor is not None:
            await _wait_ended(self._supervisor_descriptor, _SETTLE)
        _reap(self._supervisor)
        return read_exit_status(self.directory)

    def close(self) -> None:
        """Give the descriptors back; the process lives on if it lives."""
        if self._descriptor >= 0:
            if not self._ended.done():
                asyncio.get_running_loop().remove_reader(self._descriptor)
                self._ended.cancel()
            os.close(self._descriptor)
            self._descriptor = -1
        if self._supervisor_descriptor is not None:
            os.close(self._supervisor_descriptor)
            self._supervisor_descriptor = None


async def start(
    argv: Sequence[str],
    directory: Path,
    lock: int,
    timeout: float,
    memory: int | None = None,
    kept: Sequence[int] = (),
) -> Process | None:
    """Start a monitor that holds the lock. None when it ended at once: read_exit_status says how.

    memory: a descriptor that it is to have as MEMORY_DESCRIPTOR. kept: others, at whatever numbers. Its
    stderr goes to QEMU_STDERR. Raises TimeoutError; then, and when cancelled, nothing is left running.
    """
    supervisor, started = _spawn(argv, directory, lock, memory, kept)
    try:
        try:
            async with asyncio.timeout(timeout):
                await _wait_readable(started)
        finally:
            os.close(started)
        process = Process.open(directory)
        if process is None:
            await _wait_child(supervisor.pid)
            await end_group(supervisor.pid)  # it runs, and the disk is too full to say who it is
        return process
    except BaseException:
        await end_group(supervisor.pid)
        raise


def _spawn(
    argv: Sequence[str], directory: Path, lock: int, memory: int | None, kept: Sequence[int]
) -> tuple[Child, int]:
    for pid in list(_own_supervisors):
        _reap(pid)
    with contextlib.ExitStack() as ours:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        ours.callback(os.close, writer)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        stderr = os.open(directory / QEMU_STDERR, flags, 0o600)
        ours.callback(os.close, stderr)
        inherited = [_above_the_shells_own(number, ours) for number in (lock, *kept)]
        try:
            given = "-"
            if memory is not None:
                inherited.append(_above_the_shells_own(memory, ours))
                given = str(inherited[-1])
            supervisor = spawn_detached(
                ["/bin/sh", "-c", SUPERVISOR, "insula-supervisor", boot_id(), given, *argv],
                cwd=directory,
                stdout=writer,
                stderr=stderr,
                pass_fds=inherited,
            )
        except BaseException:
            os.close(reader)
            raise
    _own_supervisors[supervisor.pid] = supervisor
    return supervisor, reader


def _above_the_shells_own(descriptor: int, stack: contextlib.ExitStack) -> int:
    """The same file at a number that no redirection of the supervisor's can mean (it has one digit)."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    stack.callback(os.close, copy)
    return copy


async def end_group(supervisor: int) -> None:
    """Kill a supervisor that is our child, and its monitor, and reap it."""
    if supervisor in _own_supervisors:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(supervisor, signal.SIGKILL)
        await _wait_child(supervisor)


async def _wait_child(pid: int) -> None:
    descriptor = _open_pidfd(pid)
    if descriptor is not None:
        try:
            await _wait_ended(descriptor, _SETTLE)
        finally:
            os.close(descriptor)
    _reap(pid)


def _reap(pid: int) -> None:
    child = _own_supervisors.get(pid)
    if child is not None and child.poll() is not None:
        del _own_supervisors[pid]


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


async def _wait_ended(descriptor: int, timeout: float) -> bool:
    """Until the pidfd's process has ended; False when it did not in time."""
    try:
        async with asyncio.timeout(timeout):
            await _wait_readable(descriptor)
    except TimeoutError:
        return False
    return True


async def _wait_readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    with _reading(loop, descriptor, readable):
        await readable


@contextlib.contextmanager
def _reading(
    loop: asyncio.AbstractEventLoop, descriptor: int, readable: asyncio.Future[None]
) -> Iterator[None]:
    loop.add_reader(descriptor, lambda: None if readable.done() else readable.set_result(None))
    try:
        yield
    finally:
        loop.remove_reader(descriptor)


async def wait_unlocked(directory: Path, timeout: float) -> bool:
    """Until the lock is free; False when it is not in time.

    For the few milliseconds in which a supervisor writes down an end: flock has no event to wait for.
    """
    deadline = monotonic() + timeout
    while is_locked(directory):
        if monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True
