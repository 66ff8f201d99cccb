"""What every store offers; tests/conformance/store.py holds each implementation to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from insula.kit.errors import Conflict, Unavailable
from insula.model.base import Document
from insula.model.event import Event

D = TypeVar("D", bound=Document)


class RevisionConflict(Conflict):
    """The document changed since it was read."""

    code = "revision-conflict"


class NameTaken(Conflict):
    """The name belongs to another document of this kind and project."""

    code = "name-taken"


class LedgerCorrupt(Unavailable):
    """The ledger's file is damaged; it is kept as it is."""

    code = "ledger-corrupt"


class LedgerTooNew(Unavailable):
    """The ledger was written by a later version of Insula."""

    code = "ledger-too-new"


class LedgerFull(Unavailable):
    """The ledger's disk is full; the change was not made."""

    code = "ledger-full"


@dataclass(frozen=True)
class Stored(Generic[D]):
    """A document and the revision of the commit that wrote it."""

    document: D
    revision: int


@dataclass(frozen=True)
class Put:
    """Write a document. expect: the revision it must have now; 0: it must not exist; None: whatever it is."""

    document: Document
    expect: int | None = None


@dataclass(frozen=True)
class Delete:
    """Remove a document. expect: the revision it must have now; None: whatever it is. Absent is fine."""

    kind: type[Document]
    uid: str
    expect: int | None = None


Change = Put | Delete


@dataclass(frozen=True)
class Commit:
    """What one commit changed, with its events numbered."""

    revision: int
    changes: tuple[Change, ...]
    events: tuple[Event, ...]


class Store(Protocol):
    """Documents, one writer at a time, readers at any time."""

    def get(self, kind: type[D], uid: str) -> Stored[D] | None: ...

    def find(self, kind: type[D], project: str, name: str) -> Stored[D] | None:
        """By name, for kinds whose names are unique."""

    def all(self, kind: type[D]) -> list[Stored[D]]:
        """All of a kind, oldest first."""

    async def commit(self, changes: Sequence[Change], events: Sequence[Event] = ()) -> Commit:
        """All of it or nothing. Raises RevisionConflict, NameTaken, LedgerFull."""

    async def update(
        self, kind: type[D], uid: str, change: Callable[[D], D], *also: Change, events: Sequence[Event] = ()
    ) -> D:
        """Commit change(document) on the newest revision together with `also`. KeyError when it is gone."""

    async def wait(self, kind: type[D], uid: str, condition: Callable[[D | None], bool]) -> D | None:
        """The first state of the document, now or later, for which the condition holds (None: it is gone)."""

    def watch(self) -> AsyncIterator[Commit]:
        """Every commit from now on, in order."""

    async def events(self, after: int, limit: int) -> list[Event]:
        """Up to `limit` events with seq > after, in order."""

    def last_event(self) -> int:
        """The seq of the newest event, 0 when there is none."""

    async def forget_events(self, keep: int) -> None:
        """Drop all but the newest `keep` events."""

    async def close(self) -> None: ...
