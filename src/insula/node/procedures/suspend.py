"""suspend: memory and devices to a file, then the process ends. `start` goes on from there.

A daemon that dies while memory is written saves it anew: the machine still stands as it did.
"""

from __future__ import annotations

from collections.abc import Sequence

from insula.kit.paths import SUSPENDED_STATE
from insula.kit.units import format_size
from insula.model.observation import Phase
from insula.node import suspension
from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.standing import let_run, remember_running, require_savable
from insula.storage.errors import reserving


async def save(context: MachineContext) -> None:
    """The file is whole and known before the process ends; nothing writes its disks any more by then."""
    instance = context.instance
    if instance is None:
        return
    await require_savable(context)
    directory = context.directory
    suspension.remove(directory)
    state = directory / SUSPENDED_STATE
    context.progress("Saving memory")
    await remember_running(context)
    with reserving(state, await instance.saved_bytes(), f"the memory of machine '{context.machine.name}'"):
        await context.rooms.engine.save(instance, state, (), stay=True)
    memory = suspension.describe_state(state, instance.plan)
    suspension.keep(directory, memory, context.rooms.snapshots.kept_disks(context.machine))


async def undo_save(context: MachineContext) -> None:
    """As long as the process lives, it has all that was saved; once told to end, only the file has it."""
    if context.journal.remembered.get("ends"):
        await _finish(context)
        context.note(f"It was too late to let machine '{context.machine.name}' run on: it is suspended.")
        return
    if context.instance is None:
        return
    suspension.remove(context.directory)
    await let_run(context)
    if context.instance is not None and context.journal.remembered.get("runs"):
        await context.wait_phase(Phase.RUNNING)


async def end(context: MachineContext) -> None:
    """From here on there is no way back, whatever fails."""
    await context.journal.remember(ends=True)
    await _finish(context)


async def _finish(context: MachineContext) -> None:
    if context.instance is not None:
        await context.instance.kill()
        await context.wait_ended()
    size = (context.directory / SUSPENDED_STATE).stat().st_size
    context.outcome["memory_bytes"] = size
    told = f"Its memory is on the disk ({format_size(size)})."
    await context.observer.see(phase=Phase.SUSPENDED, reason=told)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("save memory", save, undo_save), Step("end the process", end)]
