"""Actors whose operations are one step each, done one at a time and never undone: what was done is told."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from insula.model.operation import Operation
from insula.node.journal import OperationJournal
from insula.node.mailbox import Actor
from insula.node.procedure import Step, perform
from insula.node.rooms import Rooms
from insula.planner.lifecycle import ACCEPT, QUEUE, Verdict


class OneStepActor(Actor):
    """Subclasses do the work."""

    def __init__(self, uid: str, rooms: Rooms) -> None:
        super().__init__(uid, rooms.store)
        self.rooms = rooms

    @abstractmethod
    async def work(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        """Do it (again, when a daemon died at it); the outcome."""

    def judge(self, operation: Operation, busy: str | None) -> Verdict:
        return ACCEPT if busy is None else QUEUE

    async def perform_operation(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        outcome: dict[str, Any] = {}

        async def do(_: None) -> None:
            outcome.update(await self.work(operation, journal))

        await perform(operation.verb, [Step[None](operation.verb, do)], None, journal, self.rooms.faults)
        return outcome
