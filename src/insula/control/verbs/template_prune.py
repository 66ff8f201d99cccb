"""template-prune: let go of every template that no launch has used for a while."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.kit.units import parse_duration
from insula.model.operation import Operation

EVERY = "*"  # what the operation is called; no template's key is


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises BadUnit."""
    unused_for = parse_duration(request.parameters.get("unused_for", 0))
    return Intent(desk.template_operation("template-prune", EVERY, unused_for=unused_for))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
