"""Where a home's daemon listens and logs.

`kit.paths` says the same in values built of dataclasses and pathlib, which cost more than the whole of
`insula ls` may; tests/unit/client/test_client_locate.py keeps the two equal.
"""

from __future__ import annotations

import os

DAEMON_DIRECTORY = "daemon"
DAEMON_SOCKET = "insula.sock"
DAEMON_LOG = "insulad.log"
DAEMON_LOCK = "insulad.lock"


def find_home(named: str | os.PathLike[str] | None = None) -> str:
    """The absolute path of the home: as named, else $INSULA_HOME, else this user's own."""
    chosen = os.fspath(named) if named else os.environ.get("INSULA_HOME")
    if chosen:
        return chosen if chosen.startswith("/") else f"{os.getcwd()}/{chosen}"  # noqa: PTH109
    if os.geteuid() == 0:
        return "/var/lib/insula"
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111
    return f"{data}/insula"


def daemon_directory(home: str) -> str:
    return f"{home.rstrip('/')}/{DAEMON_DIRECTORY}"


def daemon_socket(home: str) -> str:
    return f"{daemon_directory(home)}/{DAEMON_SOCKET}"


def daemon_log(home: str) -> str:
    return f"{daemon_directory(home)}/{DAEMON_LOG}"
