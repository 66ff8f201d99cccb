"""image-prune: files of images that no name means and no machine uses, and parts of downloads."""

from __future__ import annotations

import asyncio
from typing import Any

from insula.model.operation import Operation
from insula.node.journal import OperationJournal
from insula.node.media import digests_in_use
from insula.node.rooms import Rooms


async def work(rooms: Rooms, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
    in_use = digests_in_use(rooms.store)
    digests = await asyncio.to_thread(rooms.images.prune, in_use)
    return {"removed": list(digests)}
