"""snapshot-rm: the snapshot's files are gone. What its layers held stays below the disks, to be merged."""

from __future__ import annotations

from collections.abc import Sequence

from insula.node.context import MachineContext
from insula.node.procedure import Step


async def remove_files(context: MachineContext) -> None:
    await context.journal.remember(removed=True)  # nobody restores it from now on, whatever fails
    await context.rooms.snapshots.remove(context.parameters["snapshot"])


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("remove files", remove_files)]
