"""The state of a machine on its way: to a file and back beside memory that stays where it is, or to another
process with all its memory while the machine goes on.

QEMU calls each of these a migration. `x-ignore-shared` leaves out memory that is mapped from a file.
`background-snapshot` sends memory as it was at one moment: pages that the guest is about to change are sent
first (userfaultfd(2)), so the guest stands only while the devices are written down. Whatever the state is
written to or read from is handed over as a descriptor, so the monitor needs to open nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from insula.engine.errors import EngineLost, EngineRefused
from insula.engine.qmp import Event, Monitor
from insula.kit.aio import Cell

_TIMEOUT = 60.0  # seconds to save or load devices; it takes 10 to 45 ms
_COPY_TIMEOUT = 3600.0  # seconds to send all memory: hours would be a hang
# Bytes after which a background snapshot has surely written the devices down and tracks the guest's writes.
_UNDER_WAY = 300_000
_LOOK = 0.002  # seconds between looks at that
_ENDS = ("completed", "failed", "cancelled")
_DEVICES_ONLY = {"x-ignore-shared": True}
_IN_BACKGROUND = {"background-snapshot": True}
_SWITCHES = ("x-ignore-shared", "background-snapshot")
# Bytes a second: what is saved goes to a file of ours, and 128 MiB, the default, is for networks.
_BANDWIDTH = 2**40


# A userfaultfd(2), as it shows in /proc/PID/fd. Not /dev/userfaultfd, where these are had from: a QEMU that
# uses it (8.0; util/userfaultfd.c) keeps it open for good once it has looked whether it could.
_USERFAULTFD = "anon_inode:[userfaultfd]"


def _tracks_writes(pid: int) -> bool:
    """Whether a process has a userfaultfd(2) open."""
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if str(entry.readlink()) == _USERFAULTFD:
                return True
    return False


class StateTransfer:
    """What one machine's monitor does of these, one at a time. name: of the machine, for messages.

    by_path: the monitor takes a state's file by its path.
    """

    def __init__(self, monitor: Monitor, name: str, pid: int, *, by_path: bool = False) -> None:
        self.monitor = monitor  # replaced when the session is opened anew
        self._pid = pid
        self._name = name
        self._by_path = by_path
        self._status: Cell[str] = Cell("none")

    def heard(self, event: Event) -> None:
        """A MIGRATION event came (qapi/migration.json)."""
        status = str(event["data"]["status"])
        if self._status.value == "begun" and status != "setup":
            return  # of the one before, which was given up: each tells first that it is set up
        self._status.set(status)

    def lost(self) -> None:
        """The monitor is gone: nothing will be heard any more."""
        self._status.set("lost")

    async def save(self, path: Path) -> None:
        """Write the devices' state; the vCPUs stand. Raises EngineLost, EngineRefused, OSError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            await self._begin("migrate", descriptor, _DEVICES_ONLY, by_path=self._by_path)
        finally:
            os.close(descriptor)
        await self._wait_end("saved", _TIMEOUT)

    async def load(self, descriptor: int, *, whole: bool = False) -> None:
        """Give a machine that waits for it the devices' state; its vCPUs stand then. Raises as `save`.

        whole: the memory too, as `send` has written it.
        """
        capabilities = {} if whole else _DEVICES_ONLY
        await self._begin("migrate-incoming", descriptor, capabilities, by_path=self._by_path)
        await self._wait_end("loaded", _COPY_TIMEOUT if whole else _TIMEOUT)

    async def receive(self, descriptor: int) -> None:
        """Take memory and devices from what `send` has written."""
        await self._begin("migrate-incoming", descriptor, {})
        await self._wait_end("received", _COPY_TIMEOUT)

    async def send(self, descriptor: int, *, in_background: bool) -> bool:
        """Begin to send memory and devices, as they are now, to a file; the vCPUs stand.

        True: they may run from now on. False: they must stand until `wait_sent`, because that was asked for
        or this host cannot do it in the background (userfaultfd is not to be had).
        """
        # Never by path: a monitor empties such a file before it writes, and what was reserved goes with that.
        if in_background:
            with contextlib.suppress(EngineRefused):
                await self._begin("migrate", descriptor, _IN_BACKGROUND)
                await self._wait_under_way()
                return True
        await self._begin("migrate", descriptor, {})
        return False

    async def wait_sent(self) -> None:
        await self._wait_end("copied", _COPY_TIMEOUT)
        await self._wait_idle()

    async def cancel(self) -> None:
        """Give up what is under way, if anything, also what an earlier daemon began; until that has ended.

        A background snapshot is let go on to its end: cancelled, QEMU 7.2 leaves the guest's memory protected
        from writes with nobody to lift that, and the guest waits for ever at the next page it writes.
        """
        if not await self._is_busy():
            return
        states = await self.monitor.execute("query-migrate-capabilities")
        background = {"capability": "background-snapshot", "state": True} in states
        if not background:
            await self.monitor.execute("migrate_cancel")
        await self._wait_idle(_COPY_TIMEOUT if background else _TIMEOUT)

    async def _wait_idle(self, timeout: float = _TIMEOUT) -> None:
        """A transfer that has told its end is still about to change the machine's state for a moment.

        To let the vCPUs run before would be a transition that ends the monitor; and a background snapshot
        that began before would have its tracking of writes ended by the one that ends.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if not await self._is_busy():
                        return
                    await asyncio.sleep(_LOOK)
        except TimeoutError as error:
            raise EngineLost(f"The state of machine '{self._name}' is still on its way.") from error

    async def _is_busy(self) -> bool:
        if (await self.monitor.execute("query-migrate")).get("status", "none") not in (*_ENDS, "none"):
            return True
        if (await self.monitor.execute("query-status"))["status"] == "finish-migrate":
            return True
        return _tracks_writes(self._pid)

    async def _wait_under_way(self) -> None:
        """Until the devices are written down and the guest's writes are tracked; no event tells of it."""
        while True:
            found = await self.monitor.execute("query-migrate")
            if found.get("status") in _ENDS or found.get("ram", {}).get("transferred", 0) > _UNDER_WAY:
                return
            await asyncio.sleep(_LOOK)

    async def _begin(
        self, command: str, descriptor: int, capabilities: Mapping[str, bool], *, by_path: bool = False
    ) -> None:
        everything = {"events": True, **dict.fromkeys(_SWITCHES, False), **capabilities}
        await self._set_capabilities(everything)
        await self.monitor.execute("migrate-set-parameters", max_bandwidth=_BANDWIDTH)
        async with self._handed_over(f"{command}-state", descriptor, by_path) as uri:
            self._status.set("begun")
            await self.monitor.execute(command, uri=uri)

    @contextlib.asynccontextmanager
    async def _handed_over(self, name: str, descriptor: int, by_path: bool) -> AsyncIterator[str]:
        """What the monitor calls the file or pipe. QEMU tells on stderr that `fd:` is no way to hand over a
        file (deprecated in 9.1); for pipes it stays."""
        if by_path and stat.S_ISREG(os.fstat(descriptor).st_mode):
            async with self.monitor.lent_descriptor(descriptor) as path:
                yield f"file:{path}"
        else:
            await self.monitor.give_descriptor(name, descriptor)
            yield f"fd:{name}"

    async def _set_capabilities(self, states: Mapping[str, bool]) -> None:
        wanted = [{"capability": name, "state": state} for name, state in states.items()]
        await self.monitor.execute("migrate-set-capabilities", capabilities=wanted)

    async def _wait_end(self, what: str, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                status = await self._status.wait_until(lambda status: status in (*_ENDS, "lost"))
        except TimeoutError as error:
            raise EngineLost(
                f"The state of machine '{self._name}' was not {what} within {timeout:.0f}s."
            ) from error
        if status == "completed":
            return
        found: dict[str, Any] = {} if status == "lost" else await self.monitor.execute("query-migrate")
        why = found.get("error-desc", "its monitor ended" if status == "lost" else status)
        raise EngineLost(f"The state of machine '{self._name}' could not be {what}: {why}.")
