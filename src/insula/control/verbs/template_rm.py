"""template-rm: let go of templates; machines that were forked from them live on."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises TemplateNotFound; what the name means is decided here, once."""
    keys = desk.node.templates.find(request.name)
    return Intent(desk.template_operation("template-rm", request.name, keys=keys))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
