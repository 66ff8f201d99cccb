"""merge: layers of a machine's disks that nobody needs for themselves any more become fewer.

It follows the removal of a snapshot, and repair takes it up again where it gave way to something.
"""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, WrongPhase, BeingRemoved, StaleGeneration."""
    return desk.machine_intent(request)


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    if not succeeded or (operation.outcome or {}).get("left"):
        return NOTHING
    return Conclusion(tuple(desk.change_machine(operation.target, unmerged=False)))
