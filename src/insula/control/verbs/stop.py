"""stop: the machine is wanted off; the guest is asked first."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.kit.units import parse_duration
from insula.model.machine import Machine, Power
from insula.model.operation import Operation


def checked_parameters(request: VerbRequest) -> VerbRequest:
    """The request with its timeout as seconds. Raises BadUnit."""
    parameters = dict(request.parameters)
    if parameters.get("timeout") is not None:
        parameters["timeout"] = parse_duration(parameters["timeout"])
    else:
        parameters.pop("timeout", None)
    return VerbRequest(request.verb, request.project, request.name, parameters, request.if_generation)


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, NotRunning, StaleGeneration, BadUnit."""
    return desk.machine_intent(checked_parameters(request), power=Power.OFF)


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    stored = desk.store.get(Machine, operation.target)
    if succeeded or stored is None or not desk.state(stored.document).observation.phase.has_process:
        return NOTHING
    return Conclusion(tuple(desk.change_machine(operation.target, power=Power.ON)))  # it still runs
