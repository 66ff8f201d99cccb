"""The work behind each verb on images, a file each; found by its name ('-' as '_').

    async def work(rooms, operation, journal) -> outcome

None has an undo: an image, and an exported file, shows itself only when it is whole, and a removal is one
rename. Each may be done again after a crash: what it was about to show is remembered first, so that a daemon
that died in between finds it done.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import Any, cast

from insula.model.image import Image
from insula.model.operation import Operation
from insula.node.journal import OperationJournal
from insula.node.rooms import Rooms
from insula.storage.errors import ImageNotFound

Work = Callable[[Rooms, Operation, OperationJournal], Awaitable[dict[str, Any]]]


def find_work(verb: str) -> Work:
    """The verb's work."""
    module = importlib.import_module(f"{__name__}.{verb.replace('-', '_')}")
    return cast(Work, module.work)


def outcome_of(image: Image) -> dict[str, Any]:
    """What whoever waits for an image hears."""
    return {"name": image.name, "digest": image.digest, "size_bytes": image.size_bytes}


def remember_image(operation: Operation, journal: OperationJournal) -> Callable[[Image], Awaitable[None]]:
    """What to await before an image is published, so that `find_published` knows it."""

    async def remember(image: Image) -> None:
        await journal.remember(**{f"digest {operation.recovered}": image.digest})

    return remember


def find_published(rooms: Rooms, operation: Operation) -> Image | None:
    """The image of the operation, if an earlier daemon had published it and died before it could say so."""
    digests = {value for key, value in operation.remembered.items() if key.startswith("digest ")}
    try:
        image = rooms.images.get(operation.name)
    except ImageNotFound:
        return None
    return image if image.digest in digests else None
