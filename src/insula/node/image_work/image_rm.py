"""image-rm: the name, and the files unless machines use them."""

from __future__ import annotations

import asyncio
from typing import Any

from insula.model.operation import Operation
from insula.node.journal import OperationJournal
from insula.node.media import digests_in_use
from insula.node.rooms import Rooms


async def work(rooms: Rooms, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
    # Its templates hold on to its files as machines do, and nobody can be launched from them any more.
    await rooms.templates.forget_image(rooms.images.get(operation.name).digest)
    in_use = digests_in_use(rooms.store)
    freed = await asyncio.to_thread(rooms.images.remove, operation.name, in_use)
    if not freed:
        journal.note(f"Machines still use the files of '{operation.name}'; they go with the last of those.")
    return {"name": operation.name, "freed": freed}
