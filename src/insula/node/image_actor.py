"""The actor of one image: builds and removes it, one at a time."""

from __future__ import annotations

import asyncio
from typing import Any

from insula.model.machine import Machine
from insula.model.operation import Operation, Progress
from insula.node.journal import OperationJournal
from insula.node.mailbox import Actor
from insula.node.procedure import Step, perform
from insula.node.rooms import Rooms
from insula.planner.lifecycle import ACCEPT, JOIN, QUEUE, Verdict


class ImageActor(Actor):
    """uid is 'image:NAME'."""

    def __init__(self, uid: str, rooms: Rooms) -> None:
        super().__init__(uid, rooms.store)
        self.rooms = rooms

    def judge(self, operation: Operation, busy: str | None) -> Verdict:
        if busy is None:
            return ACCEPT
        return JOIN if busy == operation.verb else QUEUE

    async def perform_operation(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        work = {"image-build": self._build, "image-rm": self._remove}[operation.verb]
        outcome: dict[str, Any] = {}

        async def do(_: None) -> None:
            outcome.update(await work(operation.name, journal))

        # Neither has an undo: a build shows itself only when it is whole, a removal is one rename.
        steps = [Step[None](operation.verb, do)]
        await perform(operation.verb, steps, None, journal, self.rooms.faults)
        return outcome

    async def _build(self, name: str, journal: OperationJournal) -> dict[str, Any]:
        from insula.storage.builder import build
        from insula.storage.recipe import find_recipe

        def report(progress: Progress) -> None:
            journal.progress(progress)

        recipe = find_recipe(name, [self.rooms.home.root / "recipes"])
        replaced = next((old.digest for old in self.rooms.images.list() if old.name == name), None)
        image = await build(recipe, self.rooms.images, report)
        if replaced is not None and replaced != image.digest:
            await self.rooms.templates.forget_image(replaced)  # nobody can launch from it any more
        return {"name": image.name, "digest": image.digest, "size_bytes": image.size_bytes}

    async def _remove(self, name: str, journal: OperationJournal) -> dict[str, Any]:
        # Its templates hold on to its files as machines do, and nobody can be launched from them any more.
        await self.rooms.templates.forget_image(self.rooms.images.get(name).digest)
        in_use = {stored.document.image.digest for stored in self.store.all(Machine)}
        freed = await asyncio.to_thread(self.rooms.images.remove, name, in_use)
        if not freed:
            journal.note(f"Machines still use the files of '{name}'; they go with the last of those.")
        return {"name": name, "freed": freed}
