"""image-pull: download an image that a catalogue lists; the same one that is under way already is joined."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.model.base import parse, require_name
from insula.model.image import PullSpec
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises BadName, NotInCatalogue with the nearest name, BadCatalogue and ImageRefused."""
    name = require_name(request.name, "image")
    spec = parse(PullSpec, request.parameters, "pull")
    source = spec.source or name
    desk.node.images.check_pull(source)
    return Intent(desk.image_operation("image-pull", name, {"source": source}))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
