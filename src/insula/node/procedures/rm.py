"""rm: no process, no socket, no file, no lock is left. What was begun is finished, never undone."""

from __future__ import annotations

from collections.abc import Sequence

from insula.node.context import MachineContext
from insula.node.mending import mend
from insula.node.procedure import Step
from insula.node.procedures.create import remove_directory
from insula.node.procedures.kill import kill


async def remove_files(context: MachineContext) -> None:
    """The snapshots first: the machine's directory is what says that there is something left to do."""
    for uid in context.rooms.snapshots.of(context.operation.target):
        await context.rooms.snapshots.remove(uid)
    await remove_directory(context)


async def end(context: MachineContext) -> None:
    """Its volumes stay, and nobody will know then that its process was killed."""
    await kill(context)
    await mend(context, volumes_only=True)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("end the process", end), Step("remove files", remove_files)]
