"""suspend: memory and devices to a file, then the process ends. `start` goes on from there.

A daemon that dies while memory is written saves it anew: the machine still stands as it did.
"""

from __future__ import annotations

from collections.abc import Sequence

from insula.kit.paths import SUSPENDED_STATE
from insula.kit.units import format_size
from insula.model.observation import Phase
from insula.model.snapshot import SavedMemory
from insula.node import suspension
from insula.node.context import MachineContext
from insula.node.procedure import Step
from insula.node.standing import let_run, remember_running
from insula.storage.errors import require_space


async def save(context: MachineContext) -> None:
    instance = context.instance
    if instance is None:
        return
    directory = context.directory
    suspension.remove(directory)
    state = directory / SUSPENDED_STATE
    require_space(state, await instance.resident_bytes(), f"the memory of machine '{context.machine.name}'")
    context.progress("Saving memory")
    await remember_running(context)
    await context.rooms.engine.save(instance, state, (), stay=True)
    memory = suspension.describe_state(state, instance.plan)
    context.outcome["memory_bytes"] = memory.size_bytes
    await context.journal.remember(memory=memory.model_dump(mode="json"))


async def undo_save(context: MachineContext) -> None:
    suspension.remove(context.directory)
    await let_run(context)
    if context.instance is not None and context.journal.remembered.get("runs"):
        await context.wait_phase(Phase.RUNNING)


async def end(context: MachineContext) -> None:
    """The process ends; from then on its disks are nobody's, and are remembered as they are."""
    if context.instance is not None:
        await context.instance.kill()
        await context.wait_ended()
    memory = SavedMemory.model_validate(context.journal.remembered["memory"])
    disks = context.rooms.snapshots.kept_disks(context.machine)
    suspension.keep(context.directory, memory, disks)
    context.outcome["memory_bytes"] = memory.size_bytes
    told = f"Its memory is on the disk ({format_size(memory.size_bytes)})."
    await context.observer.see(phase=Phase.SUSPENDED, reason=told)


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("save memory", save, undo_save), Step("end the process", end)]
