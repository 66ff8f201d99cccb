"""volume-resize of a volume that a machine has: it grows under the guest, or at rest when none runs."""

from __future__ import annotations

from collections.abc import Sequence

from insula.kit.paths import VOLUME_DISK
from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.procedures.detach import find_disk
from insula.storage.volumes import free_lost_clusters, grow


async def grow_disk(context: MachineContext) -> None:
    """Nothing shrinks, so there is no undo: the size that was reached is recorded, and is the volume's."""
    disk, size = find_disk(context), int(context.parameters["size"])
    if context.instance is not None:
        await context.instance.disks.grow(disk, size)
    else:
        path = context.rooms.home.volume(context.parameters["volume_uid"]) / VOLUME_DISK
        try:
            await grow(path, size, context.parameters["volume"])
        finally:
            await free_lost_clusters(path)
    await context.journal.remember(size_bytes=size)
    context.outcome.update(volume=context.parameters["volume"], size_bytes=size)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("grow disk", grow_disk)]
