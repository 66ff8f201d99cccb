"""The only place in Insula that spawns processes.

`run` waits for a command, `stream` reads its output line by line, `spawn_detached` starts one that outlives
us. A failure prints a command that can be pasted.

    CommandFailed   (unavailable)  the command ran and said no; evidence: command, exit_status, stderr
    CommandMissing  (unavailable)  the program is not installed; hint says which package has it
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from insula.kit.errors import Unavailable

if TYPE_CHECKING:
    from asyncio import StreamReader
    from asyncio.subprocess import Process

STDERR_TAIL = 4000  # characters of stderr kept as evidence: enough for any tool's last words

# Debian and Ubuntu packages of the programs we call; the names are the same in both.
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "fakeroot": "fakeroot",
    "mke2fs": "e2fsprogs",
    "mformat": "mtools",
    "gcc": "gcc libc6-dev",
    "setpriv": "util-linux",
    "prlimit": "util-linux",
    "unshare": "util-linux",
    "tar": "tar",
    "zstd": "zstd",
    "cpio": "cpio",
}


class CommandFailed(Unavailable):
    """A program that Insula called ended with an error."""

    code = "command-failed"


class CommandMissing(Unavailable):
    """A program that Insula needs is not installed."""

    code = "command-missing"


@dataclass(frozen=True)
class Completed:
    """How a command ended: its exit status (negative: signal), stdout and stderr as bytes."""

    argv: tuple[str, ...]
    exit_status: int
    stdout: bytes
    stderr: bytes


def render_command(argv: Sequence[str], cwd: Path | None = None) -> str:
    """The command as it can be pasted into a shell."""
    line = shlex.join(str(word) for word in argv)
    return f"cd {shlex.quote(str(cwd))} && {line}" if cwd is not None else line


def find_program(name: str) -> str:
    """The absolute path of a program. Raises CommandMissing with the package that has it."""
    path = os.environ.get("PATH", os.defpath)
    # mke2fs and friends live in sbin, which a plain user's PATH lacks on Debian.
    found = shutil.which(name, path=f"{path}:/usr/sbin:/sbin")
    if found is None:
        package = PACKAGES.get(name, name)
        raise CommandMissing(
            f"The program '{name}' is not installed.", hint=f"Install it: sudo apt-get install {package}"
        )
    return found


def _guarded(argv: Sequence[str]) -> list[str]:
    """The argv behind setpriv, so that the kernel ends the command when we die (prctl PR_SET_PDEATHSIG)."""
    resolved = [find_program(argv[0]), *map(str, argv[1:])]
    return [find_program("setpriv"), "--pdeathsig", "KILL", "--", *resolved]


def _failed(argv: Sequence[str], cwd: Path | None, status: int, stderr: bytes) -> CommandFailed:
    text = stderr.decode(errors="replace")[-STDERR_TAIL:].strip()
    how = f"ended with signal {-status}" if status < 0 else f"exited with status {status}"
    return CommandFailed(
        f"The command '{Path(argv[0]).name}' {how}.",
        hint="Run it by hand to see more.",
        evidence={"command": render_command(argv, cwd), "exit_status": status, "stderr": text},
    )


async def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    timeout: float | None = None,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Completed:
    """Run a command to its end. It dies with us, with a timeout (seconds) and with our cancellation.

    Raises CommandMissing, CommandFailed (when check) and TimeoutError.
    """
    import asyncio  # 0.07 s, which the command line need not pay to start the daemon

    process = await asyncio.create_subprocess_exec(
        *_guarded(argv),
        stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout):
            stdout, stderr = await process.communicate(input)
    except BaseException:
        await _end_group(process)
        raise
    status = process.returncode if process.returncode is not None else -1
    if check and status != 0:
        raise _failed(argv, cwd, status, stderr)
    return Completed(tuple(argv), status, stdout, stderr)


async def stream(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    separator: bytes = b"\n",
) -> AsyncIterator[str]:
    """Run a command and yield what it prints (stdout and stderr together) line by line as it comes.

    pass_fds: descriptors that it inherits under the same numbers. separator: what ends a line ('\\r' for
    those who draw over their own). Raises CommandMissing, and CommandFailed with the last lines once it has
    ended badly.
    """
    import asyncio

    process = await asyncio.create_subprocess_exec(
        *_guarded(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=True,
        limit=2**20,
        pass_fds=tuple(pass_fds),
    )
    assert process.stdout is not None
    tail: list[str] = []
    try:
        while raw := await _read_line(process.stdout, separator):
            line = raw.decode(errors="replace").rstrip("\r\n")
            tail = [*tail[-40:], line]
            yield line
        status = await process.wait()
    except BaseException:
        await _end_group(process)
        raise
    if status != 0:
        raise _failed(argv, cwd, status, "\n".join(tail).encode())


async def _read_line(stdout: StreamReader, separator: bytes) -> bytes:
    """The next line with its end; the last may lack it; b"" when there are no more."""
    import asyncio

    try:
        return await stdout.readuntil(separator)
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stdout.readexactly(error.consumed)


async def _end_group(process: Process) -> None:
    """Kill a command that we started, and what it started, and wait for it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def spawn_detached(
    argv: Sequence[str],
    *,
    cwd: Path,
    stdout: int,
    stderr: int,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own that lives on when we die; the caller reaps it if it can."""
    return subprocess.Popen(
        list(argv),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=None if env is None else dict(env),
        pass_fds=tuple(pass_fds),
        start_new_session=True,
        close_fds=True,
    )


def run_attached(argv: Sequence[str]) -> int:
    """Run a command on our own terminal and wait; its exit status (for the CLI, never for the daemon)."""
    return subprocess.run([find_program(argv[0]), *argv[1:]], check=False).returncode
