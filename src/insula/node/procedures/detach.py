"""detach: the guest lets go of a volume. Where it does not, the volume stays the machine's, and that is told.

There is no undo: a disk that the guest has let go of is not pushed back on it. That it has is remembered, and
is the truth whatever fails afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from insula.engine.errors import EngineLost
from insula.kit.errors import Bug
from insula.kit.paths import MACHINE_DOCUMENT, write_atomically
from insula.model.device.disk import Disk
from insula.node.context import MachineContext
from insula.node.mending import mend
from insula.node.procedure import Step

LAST_WORDS = 5.0  # seconds for the end of a process to be seen once its monitor does not answer
PATIENCE = 10.0  # seconds for a guest to let go of a disk; Linux takes 0.1 s when nothing on it is in use


def find_disk(context: MachineContext) -> Disk:
    """The disk that the operation's volume is, placed on this host."""
    uid = context.parameters["volume_uid"]
    for device in context.placed.devices:
        if isinstance(device, Disk) and device.volume is not None and device.volume.uid == uid:
            return device
    raise Bug(f"Machine '{context.operation.name}' has lost volume '{context.parameters['volume']}'.")


async def unplug(context: MachineContext) -> None:
    """Also what undoes `attach`."""
    disk = find_disk(context)
    if context.instance is not None:
        try:
            await context.instance.disks.detach(disk, PATIENCE)
        except EngineLost:
            if not await has_ended(context):
                raise
    # The copy for recovery first: a ledger made from it must not give one volume to two machines.
    machine = context.machine
    devices = tuple(device for device in machine.devices if device.id != disk.id)
    text = machine.changed(devices=devices).model_dump_json(indent=1)
    write_atomically(context.directory / MACHINE_DOCUMENT, text)
    context.outcome.update(volume=context.parameters["volume"])


async def has_ended(context: MachineContext) -> bool:
    """Whether the process is gone, and with it everything it had open."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS):
            await context.wait_ended()
            return True
    return False


async def release(context: MachineContext) -> None:
    await mend(context)
    await unplug(context)
    await context.journal.remember(released=True)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("unplug", release)]
