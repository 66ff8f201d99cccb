"""image-prune: remove what no name means and no machine uses."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    return Intent(desk.image_operation("image-prune", "*"))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
