"""What is true of every store. Subclass `StoreConformance` and give it a fixture `store`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from insula.model.base import Document
from insula.model.event import Event
from insula.store.protocol import Delete, NameTaken, Put, RevisionConflict, Store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Thing(Document):
    kind: ClassVar[str] = "thing"
    names_are_unique: ClassVar[bool] = True
    value: int = 0


class Note(Document):
    kind: ClassVar[str] = "note"


KINDS = [Thing, Note]


def thing(uid: str = "a", name: str = "one", **fields: Any) -> Thing:
    return Thing(uid=uid, name=name, created=NOW, **fields)


def event(kind: str = "happened") -> Event:
    return Event(at=NOW, kind=kind)


class StoreConformance:
    async def test_what_was_put_is_read_back(self, store: Store) -> None:
        await store.commit([Put(thing(value=7), expect=0)])
        stored = store.get(Thing, "a")
        assert stored is not None
        assert stored.document == thing(value=7)
        assert store.find(Thing, "default", "one") == stored
        assert store.all(Thing) == [stored]
        assert store.all(Note) == []

    async def test_absent_is_none(self, store: Store) -> None:
        assert store.get(Thing, "nobody") is None
        assert store.find(Thing, "default", "nobody") is None

    async def test_revisions_rise_and_are_compared(self, store: Store) -> None:
        first = await store.commit([Put(thing(), expect=0)])
        second = await store.commit([Put(thing(value=1), expect=first.revision)])
        assert second.revision > first.revision
        with pytest.raises(RevisionConflict):
            await store.commit([Put(thing(value=2), expect=first.revision)])
        with pytest.raises(RevisionConflict):
            await store.commit([Put(thing(value=2), expect=0)])
        with pytest.raises(RevisionConflict):
            await store.commit([Delete(Thing, "a", expect=first.revision)])
        stored = store.get(Thing, "a")
        assert stored is not None
        assert stored.document.value == 1

    async def test_a_commit_is_all_or_nothing(self, store: Store) -> None:
        await store.commit([Put(thing())])
        last = store.last_event()
        with pytest.raises(RevisionConflict):
            await store.commit([Put(thing("b", "two")), Put(thing(value=9), expect=0)], [event()])
        assert store.get(Thing, "b") is None
        assert store.find(Thing, "default", "two") is None
        assert store.last_event() == last

    async def test_names_are_unique_within_kind_and_project(self, store: Store) -> None:
        await store.commit([Put(thing())])
        with pytest.raises(NameTaken):
            await store.commit([Put(thing("b", "one"))])
        with pytest.raises(NameTaken):
            await store.commit([Put(thing("c", "new")), Put(thing("d", "new"))])
        await store.commit([Put(thing("b", "one", project="other"))])
        await store.commit([Put(Note(uid="n", name="one", created=NOW))])
        await store.commit([Put(Note(uid="m", name="one", created=NOW))])

    async def test_a_name_is_free_again_after_rename_and_removal(self, store: Store) -> None:
        await store.commit([Put(thing())])
        await store.commit([Put(thing("a", "renamed"))])
        assert store.find(Thing, "default", "one") is None
        await store.commit([Put(thing("b", "one"))])
        await store.commit([Delete(Thing, "b"), Put(thing("c", "one"))])
        found = store.find(Thing, "default", "one")
        assert found is not None
        assert found.document.uid == "c"

    async def test_deleting_what_is_absent_is_fine(self, store: Store) -> None:
        await store.commit([Delete(Thing, "nobody", expect=3)])

    async def test_all_are_told_oldest_first(self, store: Store) -> None:
        """Whatever came in between: changes, removals, one older than those before it, the same age."""
        ages = {"b": 2, "d": 4, "c": 3, "a": 1, "x": 3, "e": 5}

        def aged(uid: str, age: int, value: int = 0) -> Thing:
            return thing(uid=uid, name=uid, value=value).model_copy(
                update={"created": NOW + timedelta(seconds=age)}
            )

        def told() -> list[str]:
            return [stored.document.uid for stored in store.all(Thing)]

        for uid, age in ages.items():
            await store.commit([Put(aged(uid, age))])
        assert told() == ["a", "b", "c", "x", "d", "e"]
        await store.commit([Put(aged("b", 2, value=7)), Delete(Thing, "c")])
        assert told() == ["a", "b", "x", "d", "e"]
        assert [stored.document.value for stored in store.all(Thing)] == [0, 7, 0, 0, 0]
        await store.commit([Put(aged("a", 9))])
        assert told() == ["b", "x", "d", "e", "a"]
        await store.commit([Put(aged("a", 6)), Put(aged("c", 3))])
        assert told() == ["b", "c", "x", "d", "e", "a"]

    async def test_update_sees_the_newest_and_loses_nothing(self, store: Store) -> None:
        await store.commit([Put(thing())])

        async def add() -> None:
            await store.update(Thing, "a", lambda t: t.changed(value=t.value + 1))

        await asyncio.gather(*(add() for _ in range(20)))
        stored = store.get(Thing, "a")
        assert stored is not None
        assert stored.document.value == 20

    async def test_update_of_what_is_gone(self, store: Store) -> None:
        with pytest.raises(KeyError):
            await store.update(Thing, "a", lambda t: t)

    async def test_wait_returns_at_once_or_when_it_comes_true(self, store: Store) -> None:
        await store.commit([Put(thing(value=1))])
        found = await store.wait(Thing, "a", lambda t: t is not None and t.value == 1)
        assert found is not None
        waiting = asyncio.create_task(store.wait(Thing, "a", lambda t: t is not None and t.value == 3))
        gone = asyncio.create_task(store.wait(Thing, "a", lambda t: t is None))
        await store.commit([Put(thing(value=2))])
        assert not waiting.done()
        await store.commit([Put(thing(value=3))])
        assert (await asyncio.wait_for(waiting, 1)) == thing(value=3)
        await store.commit([Delete(Thing, "a")])
        assert await asyncio.wait_for(gone, 1) is None

    async def test_watch_tells_every_commit_in_order(self, store: Store) -> None:
        watch = store.watch()
        for number in range(5):
            await store.commit([Put(thing(value=number))], [event(f"n{number}")])
        seen = [await asyncio.wait_for(anext(watch), 1) for _ in range(5)]
        assert [commit.events[0].kind for commit in seen] == ["n0", "n1", "n2", "n3", "n4"]
        assert [commit.revision for commit in seen] == sorted(commit.revision for commit in seen)

    async def test_events_are_numbered_without_gaps(self, store: Store) -> None:
        await store.commit([], [event("a"), event("b")])
        await store.commit([], [event("c")])
        events = await store.events(0, 10)
        assert [e.kind for e in events] == ["a", "b", "c"]
        assert [e.seq for e in events] == [events[0].seq + n for n in range(3)]
        assert store.last_event() == events[-1].seq
        assert [e.kind for e in await store.events(events[0].seq, 1)] == ["b"]

    async def test_forgotten_events_keep_their_numbers(self, store: Store) -> None:
        for _ in range(5):
            await store.commit([], [event()])
        await store.forget_events(keep=2)
        assert [e.seq for e in await store.events(0, 10)] == [4, 5]
        await store.commit([], [event()])
        assert store.last_event() == 6

    async def test_a_cancelled_writer_tells_one_story(self, store: Store) -> None:
        writing = asyncio.create_task(store.commit([Put(thing(value=5))]))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await store.commit([Put(Note(uid="n", name="n", created=NOW))])
        revisions = [stored.revision for kind in KINDS for stored in store.all(kind)]  # type: ignore[type-abstract]
        assert len(revisions) == len(set(revisions))
