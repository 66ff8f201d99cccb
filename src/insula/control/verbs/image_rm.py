"""image-rm: remove an image that no machine is made from."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises ImageNotFound with the nearest name; ImageInUse ends the operation."""
    desk.node.images.get(request.name)
    return Intent(desk.image_operation("image-rm", request.name))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
