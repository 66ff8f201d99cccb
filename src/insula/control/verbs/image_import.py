"""image-import: a disk that was made elsewhere becomes an image."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.model.base import parse, require_name
from insula.model.image import ImportSpec
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises BadName, BadDocument, ImageNameTaken, and what the file's header is refused for."""
    name = require_name(request.name, "image")
    spec = parse(ImportSpec, request.parameters, "import")
    await desk.node.images.check_import(name, spec)
    return Intent(desk.image_operation("image-import", name, spec.model_dump(mode="json")))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
