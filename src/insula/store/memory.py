"""The part of a store that is the same everywhere: documents in memory, waiting, watching.

`MemoryStore` keeps them nowhere else (the verified fake); a durable store overrides `_persist`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any

from insula.model.base import Document
from insula.model.event import Event
from insula.store.protocol import Change, Commit, D, Delete, NameTaken, Put, RevisionConflict, Stored


class MemoryStore:
    """A store that forgets everything with its process; implements `Store`."""

    def __init__(self) -> None:
        # Each kind's oldest first: every actor looks through all operations again and again.
        self._documents: dict[type[Document], dict[str, Stored[Any]]] = {}
        self._names: dict[tuple[type[Document], str, str], str] = {}
        self._events: list[Event] = []
        self._revision = 0
        self._last_event = 0
        self._lock = asyncio.Lock()
        self._watchers: set[asyncio.Queue[Commit]] = set()
        self._waiters: dict[tuple[type[Document], str], set[asyncio.Future[None]]] = {}

    def get(self, kind: type[D], uid: str) -> Stored[D] | None:
        return self._documents.get(kind, {}).get(uid)

    def find(self, kind: type[D], project: str, name: str) -> Stored[D] | None:
        uid = self._names.get((kind, project, name))
        return None if uid is None else self.get(kind, uid)

    def all(self, kind: type[D]) -> list[Stored[D]]:
        return list(self._documents.get(kind, {}).values())

    async def commit(self, changes: Sequence[Change], events: Sequence[Event] = ()) -> Commit:
        async with self._lock:
            return await self._commit(changes, events)

    async def update(
        self, kind: type[D], uid: str, change: Callable[[D], D], *also: Change, events: Sequence[Event] = ()
    ) -> D:
        async with self._lock:
            stored = self.get(kind, uid)
            if stored is None:
                raise KeyError(uid)
            document = change(stored.document)
            await self._commit([Put(document, stored.revision), *also], events)
            return document

    async def _commit(self, changes: Sequence[Change], events: Sequence[Event]) -> Commit:
        self._check(changes)
        numbered = tuple(
            event.model_copy(update={"seq": self._last_event + 1 + index})
            for index, event in enumerate(events)
        )
        commit = Commit(self._revision + 1, tuple(changes), numbered)
        # A caller that is cancelled must not leave memory and disk telling different stories, nor let the
        # next writer in (we hold the lock) before this commit has ended one way or the other.
        writing = asyncio.ensure_future(self._persist_and_apply(commit))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            while not writing.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([writing])
            raise
        return commit

    async def _persist_and_apply(self, commit: Commit) -> None:
        await self._persist(commit)
        self._apply(commit)

    async def _persist(self, commit: Commit) -> None:
        """Make the commit durable; raise, and nothing has happened."""

    def _check(self, changes: Sequence[Change]) -> None:
        taken: dict[tuple[type[Document], str, str], str] = {}
        freed = {(change.kind, change.uid) for change in changes if isinstance(change, Delete)}
        for change in changes:
            kind, uid = _key(change)
            stored = self.get(kind, uid)
            actual = 0 if stored is None else stored.revision
            absent_is_fine = isinstance(change, Delete) and stored is None
            if change.expect is not None and change.expect != actual and not absent_is_fine:
                raise RevisionConflict(
                    f"The {kind.kind} '{uid}' has changed in the meantime.", hint="Read it again and retry."
                )
            if isinstance(change, Put) and kind.names_are_unique:
                document = change.document
                name = (kind, document.project, document.name)
                holder = taken.get(name) or self._names.get(name)
                if holder not in (None, uid) and (kind, holder) not in freed:
                    raise NameTaken(
                        f"The name '{document.name}' is taken by another {kind.kind}.",
                        hint="Choose another name, or remove or rename the other one.",
                    )
                taken[name] = uid

    def _apply(self, commit: Commit) -> None:
        self._revision = commit.revision
        for change in commit.changes:
            kind, uid = _key(change)
            before = self.get(kind, uid)
            if before is not None and kind.names_are_unique:
                self._names.pop((kind, before.document.project, before.document.name), None)
            if isinstance(change, Put):
                self._place(kind, Stored(change.document, commit.revision))
            elif before is not None:
                del self._documents[kind][uid]
        for change in commit.changes:  # after every removal, so that a name can pass on within one commit
            if isinstance(change, Put) and type(change.document).names_are_unique:
                document = change.document
                self._names[(type(document), document.project, document.name)] = document.uid
        self._last_event += len(commit.events)
        self._keep_events(commit.events)
        self._tell(commit)

    def _place(self, kind: type[Document], stored: Stored[Any]) -> None:
        table = self._documents.setdefault(kind, {})
        before = table.get(stored.document.uid)
        newest = next(reversed(table.values()), None)
        table[stored.document.uid] = stored  # in its place, or at the end if it has none
        if before is not None:
            in_order = _age(before) == _age(stored)
        else:
            in_order = newest is None or _age(newest) < _age(stored)
        if not in_order:
            self._sort(kind)

    def _sort(self, kind: type[Document]) -> None:
        table = self._documents[kind]
        self._documents[kind] = dict(sorted(table.items(), key=lambda item: _age(item[1])))

    def _keep_events(self, events: Sequence[Event]) -> None:
        self._events.extend(events)

    def _tell(self, commit: Commit) -> None:
        for change in commit.changes:
            for waiter in self._waiters.pop(_key(change), ()):
                if not waiter.done():
                    waiter.set_result(None)
        for queue in self._watchers:
            queue.put_nowait(commit)

    async def wait(self, kind: type[D], uid: str, condition: Callable[[D | None], bool]) -> D | None:
        while True:
            stored = self.get(kind, uid)
            document = None if stored is None else stored.document
            if condition(document):
                return document
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.setdefault((kind, uid), set()).add(waiter)
            try:
                await waiter
            finally:
                waiting = self._waiters.get((kind, uid))
                if waiting is not None:
                    waiting.discard(waiter)
                    if not waiting:
                        del self._waiters[(kind, uid)]

    def watch(self) -> AsyncIterator[Commit]:
        # Registered at the call, not at the first step of the iteration: nothing falls in between.
        queue: asyncio.Queue[Commit] = asyncio.Queue()
        self._watchers.add(queue)
        return self._watched(queue)

    async def _watched(self, queue: asyncio.Queue[Commit]) -> AsyncIterator[Commit]:
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def events(self, after: int, limit: int) -> list[Event]:
        return [event for event in self._events if event.seq > after][:limit]

    def last_event(self) -> int:
        return self._last_event

    async def forget_events(self, keep: int) -> None:
        del self._events[: max(0, len(self._events) - keep)]

    async def close(self) -> None:
        return None


def _age(stored: Stored[Any]) -> tuple[datetime, str]:
    return stored.document.created, stored.document.uid


def _key(change: Change) -> tuple[type[Document], str]:
    if isinstance(change, Put):
        return type(change.document), change.document.uid
    return change.kind, change.uid
