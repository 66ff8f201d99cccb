"""suspend: the machine sleeps on the disk; it is wanted off until it is started."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.model.machine import Machine, Power
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, NotRunning, StaleGeneration."""
    return desk.machine_intent(request, power=Power.OFF)


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    stored = desk.store.get(Machine, operation.target)
    if succeeded or stored is None or not desk.state(stored.document).observation.phase.has_process:
        return NOTHING
    return Conclusion(tuple(desk.change_machine(operation.target, power=Power.ON)))  # it still runs
