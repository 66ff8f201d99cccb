"""Layers of disks whose monitor was killed: clusters that it had reserved and not used yet are given back.

A monitor writes down that a cluster is taken before it writes what is in it: a kill loses room, never data.
Looked at is only what was written since the last launch, and only when that ended otherwise than by itself.
"""

from __future__ import annotations

import logging

from insula.kit.errors import InsulaError
from insula.kit.paths import LAUNCH_PLAN
from insula.node.context import MachineContext
from insula.storage.merging import survey
from insula.storage.volumes import free_lost_clusters

log = logging.getLogger(__name__)


async def mend(context: MachineContext, *, volumes_only: bool = False) -> None:
    """Of a machine that has no process. Idempotent. A layer that somebody else has open is left as it is.

    volumes_only: of what leaves it only, since the rest goes with it.
    """
    seen = context.observer.seen
    if context.instance is not None or seen is None or seen.last_exit is None:
        return
    if seen.last_exit.exit_status == 0:
        return
    try:
        await _mend(context, volumes_only)
    except (OSError, InsulaError) as error:  # whoever opens the disks will say it better
        log.warning("disks of %s were not mended: %s", context.machine.name, error)


async def _mend(context: MachineContext, volumes_only: bool) -> None:
    launched = (context.directory / LAUNCH_PLAN).stat().st_mtime
    snapshots, machine = context.rooms.snapshots, context.machine
    for disk in snapshots.kept_disks(machine):
        if volumes_only and disk.disk.volume is None:
            continue
        for name, found in survey(snapshots.stands(machine, disk)).items():
            path = min(found.homes) / name
            if path.stat().st_mtime >= launched:
                await free_lost_clusters(path)
