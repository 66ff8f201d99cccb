"""snapshot-rm: a snapshot goes; what only it had is lost, what others stand on stays theirs.

Its children become its parent's, and a `merge` of the layers that nobody needs any more is begun.
"""

from __future__ import annotations

from insula.control.desk import Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.snapshots import find_whole, snapshots_of
from insula.model.machine import Machine
from insula.model.operation import Operation
from insula.model.snapshot import Snapshot
from insula.store.protocol import Change, Delete, Put


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, SnapshotNotFound, SnapshotUnfinished, BeingRemoved, StaleGeneration.

    parameters: name.
    """
    machine = desk.find(request.project, request.name).document
    stored = find_whole(desk, machine, request.parameters["name"])
    parameters = {"snapshot": stored.document.uid, "name": stored.document.name}
    asked = VerbRequest(request.verb, request.project, request.name, parameters, request.if_generation)
    intent = desk.machine_intent(asked)
    return Intent(intent.operation, (*intent.changes, Put(stored.document, stored.revision)))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    uid = operation.parameters["snapshot"]
    gone = desk.store.get(Snapshot, uid)
    removed = succeeded or operation.remembered.get("removed")
    if not removed or gone is None:
        return Conclusion()
    parent = gone.document.parent
    changes: list[Change] = [Delete(Snapshot, uid)]
    for child in snapshots_of(desk, operation.target):
        if child.document.parent == uid:
            changes.append(Put(child.document.next_generation(parent=parent), child.revision))
    stored = desk.store.get(Machine, operation.target)
    outcome = dict(operation.outcome or {})
    if stored is not None:
        machine = stored.document
        stands_on = parent if machine.snapshot == uid else machine.snapshot
        changes += desk.change_machine(machine.uid, snapshot=stands_on, unmerged=True)
        merge = desk.operation(VerbRequest("merge", machine.project, machine.name), machine)
        changes.append(Put(merge, expect=0))
        outcome["merge"] = merge.uid
    event = desk.event("snapshot.removed", operation, snapshot=gone.document.name)
    return Conclusion(tuple(changes), (event,), outcome, (operation.target,))
