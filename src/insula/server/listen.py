"""The listening socket: bound before anything slow happens, so that clients queue instead of failing.

HOME/daemon/             0700
HOME/daemon/insula.sock  0600
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from insula.kit.errors import Unavailable
from insula.kit.paths import socket_address

BACKLOG = 1024  # connections that wait while we start; the kernel caps it at net.core.somaxconn
FIRST_PASSED = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


class CannotListen(Unavailable):
    """The socket cannot be made."""

    code = "cannot-listen"


@dataclass(frozen=True)
class Listener:
    """A listening socket. path: where clients find it. ours: made by us, so that we remove it at the end."""

    socket: socket.socket
    path: Path
    ours: bool

    def close(self) -> None:
        """Stop listening; call it only while the daemon's lock is held."""
        if self.ours:
            self.path.unlink(missing_ok=True)
        self.socket.close()


def open_listener(path: Path) -> Listener:
    """The socket that systemd passed, else one bound at `path`. Raises CannotListen.

    One that is there already is a dead daemon's, and replaced: call it only while the daemon's lock is held.
    """
    passed = _take_passed()
    if passed is not None:
        return Listener(passed, path, ours=False)
    try:
        path.unlink(missing_ok=True)
        return Listener(_bind(path), path, ours=True)
    except OSError as error:
        raise CannotListen(
            f"The socket '{path}' cannot be made.",
            hint="Use a home on a local file system that you may write: INSULA_HOME=DIR.",
        ) from error


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    address, directory = socket_address(path)
    before = os.umask(0o177)  # from its first moment on it is nobody else's
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
        if directory is not None:
            os.close(directory)
    listener.setblocking(False)
    return listener


def _take_passed() -> socket.socket | None:
    """The socket of a systemd socket unit, if there is one for us (sd_listen_fds(3))."""
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or int(count) < 1:
        return None
    os.set_inheritable(FIRST_PASSED, False)
    passed = socket.socket(fileno=FIRST_PASSED)
    passed.setblocking(False)
    return passed
