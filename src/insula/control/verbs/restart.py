"""restart: stopped as `stop` does, then started; the machine is wanted on."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.verbs.stop import checked_parameters
from insula.control.volumes import refuse_busy_disks
from insula.model.machine import Power
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, StaleGeneration, BadUnit, VolumeBusy."""
    refuse_busy_disks(desk, desk.find(request.project, request.name).document)
    return desk.machine_intent(checked_parameters(request), power=Power.ON)


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
