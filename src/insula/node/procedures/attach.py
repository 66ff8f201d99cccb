"""attach: a volume becomes a disk of the machine, at once when it runs, else at its next start."""

from __future__ import annotations

from collections.abc import Sequence

from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.procedures.detach import find_disk, unplug


async def plug(context: MachineContext) -> None:
    """The guest is shown the disk. One that it has already (a daemon died here) is kept."""
    disk = find_disk(context)
    if context.instance is not None:
        await context.instance.disks.attach(disk)
    context.keep_document()
    context.outcome.update(volume=context.parameters["volume"], serial=disk.serial)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("plug", plug, unplug)]
