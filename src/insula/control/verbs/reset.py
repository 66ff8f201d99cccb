"""reset: like the reset button; what is wanted stays as it is."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, NotRunning, WrongPhase, StaleGeneration."""
    return desk.machine_intent(request)


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
