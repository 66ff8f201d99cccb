"""Starting the daemon on demand, and waiting for its end.

    client A ── flock(HOME/daemon) ── spawn ── INSULA_READY_FD says ok ── connect ── unlock
    client B ── flock waits ........................................ lock ── connect (nothing to spawn)

The lock is on the directory itself, so it needs no file, and the kernel drops it with a client that dies.
Against a daemon that something else started in the same moment (systemd, a person) the daemon's own lock
decides; whoever loses there just connects.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
import time
from pathlib import Path

from insula.client.errors import DaemonNotStarted, DaemonUnreachable, HomeUnusable
from insula.client.locate import DAEMON_LOCK, daemon_directory, daemon_log, daemon_socket
from insula.client.wire import open_socket
from insula.kit.errors import error_from_problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket
    from collections.abc import Sequence
    from subprocess import Popen

START_TIMEOUT = 30.0  # seconds; a start takes under 1 s, on a swapping host many times that
RIVAL_TIMEOUT = 10.0  # seconds for a daemon that somebody else has started to listen, or to have ended
ATTEMPTS = 3
LOG_LINES = 15  # of the log, shown when a start fails

_started: list[Popen[bytes]] = []  # kept, so that Popen does not complain of a child that is meant to live on


def start_daemon(home: str, timeout: float = START_TIMEOUT, arguments: Sequence[str] = ()) -> Socket:
    """A connection to the home's daemon, which is started unless it listens meanwhile.

    arguments: for the daemon, besides the home. Raises HomeUnusable, DaemonNotStarted (with the last lines of
    the log) and what the daemon itself reports.
    """
    directory = daemon_directory(home)
    try:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HomeUnusable(
            f"The directory '{directory}' cannot be used.",
            hint="Give INSULA_HOME=DIR a directory that you may write.",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(ATTEMPTS):
            channel = _try_connect(home) or _spawn(home, timeout, arguments) or _connect_to_rival(home)
            if channel is not None:
                return channel
        raise DaemonUnreachable(
            f"Another daemon holds '{home}' and does not listen.",
            hint=f"Look at its log: {daemon_log(home)}",
        )
    finally:
        os.close(lock)


def _try_connect(home: str) -> Socket | None:
    try:
        return open_socket(daemon_socket(home))
    except OSError:
        return None


def _spawn(home: str, timeout: float, arguments: Sequence[str]) -> Socket | None:
    """A connection to a daemon of our own; None when another one, starting or ending, has the home."""
    from insula.kit.run import spawn_detached  # imports subprocess: only a start pays for it

    log = daemon_log(home)
    begin = _size(log)
    ready, answer = os.pipe2(os.O_CLOEXEC)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        # -P: the directory somebody happens to stand in must not provide the daemon's modules.
        process = spawn_detached(
            [sys.executable, "-P", "-m", "insula.daemon", "--home", home, *arguments],
            cwd=Path("/"),
            stdout=output,
            stderr=output,
            env=_environment(answer),
            pass_fds=(answer,),
        )
    finally:
        os.close(answer)
        os.close(output)
    _started.append(process)
    try:
        line = _read_line(ready, timeout)
    finally:
        os.close(ready)
    report = _parse_report(line)
    problem = report.get("problem")
    if isinstance(problem, dict):
        if problem.get("code") == "daemon-running":
            return None
        raise error_from_problem(problem)
    channel = _try_connect(home) if report.get("ok") else None
    if channel is None:
        raise _not_started(process, line, timeout, log, begin)
    return channel


def _environment(ready: int) -> dict[str, str]:
    environment = {**os.environ, "INSULA_READY_FD": str(ready)}
    paths = [str(Path(p).absolute()) for p in os.environ.get("PYTHONPATH", "").split(":") if p]
    root = str(Path(__file__).absolute().parents[2])
    # From a checkout the package may be importable only because of where we stand; installed, it always is.
    if not root.endswith("-packages") and root not in paths:
        paths.append(root)
    if paths:
        environment["PYTHONPATH"] = ":".join(paths)
    return environment


def _read_line(descriptor: int, timeout: float) -> bytes | None:
    """What the daemon says when it is ready or has failed; b"" when it ended silently, None after
    `timeout`."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data = b""
    while b"\n" not in data:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        piece = os.read(descriptor, 65536)
        if not piece:
            break
        data += piece
    return data


def _parse_report(line: bytes | None) -> dict[str, object]:
    try:
        report = json.loads(line or b"{}")
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def _connect_to_rival(home: str) -> Socket | None:
    """A connection, as soon as the daemon that holds the lock listens; None once it has let go of it."""
    lock = f"{daemon_directory(home)}/{DAEMON_LOCK}"
    deadline = time.monotonic() + RIVAL_TIMEOUT
    while True:
        channel = _try_connect(home)
        if channel is not None or not _is_locked(lock) or time.monotonic() > deadline:
            return channel
        time.sleep(0.02)  # a rival owes us no report; nothing but the socket's appearance tells


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _not_started(
    process: Popen[bytes], line: bytes | None, timeout: float, log: str, begin: int
) -> DaemonNotStarted:
    evidence: dict[str, object] = {"command": f"{sys.executable} -m insula.daemon", "log": _tail(log, begin)}
    if line is None:
        message = f"The daemon was started and was not ready within {timeout:g}s."
    else:
        try:
            status = process.wait(1.0)
            evidence["exit_status"] = status
            message = f"The daemon ended while it was starting (status {status})."
        except Exception:  # subprocess.TimeoutExpired; it closed its pipe and lives on
            message = "The daemon was started and does not listen."
    return DaemonNotStarted(message, hint=f"Read its log: {log}", evidence=evidence)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _tail(path: str, begin: int) -> str:
    """The last lines that were written to the log since `begin`."""
    try:
        with Path(path).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(begin, size - 65536))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-LOG_LINES:])


def wait_ended(descriptor: int, timeout: float) -> bool:
    """Wait until the process of a pidfd (opened before it was told to end) has ended; False after
    `timeout`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))
