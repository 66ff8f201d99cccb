"""A host and its daemon: what happens, what it is, starting and stopping it; as `Client` offers them."""

from __future__ import annotations

import os

from insula.client.errors import DaemonUnreachable, LedgerInUse
from insula.client.events import watch_events
from insula.client.operation import Operation
from insula.client.transport import Transport
from insula.client.wire import quote, with_query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from insula.client.types import DaemonInfo, EventInfo, FindingInfo, HostInfo

_STOP_TIMEOUT = 30.0  # seconds a daemon gets to end: it finishes what it writes, no more


class HostItself:
    """The part of a client that is about the host itself."""

    transport: Transport

    @property
    def home(self) -> str:
        return self.transport.home

    def events(self, *, after: int | None = None, follow: bool = False) -> Iterator[EventInfo]:
        """Events with a seq above `after`. Without `after`: all that are kept, or with follow only new
        ones."""
        return watch_events(self.transport, after, follow)

    def operations(self, *, all: bool = False) -> list[Operation]:
        """Operations that have not ended, or all that are remembered."""
        found = self.transport.call("GET", with_query("/v1/operations", all=all or None))
        return [Operation(self.transport, info) for info in found]

    def operation(self, uid: str) -> Operation:
        return Operation(self.transport, self.transport.call("GET", f"/v1/operations/{quote(uid)}"))

    def host(self) -> HostInfo:
        found: HostInfo = self.transport.call("GET", "/v1/host")
        return found

    def findings(self) -> list[FindingInfo]:
        """What the host has and lacks, each with the command that mends it."""
        found: list[FindingInfo] = self.transport.call("GET", "/v1/host/findings")
        return found

    def daemon_status(self) -> DaemonInfo | None:
        """The daemon as it runs, None when it does not. Never starts it."""
        try:
            found: DaemonInfo = Transport(self.home, start=False).call("GET", "/v1/daemon")
        except DaemonUnreachable as error:
            if isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError)):
                return None
            raise
        return found

    def daemon_stop(self) -> bool:
        """Stop the daemon and wait for its end; no machine is stopped. False when it does not run."""
        from insula.client.daemon import wait_ended

        status = self.daemon_status()
        if status is None:
            return False
        try:
            descriptor = os.pidfd_open(status["pid"])
        except ProcessLookupError:
            return True
        try:
            Transport(self.home, start=False).call("POST", "/v1/daemon/stop", {})
            if not wait_ended(descriptor, _STOP_TIMEOUT):
                raise DaemonUnreachable(
                    f"The daemon (process {status['pid']}) has not ended within {_STOP_TIMEOUT:g}s.",
                    hint=f"End it by force, no machine is harmed: kill -9 {status['pid']}",
                )
        finally:
            os.close(descriptor)
        return True

    def daemon_start(self, *, recover_ledger: bool = False) -> DaemonInfo:
        """Start the daemon unless it runs. recover_ledger: set a damaged ledger aside and make a new one from
        the machines' directories first; refused (LedgerInUse) while a daemon runs."""
        if recover_ledger:
            if self.daemon_status() is not None:
                raise LedgerInUse(
                    "The daemon runs, so its ledger is whole and in use; nothing was changed.",
                    hint="If it must be made anew all the same: insula daemon stop, then try again.",
                )
            from insula.client.daemon import start_daemon

            start_daemon(self.transport.home, arguments=["--recover-ledger"]).close()
        found: DaemonInfo = self.transport.call("GET", "/v1/daemon")
        return found
