"""image-build: from a recipe."""

from __future__ import annotations

from typing import Any

from insula.model.operation import Operation
from insula.node.image_work import outcome_of
from insula.node.journal import OperationJournal
from insula.node.rooms import Rooms


async def work(rooms: Rooms, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
    from insula.storage.builder import build
    from insula.storage.recipe import find_recipe

    recipe = find_recipe(operation.name, [rooms.home.root / "recipes"])
    return outcome_of(await build(recipe, rooms.images, journal.progress))
