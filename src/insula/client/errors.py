"""What can go wrong between us and the daemon, and a guest command that failed.

Unavailable ── DaemonUnreachable (not running, or not ours to talk to), DaemonNotStarted, DaemonLost,
               DaemonSilent, HomeUnusable, GuestCommandFailed, GuestCommandTimeout
Conflict ── LedgerInUse
Bug ── DaemonGarbled
"""

from __future__ import annotations

from insula.kit.errors import Bug, Conflict, Unavailable


class DaemonUnreachable(Unavailable):
    """Nobody listens at the home's socket, or we may not connect to it."""

    code = "daemon-unreachable"


class DaemonNotStarted(Unavailable):
    """The daemon was started on demand and did not come up; evidence: exit_status, log."""

    code = "daemon-not-started"


class HomeUnusable(Unavailable):
    """The home's directory cannot be made or written."""

    code = "home-unusable"


class DaemonLost(Unavailable):
    """The daemon went away in the middle of a request that must not simply be sent again."""

    code = "daemon-lost"


class DaemonSilent(Unavailable):
    """The daemon took a request and did not answer in time."""

    code = "daemon-silent"


class LedgerInUse(Conflict):
    """A daemon runs on the ledger that is to be recovered."""

    code = "ledger-in-use"


class DaemonGarbled(Bug):
    """What answers at the socket does not speak Insula's REST."""

    code = "daemon-garbled"


class GuestCommandFailed(Unavailable):
    """A guest command exited with another status than 0 (exec(..., check=True)); evidence: command,
    stderr."""

    code = "guest-command-failed"


class GuestCommandTimeout(Unavailable):
    """A guest command ran longer than it was given, and was ended."""

    code = "guest-command-timeout"
