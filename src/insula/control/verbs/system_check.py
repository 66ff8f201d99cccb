"""system-check: look for what is wrong in the store, and when asked into its disks; changes nothing."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.housekeeping import system_operation
from insula.control.request import VerbRequest
from insula.model.base import parse
from insula.model.housekeeping import CheckSpec
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises BadDocument."""
    spec = parse(CheckSpec, request.parameters, "request")
    return Intent(system_operation("system-check", spec.model_dump(mode="json")))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
