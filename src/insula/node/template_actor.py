"""The actor of this host's templates: lets go of them. They are made by the launches that need them."""

from __future__ import annotations

from typing import Any

from insula.kit.clock import utc_now
from insula.model.operation import Operation
from insula.node.journal import OperationJournal
from insula.node.mailbox import Actor
from insula.node.procedure import Step, perform
from insula.node.rooms import Rooms
from insula.planner.lifecycle import ACCEPT, QUEUE, Verdict


class TemplateActor(Actor):
    """uid is 'template:all': one for all, since an image's name may mean several of them."""

    def __init__(self, uid: str, rooms: Rooms) -> None:
        super().__init__(uid, rooms.store)
        self.rooms = rooms

    def judge(self, operation: Operation, busy: str | None) -> Verdict:
        return ACCEPT if busy is None else QUEUE

    async def perform_operation(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        outcome: dict[str, Any] = {"removed": [], "freed_bytes": 0}

        async def remove(_: None) -> None:
            for key in self._meant(operation):
                outcome["freed_bytes"] += await self.rooms.templates.remove(key)
                outcome["removed"].append(key)

        # No undo: a template that is gone is made again by the next launch that wants it.
        steps = [Step[None](operation.verb, remove)]
        await perform(operation.verb, steps, None, journal, self.rooms.faults)
        return outcome

    def _meant(self, operation: Operation) -> list[str]:
        if operation.verb == "template-rm":
            keys: list[str] = operation.parameters["keys"]
            return keys
        now, unused_for = utc_now(), operation.parameters["unused_for"]
        views = self.rooms.templates.all()
        return [view.key for view in views if (now - view.last_used).total_seconds() >= unused_for]
