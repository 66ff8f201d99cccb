"""A live machine as it is at one moment, taken from outside: memory from its process, devices by one request.

    look ──> memory is copied ──> vCPUs stand: disks go on in overlays, devices are written down,
                                               what it has written is copied once more ──> run again

Nothing is migrated for it, so nothing has to be ended or waited for, and nothing changes in the machine. What
is made of it is another matter: a template (`capture`) or a file (`saving`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from insula.engine import blocks, devicestate
from insula.engine.guestmemory import GuestMemory, Page
from insula.engine.instance import QemuInstance
from insula.engine.layers import switch
from insula.engine.plan import MEMORY
from insula.engine.protocol import DiskSwitch
from insula.kit.aio import to_thread_end
from insula.kit.clock import monotonic

# Bytes that a machine may have written to be taken so: 20 to 40 ms of standing; in the background it takes 30
# to 60, and two to three times as long until all is there. Pages that lie far from each other count for more.
# To find them among all its memory takes the time of copying the 64th part of it.
_MOST_OWN = 160 * 2**20
_LOOKING = 64
# Of a fork it may be more, 32 to 64 ms: in the background every page of it is read, and all that its template
# has not used would be the template's for good (`guestmemory`).
_MOST_OF_FORK = 256 * 2**20
# A guest that stands for another reason must not be taken for one that ran: what writes the devices down says
# that it did.
_ORDINARY = ("running", "paused", "prelaunch", "io-error")


@dataclass(frozen=True)
class Sight:
    """A machine that can be taken so. `close` it."""

    machine: QemuInstance
    memory: GuestMemory
    firmware: devicestate.Firmware = field(repr=False)

    def close(self) -> None:
        self.memory.close()

    def is_much(self) -> bool:
        """Whether a machine that runs would stand for long."""
        most = _MOST_OWN if self.memory.base is None else _MOST_OF_FORK
        return self.memory.standing_bytes() + self.memory.size // _LOOKING > most

    async def write_down(self, disks: Sequence[DiskSwitch]) -> bytes:
        """The devices of a machine that stands, whose disks go on in other layers.

        Raises EngineLost, EngineRefused, OSError.
        """
        monitor = self.machine.transfer.monitor
        await switch(monitor.execute, self.machine.plan.directory, disks)
        return await devicestate.write(monitor)

    async def stand(self, disks: Sequence[DiskSwitch], finish: Callable[[], None]) -> tuple[float, bytes]:
        """Have a machine that runs stand meanwhile; for how many seconds it did, and its devices.

        Raises as `write_down`; it runs on then.
        """
        began = monotonic()
        await self.machine.pause()
        try:
            devices = await self.write_down(disks)
            await to_thread_end(finish)
        finally:
            await self.machine.resume()
        return monotonic() - began, devices

    def compose(
        self, devices: bytes, pages: Iterable[Page] = (), *, whole: bool = False
    ) -> Iterator[bytes | memoryview]:
        """See `devicestate.compose`."""
        machine_type = self.machine.plan.shape["machine type"]
        return devicestate.compose(devices, machine_type, self.firmware, self.memory.size, pages, whole=whole)


async def look(machine: QemuInstance) -> Sight | None:
    """None: it cannot be taken so, here or as it is now. Raises EngineLost and OSError."""
    monitor, pid, size = machine.transfer.monitor, machine.identity.pid, machine.plan.memory_bytes
    if machine.plan.memory.shareable:
        return None  # what it writes is not its process' own
    if (await monitor.execute("query-status"))["status"] not in _ORDINARY:
        return None
    if (await monitor.execute("query-migrate")).get("blocked-reasons"):
        return None  # it has a device whose state cannot be written down; who asks in earnest is told which
    try:
        firmware = await devicestate.read_firmware(monitor, pid, size)
        address = await blocks.locate(monitor, MEMORY, 0)
        if address is None or firmware is None:
            return None
        base = machine.open_memory() if machine.plan.memory.template is not None else None
        try:
            return Sight(machine, GuestMemory(pid, address, size, base), firmware)
        except BaseException:
            if base is not None:
                os.close(base)
            raise
    except PermissionError:  # this user may not look into the process
        return None
