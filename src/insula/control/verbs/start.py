"""start: the machine is wanted on."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.volumes import refuse_busy_disks
from insula.model.machine import Power
from insula.model.operation import Operation
from insula.planner.admission import admit


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, AlreadyRunning, StaleGeneration, MemoryExceedsHost, VolumeBusy."""
    intent = desk.machine_intent(request, power=Power.ON)
    machine = desk.find(request.project, request.name).document
    admit(machine, await desk.node.host_facts())
    refuse_busy_disks(desk, machine)
    return intent


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    if succeeded or operation.parameters.get("by") == "repair":
        return NOTHING  # repair tries again, later and later
    return Conclusion(tuple(desk.change_machine(operation.target, power=Power.OFF)))
