"""rm: the machine and all it has, its snapshots too, are to go.

Asking for it is the consent, which only a user's operation can give.
"""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.snapshots import snapshots_of
from insula.model.machine import Machine, Power
from insula.model.operation import Operation
from insula.model.snapshot import Snapshot
from insula.store.protocol import Delete


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, StillRunning (without force), StaleGeneration."""
    return desk.machine_intent(request, removing=True, power=Power.OFF)


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    stored = desk.store.get(Machine, operation.target)
    if stored is None:
        return NOTHING
    if not succeeded:
        return Conclusion(tuple(desk.change_machine(operation.target, removing=False)))
    gone = desk.event("machine.removed", stored.document)
    kept = (Delete(Snapshot, snapshot.document.uid) for snapshot in snapshots_of(desk, operation.target))
    return Conclusion((Delete(Machine, operation.target), *kept), (gone,))
