"""image-export: to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from insula.model.image import ExportSpec
from insula.model.operation import Operation
from insula.node.journal import OperationJournal
from insula.node.rooms import Rooms
from insula.storage.exporting import export_disk, is_file


async def work(rooms: Rooms, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
    spec = ExportSpec.model_validate(operation.parameters)
    path = Path(spec.path)
    files = [value for key, value in operation.remembered.items() if key.startswith("file ")]
    if any(is_file(path, identity) for identity in files):
        return {"path": spec.path, "format": spec.format, "size_bytes": path.stat().st_blocks * 512}

    async def remember(identity: list[int]) -> None:
        await journal.remember(**{f"file {operation.recovered}": identity})

    image = rooms.images.get(operation.name)
    size = await export_disk(
        image,
        rooms.images.blob(image.digest),
        path,
        spec.format,
        journal.progress,
        replace=spec.replace,
        whole=remember,
    )
    return {"path": spec.path, "format": spec.format, "size_bytes": size}
