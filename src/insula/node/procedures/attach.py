"""attach: a volume becomes a disk of the machine, at once when it runs, else at its next start.

Whoever attaches goes on to write: so it has ended once the guest has taken the disk up. A guest that has not
gets it all the same, and that is noted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from insula.engine.errors import EngineLost
from insula.engine.protocol import Instance
from insula.kit.units import format_duration
from insula.model.device.disk import Disk
from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.procedures.detach import find_disk, unplug

SIGHT = 5.0  # seconds for a guest to look at a disk; Linux takes 0.4 s without KVM, as it loads its driver


async def plug(context: MachineContext) -> None:
    """The guest is shown the disk. One that it has already (a daemon died here) is kept."""
    disk = find_disk(context)
    if context.instance is not None:
        await context.instance.disks.attach(disk)
    context.keep_document()
    context.outcome.update(volume=context.parameters["volume"], serial=disk.serial)
    if context.instance is not None:
        with contextlib.suppress(EngineLost):  # it has the disk when it is started again
            await wait_seen(context, context.instance, disk)


async def wait_seen(context: MachineContext, instance: Instance, disk: Disk) -> None:
    """Until the guest has looked at the disk, if it runs."""
    if await instance.state() == "running" and not await instance.disks.wait_seen(disk, SIGHT):
        patience = format_duration(SIGHT)
        context.note(
            f"The guest has not looked at the disk within {patience}: it still boots, or has no driver."
        )


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("plug", plug, unplug)]
