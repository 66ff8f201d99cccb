"""The turn of operations on one target: pick up, judge, perform, one at a time. Shared by all actors.

    nudge --> waiting operations of the target, oldest first --judge-->  accept: perform in a child task
                                                                         queue: later
                                                                         join: ends as the current one ends
                                                                         preempt: cancel the current one
                                                                         refuse: ends with the error

The decision is the subclass's (`judge`), the work too (`perform_operation`). What arrives is handled in one
queue, so that two decisions never overlap; the work itself is a child task, so that a machine in a long copy
still hears "stop".
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from insula.kit.aio import Crew, cancel_and_wait
from insula.kit.errors import Bug, InsulaError
from insula.model.operation import Operation, OperationState
from insula.node.journal import OperationJournal
from insula.node.procedure import DaemonDied
from insula.planner.lifecycle import Cancelled, Superseded, Verdict
from insula.store.protocol import Store

log = logging.getLogger(__name__)


@dataclass
class _Current:
    """The operation being performed. why: what to say if it is cancelled."""

    operation: Operation
    journal: OperationJournal
    task: asyncio.Task[None]
    why: InsulaError | None = None
    joined: list[str] = field(default_factory=list)


class _Nudge:
    """Look at the ledger."""


@dataclass(frozen=True)
class _Ended:
    uid: str


class Actor(ABC):
    """One target's actor. Subclasses judge and perform; `receive` handles what else comes by the mailbox."""

    def __init__(self, uid: str, store: Store) -> None:
        self.uid = uid
        self.store = store
        self.crew = Crew(self._child_failed)
        self._mailbox: asyncio.Queue[Any] = asyncio.Queue()
        self._current: _Current | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._retiring = False

    @abstractmethod
    def judge(self, operation: Operation, busy: str | None) -> Verdict:
        """May this operation be done now? busy: verb of the current one."""

    @abstractmethod
    async def perform_operation(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        """Do it (again, when `recovered`); the outcome. Cancelled: undo, then let CancelledError out."""

    async def receive(self, message: Any) -> None:
        """A message of the subclass's own; one without any never posts."""
        raise NotImplementedError(f"{type(self).__name__} takes no message {message!r}")

    def start(self) -> None:
        self._loop_task = asyncio.get_running_loop().create_task(self._run(), name=f"actor {self.uid}")
        self.nudge()

    def nudge(self) -> None:
        self._mailbox.put_nowait(_Nudge())

    def post(self, message: Any) -> None:
        self._mailbox.put_nowait(message)

    async def retire(self) -> None:
        """Wait until nothing is left to do, then end: the target is gone for good."""
        self._retiring = True
        self.nudge()
        if self._loop_task is not None:
            await asyncio.wait([self._loop_task])
        await self.close()

    async def close(self) -> None:
        """Stop at once, as the daemon ends: what is being performed stays recorded as it is."""
        await cancel_and_wait(self._loop_task)
        if self._current is not None:
            self._current.journal.abandoned = True
            await cancel_and_wait(self._current.task)
        await self.crew.close()

    async def _run(self) -> None:
        while not (self._retiring and self._current is None and self._mailbox.empty()):
            message = await self._mailbox.get()
            try:
                if isinstance(message, _Nudge):
                    await self._look()
                elif isinstance(message, _Ended):
                    await self._settle(message.uid)
                    await self._look()
                else:
                    await self.receive(message)
            except Exception:
                log.exception("actor %s could not handle %r", self.uid, message)

    async def _look(self) -> None:
        for stored in self.store.all(Operation):
            operation = stored.document
            if operation.target != self.uid or operation.state.is_final:
                continue
            if operation.state is OperationState.PERFORMED or operation.parameters.get("awaiting"):
                continue  # control's turn
            current = self._current
            if current is not None and operation.uid == current.operation.uid:
                if operation.cancel_requested and current.why is None:
                    self._cancel(Cancelled(f"The operation '{operation.verb}' was cancelled and undone."))
            elif current is None or operation.uid not in current.joined:
                await self._decide(operation)

    async def _decide(self, operation: Operation) -> None:
        journal = OperationJournal(self.store, operation, self.crew)
        if operation.cancel_requested and not operation.steps:
            await journal.fail(Cancelled(f"The operation '{operation.verb}' was cancelled before it began."))
            return
        if operation.state is OperationState.RUNNING and self._current is None:
            self._begin(operation)  # a daemon died in it: it was accepted then, and is ours to finish
            return
        if self._current is None and self._awaits_conclusion():
            return  # what ended is yet to change documents that this one reads; that nudges us
        verdict = self.judge(operation, self._current.operation.verb if self._current else None)
        if verdict.action == "accept":
            self._begin(operation)
        elif verdict.action == "refuse":
            assert verdict.error is not None, "a refusal says why"
            await journal.fail(verdict.error)
        elif verdict.action == "join" and self._current is not None:
            self._current.joined.append(operation.uid)
        elif verdict.action == "preempt" and self._current is not None and self._current.why is None:
            verb = self._current.operation.verb
            self._cancel(
                Superseded(f"The operation '{verb}' on '{operation.name}' gave way to '{operation.verb}'.")
            )

    def _awaits_conclusion(self) -> bool:
        operations = (stored.document for stored in self.store.all(Operation))
        return any(o.target == self.uid and o.state is OperationState.PERFORMED for o in operations)

    def _begin(self, operation: Operation) -> None:
        journal = OperationJournal(self.store, operation, self.crew)
        task = self.crew.start(self._perform(operation, journal), f"{operation.verb} {operation.name}")
        self._current = _Current(operation, journal, task)

    def _cancel(self, why: InsulaError) -> None:
        assert self._current is not None
        self._current.why = why
        self._current.task.cancel()

    async def _perform(self, operation: Operation, journal: OperationJournal) -> None:
        try:
            operation = await journal.begin()
            outcome = await self.perform_operation(operation, journal)
            await journal.succeed(outcome)
        except DaemonDied:
            return  # a test's kill -9: nothing more is recorded
        except asyncio.CancelledError:
            current = self._current
            if journal.abandoned or current is None or current.why is None:
                raise  # the daemon ends; the next one goes on
            await journal.fail(current.why)
        except InsulaError as error:
            await journal.fail(error)
        except KeyError:
            log.warning("operation %s vanished while it was performed", operation.uid)
        except Exception as error:
            log.exception("operation %s %s failed", operation.verb, operation.name)
            bug = Bug(
                f"'{operation.verb}' of '{operation.name}' met an unexpected error: {error!r}.",
                hint="Please report it with the daemon's log (insula daemon status names it).",
            )
            await journal.fail(bug)
        self.post(_Ended(operation.uid))

    async def _settle(self, uid: str) -> None:
        """The current operation has ended; so have those that joined it."""
        current = self._current
        if current is None or current.operation.uid != uid:
            return
        self._current = None
        ended = self.store.get(Operation, uid)
        for joined in current.joined:
            stored = self.store.get(Operation, joined)
            if stored is None or stored.document.state.is_final:
                continue
            journal = OperationJournal(self.store, stored.document, self.crew)
            if ended is not None and ended.document.problem is not None:
                await self.store.update(
                    Operation,
                    joined,
                    lambda o, e=ended.document: o.model_copy(  # type: ignore[misc]
                        update={"state": OperationState.PERFORMED, "problem": e.problem}
                    ),
                )
            else:
                await journal.succeed(ended.document.outcome or {} if ended is not None else {})

    def _child_failed(self, name: str, error: BaseException) -> None:
        log.error("%s of actor %s failed", name, self.uid, exc_info=error)
