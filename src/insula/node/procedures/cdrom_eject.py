"""cdrom-eject: the guest gives out the medium in its drive. Where it does not, the medium stays, and that is
told.

There is no undo: what a guest has given out is not put back in. That it has is remembered, and is the truth
whatever fails afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from insula.engine.errors import EngineLost
from insula.kit.errors import Bug
from insula.kit.paths import MACHINE_DOCUMENT, write_atomically
from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.procedures.cdrom_insert import PATIENCE
from insula.node.procedures.detach import has_ended


async def eject(context: MachineContext) -> None:
    drive = context.machine.cdrom
    if drive is None:
        raise Bug(f"Machine '{context.operation.name}' has lost its drive.")
    if context.instance is not None:
        force = bool(context.parameters.get("force"))
        try:
            await context.instance.drive.eject(drive, PATIENCE, force=force)
        except EngineLost:
            if not await has_ended(context):
                raise
    await context.journal.remember(released=True)
    emptied = context.machine.changed(devices=context.machine.with_cdrom(drive.changed(medium=None)))
    write_atomically(context.directory / MACHINE_DOCUMENT, emptied.model_dump_json(indent=1))
    await asyncio.to_thread(context.rooms.images.hold, emptied.digests, context.directory)
    context.outcome.update(image=context.parameters["image"])


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("eject", eject)]
