"""What a launched machine wakes up with, and what it is told then.

captured, template   it is a fork: it wakes up as another machine and is made itself (`renewal`)
snapshot, suspended  it goes on as itself, later: only its clock and random numbers are made new
nothing of these     it boots
"""

from __future__ import annotations

from insula.engine.protocol import OWN_MEMORY, Instance, Memory
from insula.kit.errors import InsulaError
from insula.node import suspension
from insula.node.context import MachineContext
from insula.node.disks import stand_on

AGENT_PATIENCE = 5.0  # seconds for the agent of a guest that goes on where it was; 0.05 s is usual


def find_memory(context: MachineContext) -> Memory:
    """What the machine is to wake up with. Raises StateDoesNotFit."""
    if context.operation.verb == "snapshot-restore":
        if context.parameters.get("disks_only"):
            return OWN_MEMORY
        snapshots = context.rooms.snapshots
        return snapshots.memory(snapshots.find(context.parameters["snapshot"]))
    remembered = context.journal.remembered
    if captured := remembered.get("captured"):
        live = remembered["live"]
        return Memory(template=context.rooms.captures.directory(captured)) if live else OWN_MEMORY
    if key := remembered.get("template"):
        template = context.rooms.templates.directory(key)
        if stand_on(context.machine, template, key, context.directory):
            return Memory(template=template)
        return OWN_MEMORY
    found = find_suspended(context)
    return OWN_MEMORY if found is None else found.launch_memory(context.directory)


def find_suspended(context: MachineContext) -> suspension.Suspension | None:
    """The machine's suspended memory, if it is to go on from it. Raises StateDoesNotFit."""
    if context.parameters.get("cold"):
        return None
    disks = context.rooms.snapshots.kept_disks(context.machine)
    return suspension.find(context.directory, context.machine.name, disks)


def begin_resume(context: MachineContext, instance: Instance) -> None:
    """Just before the vCPUs run: a suspended memory is used up by that."""
    saved = instance.plan.memory.saved
    if saved is not None and saved.path.parent == context.directory:
        found = find_suspended(context)
        if found is not None:
            suspension.begin_resume(context.directory, found)


async def refresh(context: MachineContext, instance: Instance) -> dict[str, object]:
    """Give a guest that goes on where it was the host's time and other random numbers; what was renewed.

    What it could not take is told; it is itself all the same.
    """
    try:
        agent = await instance.agent(AGENT_PATIENCE)
        renewal = await agent.refresh()
    except InsulaError as error:
        context.note(
            "The guest was not told that time has passed, and its random numbers are those it had: "
            f"{error.message}"
        )
        return {"renewed": [], "failed": {}}
    for what, why in renewal.failed:
        context.note(f"The guest could not renew its {what}: {why}.")
    return {"renewed": list(renewal.renewed), "failed": dict(renewal.failed)}
