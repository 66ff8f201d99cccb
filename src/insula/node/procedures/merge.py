"""merge: layers that nobody needs for themselves any more become part of those that stand on them.

While the machine runs its monitor does it, beside the guest. It may be cut short at any moment, by anybody
who wants something else of the machine: nobody sees a difference, and it is taken up again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from insula.kit.errors import InsulaError
from insula.node.context import MachineContext
from insula.node.disks import KeptDisk
from insula.node.procedure import Step
from insula.storage.chain import sweep
from insula.storage.layers import layers_below
from insula.storage.merging import Merge, merge_at_rest, plan_merges, survey

DEEP = 8  # layers of a disk, from which on it is worth waiting for forks to go


async def merge(context: MachineContext) -> None:
    snapshots, machine = context.rooms.snapshots, context.machine
    merged, left = 0, 0
    for disk in snapshots.kept_disks(machine):
        stands = snapshots.stands(machine, disk)
        for stand in stands:
            sweep(stand.directory, disk.file, stand.top)  # of a merge that was cut short
        for planned in plan_merges(survey(stands), stands):
            try:
                await _merge(context, disk, planned)
            except InsulaError as error:
                left += len(planned.gone)
                context.note(f"Layers of {_named(disk)} are not merged yet: {_why(error)}")
                continue
            merged += len(planned.gone)
            for stand in stands:
                sweep(stand.directory, disk.file, stand.top)
        left += depth(disk) > DEEP
    context.outcome.update(merged=merged, left=left)


def _named(disk: KeptDisk) -> str:
    volume = disk.disk.volume
    return f"disk '{disk.disk.id}'" if volume is None else f"volume '{volume.name}'"


def _why(error: InsulaError) -> str:
    """With the monitor's own words, where it was that which refused."""
    answer = error.evidence.get("answer")
    return f"{error.message.removesuffix('.')}: {answer}" if answer else error.message


def depth(disk: KeptDisk) -> int:
    """How many layers of ours a disk stands on."""
    return sum(1 for _ in layers_below(disk.directory, disk.stand.top)) - 1


async def _merge(context: MachineContext, disk: KeptDisk, planned: Merge) -> None:
    report = _reporter(context)
    instance = context.instance
    onto = disk.switch_file(planned.onto)
    if instance is not None and await instance.disks.has_layer(onto):
        await instance.disks.merge(disk.disk, onto, planned.base, report)
    else:
        await merge_at_rest(planned, report)


def _reporter(context: MachineContext) -> Callable[[float], None]:
    return lambda fraction: context.progress("Merging layers", fraction)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("merge", merge)]
