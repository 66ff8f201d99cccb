"""image-export: write an image's disk to a file, in the format that was asked for."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.model.base import parse
from insula.model.image import ExportSpec
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises BadDocument, ImageNotFound, ImageHasNoDisk, UnusableTarget and TargetExists."""
    spec = parse(ExportSpec, request.parameters, "export")
    desk.node.images.check_export(request.name, spec)
    return Intent(desk.image_operation("image-export", request.name, spec.model_dump(mode="json")))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
