"""fork: capture the machine as it is; its siblings are made by `create` operations of their own (control).

What was begun of a capture when a daemon died is begun anew: it has changed nothing but that the machine's
disks stand on one more frozen file.
"""

from __future__ import annotations

from collections.abc import Sequence

from insula.engine.protocol import Memory
from insula.model.device.nic import Nic
from insula.node.context import MachineContext
from insula.node.mending import mend
from insula.node.procedure import Step
from insula.node.procedures.merge import DEEP, depth
from insula.node.standing import let_run, remember_running, require_savable
from insula.storage import chain


async def capture(context: MachineContext) -> None:
    uid, captures = context.operation.uid, context.rooms.captures
    instance, machine = context.instance, context.machine
    await remember_running(context)
    if not captures.is_whole(uid):
        await require_savable(context)
        await let_run(context)
        await mend(context)
        context.progress("Capturing the machine")
        engine = context.rooms.engine
        vessel = engine.plan(
            machine,
            context.boot_files(),
            captures.directory(uid),
            await engine.facts(),
            Memory(shareable=True, vessel=True),
        )
        context.seat.capturing = True
        try:
            forks = len(context.parameters["siblings"])
            stood = await captures.make(uid, machine, context.directory, instance, vessel, forks)
        finally:
            await let_run(context)
            context.seat.capturing = False
        context.outcome["stood_seconds"] = round(stood, 4)
    cards = [device.mac for device in machine.devices if isinstance(device, Nic)]
    context.outcome.update(live=instance is not None, cards=cards)
    depths = [depth(disk) for disk in context.rooms.snapshots.kept_disks(machine)]
    context.outcome["deep"] = any(found > DEEP for found in depths)


async def undo_capture(context: MachineContext) -> None:
    await let_run(context)
    for disk in context.rooms.snapshots.kept_disks(context.machine):
        chain.clear(disk.directory, disk.file)
    await context.rooms.captures.remove(context.operation.uid)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("capture", capture, undo_capture)]
