"""image-pull: from a catalogue."""

from __future__ import annotations

from typing import Any

from insula.model.operation import Operation
from insula.node.image_work import find_published, outcome_of, remember_image
from insula.node.journal import OperationJournal
from insula.node.rooms import Rooms
from insula.storage.catalogue import DIRECTORY, find_entry
from insula.storage.pulling import pull


async def work(rooms: Rooms, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
    done = find_published(rooms, operation)
    if done is not None:
        return outcome_of(done)
    entry = find_entry(operation.parameters["source"], [rooms.home.root / DIRECTORY])
    remember = remember_image(operation, journal)
    return outcome_of(await pull(entry, operation.name, rooms.images, journal.progress, remember))
