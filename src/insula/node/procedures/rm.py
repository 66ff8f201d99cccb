"""rm: no process, no socket, no file, no lock is left. What was begun is finished, never undone."""

from __future__ import annotations

from collections.abc import Sequence

from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.procedures.create import remove_directory
from insula.node.procedures.kill import kill


async def remove_files(context: MachineContext) -> None:
    """The snapshots first: the machine's directory is what says that there is something left to do."""
    for uid in context.rooms.snapshots.of(context.operation.target):
        await context.rooms.snapshots.remove(uid)
    await remove_directory(context)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("end the process", kill), Step("remove files", remove_files)]
