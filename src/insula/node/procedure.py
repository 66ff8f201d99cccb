"""Durable work: steps in order, each recorded before it begins, each with its undo; resumable after a crash.

    for each step:   record "started"  ->  do  ->  record "done"
    on any failure, and on cancellation:  undo the started ones, last first; record "undone"; re-raise
    after a crash of the daemon:  steps recorded "done" are skipped, the one that was "started" is done again

Therefore `do` and `undo` must be idempotent: doing twice changes nothing more. A step that cannot be so is
marked `at_most_once`: if the daemon died during it, it is not repeated and the operation says so in a note.
Of a step that has nothing to undo and may be repeated it makes no difference whether it was begun: it is not
recorded by itself, which spares a durable write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from insula.kit.errors import InsulaError
from insula.model.operation import StepRecord

log = logging.getLogger(__name__)

C = TypeVar("C")
MOST_RECOVERIES = 3  # a daemon that dies this often in one operation is killed by it: undo instead


@dataclass(frozen=True)
class Step(Generic[C]):
    """A named piece of work on a context. undo: None where there is nothing to take back."""

    name: str
    do: Callable[[C], Awaitable[None]]
    undo: Callable[[C], Awaitable[None]] | None = None
    at_most_once: bool = False


class Journal(Protocol):
    """Where the progress of an operation is recorded durably.

    abandoned: the daemon ends; a cancellation now must leave everything as it is for the next one.
    """

    abandoned: bool

    def records(self) -> tuple[StepRecord, ...]: ...

    async def record(self, records: tuple[StepRecord, ...]) -> None: ...

    def note(self, text: str) -> None:
        """Something the person who asked should hear besides the outcome."""


class Faults:
    """Where tests make things go wrong. The shipped one does nothing."""

    def before(self, verb: str, step: str) -> None:
        """Called before a step's work; may raise."""

    def after(self, verb: str, step: str) -> None:
        """Called after a step's work, before it is recorded as done; may raise."""


class DaemonDied(BaseException):
    """Raised by tests' `Faults` in place of kill -9: nothing is undone, nothing more is recorded."""


async def perform(
    verb: str,
    steps: Sequence[Step[C]],
    context: C,
    journal: Journal,
    faults: Faults,
    *,
    backwards: BaseException | None = None,
) -> None:
    """Do what is left of the steps; or undo what was begun of them and raise `backwards`, why that is.

    Raises what a step raised, after everything has been undone; asyncio.CancelledError likewise.
    """
    records: dict[str, str] = {record.name: record.state for record in journal.records()}
    try:
        if backwards is not None:
            raise backwards
        for step in steps:
            state = records.get(step.name)
            if state == "done":
                continue
            if state == "started" and step.at_most_once:
                journal.note(
                    f"The daemon ended while it was at '{step.name}'; whether that was done is not known, "
                    "and it was not done again."
                )
            else:
                records[step.name] = "started"
                if step.undo is not None or step.at_most_once:
                    await journal.record(_as_tuple(records))
                faults.before(verb, step.name)
                await step.do(context)
                faults.after(verb, step.name)
            records[step.name] = "done"
    except DaemonDied:
        raise
    except BaseException:
        if journal.abandoned:
            raise
        await _finish(_undo(verb, steps, context, journal, records, faults))
        raise


async def _undo(
    verb: str,
    steps: Sequence[Step[C]],
    context: C,
    journal: Journal,
    records: dict[str, str],
    faults: Faults,
) -> None:
    for step in reversed(steps):
        if records.get(step.name) not in ("started", "done"):
            continue
        if step.undo is not None:
            try:
                faults.before(verb, f"undo {step.name}")
                await step.undo(context)
            except Exception as error:
                # The rest must still be undone; what stays behind is told, never hidden.
                log.error("undo of %s in %s failed", step.name, verb, exc_info=error)
                told = error.message if isinstance(error, InsulaError) else repr(error)
                journal.note(f"The step '{step.name}' could not be undone: {told}")
                continue
        records[step.name] = "undone"
        await journal.record(_as_tuple(records))


async def _finish(work: Awaitable[None]) -> None:
    """Wait for the work to its end even if we are cancelled meanwhile: an undo is never left half done."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
    task.result()


def _as_tuple(records: dict[str, str]) -> tuple[StepRecord, ...]:
    return tuple(StepRecord.model_validate({"name": n, "state": s}) for n, s in records.items())
