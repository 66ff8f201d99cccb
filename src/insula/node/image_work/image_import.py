"""image-import: from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from insula.model.image import ImageProperties, ImportSpec
from insula.model.operation import Operation
from insula.node.image_work import find_published, outcome_of, remember_image
from insula.node.journal import OperationJournal
from insula.node.rooms import Rooms
from insula.storage.importing import import_file


async def work(rooms: Rooms, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
    done = find_published(rooms, operation)
    if done is not None:
        return outcome_of(done)
    spec = ImportSpec.model_validate(operation.parameters)
    properties = ImageProperties.model_validate(spec.model_dump(include=set(ImageProperties.model_fields)))
    image = await import_file(
        Path(spec.path),
        operation.name,
        properties,
        rooms.images,
        journal.progress,
        format=spec.format,
        replace=spec.replace,
        whole=remember_image(operation, journal),
    )
    return outcome_of(image)
