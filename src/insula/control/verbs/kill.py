"""kill: the machine is wanted off, at once."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.model.machine import Power
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, NotRunning, StaleGeneration."""
    return desk.machine_intent(request, power=Power.OFF)


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
