"""The stores against their conformance suite, and what only a file can suffer."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from insula.model.base import Document
from insula.store.memory import MemoryStore
from insula.store.protocol import LedgerCorrupt, LedgerFull, LedgerTooNew, Put, Store
from insula.store.sqlite import SqliteStore, open_ledger, set_aside
from tests.conformance.store import KINDS, NOW, Note, StoreConformance, Thing, event, thing


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


class TestSqliteStore(StoreConformance):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[SqliteStore]:
        store = open_ledger(tmp_path / "insula.db", KINDS)
        yield store
        await store.close()


async def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "insula.db"
    store = open_ledger(path, KINDS)
    await store.commit([Put(thing(value=4))], [event()])
    await store.commit([], [event()])
    await store.forget_events(keep=0)
    await store.close()
    again = open_ledger(path, KINDS)
    assert again.all(Thing) == store.all(Thing)
    assert again.find(Thing, "default", "one") is not None
    await again.commit([Put(Note(uid="n", name="n", created=NOW))], [event()])
    assert again.last_event() == 3
    await again.close()


async def test_a_file_is_read_oldest_first_whatever_the_names(tmp_path: Path) -> None:
    path = tmp_path / "insula.db"
    store = open_ledger(path, KINDS)
    for seconds, uid in enumerate("bac"):
        created = NOW + timedelta(seconds=seconds)
        await store.commit([Put(Note(uid=uid, name=uid, created=created))])
    await store.close()
    again = open_ledger(path, KINDS)
    assert [stored.document.uid for stored in again.all(Note)] == ["b", "a", "c"]
    await again.close()


async def test_a_commit_survives_a_process_that_never_closed(tmp_path: Path) -> None:
    store = open_ledger(tmp_path / "insula.db", KINDS)
    await store.commit([Put(thing(value=4))])
    again = open_ledger(tmp_path / "insula.db", KINDS)  # the first still open: as after kill -9
    assert again.all(Thing) == store.all(Thing)
    await again.close()
    await store.close()


@pytest.mark.parametrize("damage", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_ledger_is_refused_and_kept(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "insula.db"
    path.write_bytes(damage)
    with pytest.raises(LedgerCorrupt) as caught:
        open_ledger(path, KINDS)
    assert path.read_bytes() == damage
    assert "--recover-ledger" in caught.value.hint
    kept = set_aside(path, "corrupt")
    assert kept.read_bytes() == damage
    assert not path.exists()


async def test_a_damaged_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "insula.db"
    store = open_ledger(path, KINDS)
    await store.commit([Put(thing())])
    await store.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE documents SET body='{\"uid\": 3}'")
    with pytest.raises(LedgerCorrupt):
        open_ledger(path, KINDS)


async def test_older_documents_are_upgraded_and_newer_refused(tmp_path: Path) -> None:
    class NewThing(Document):
        kind: ClassVar[str] = "thing"
        stored_version: ClassVar[int] = 2
        amount: int

        @classmethod
        def upgrade(cls, stored: dict[str, Any], version: int) -> dict[str, Any]:
            assert version == 1
            stored["amount"] = stored.pop("value")
            return stored

    path = tmp_path / "insula.db"
    store = open_ledger(path, KINDS)
    await store.commit([Put(thing(value=12))])
    await store.close()
    newer = open_ledger(path, [NewThing])
    assert newer.all(NewThing)[0].document.amount == 12
    await newer.commit([Put(newer.all(NewThing)[0].document)])
    await newer.close()
    with pytest.raises(LedgerTooNew):
        open_ledger(path, KINDS)


async def test_no_room_changes_nothing_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "insula.db"
    store = open_ledger(path, KINDS)
    await store.commit([Put(thing())])
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count={pages}")
    huge = thing("b", "x" * 100_000)
    with pytest.raises(LedgerFull):
        await store.commit([Put(huge)])
    assert store.get(Thing, "b") is None
    store._database.execute("PRAGMA max_page_count=100000")
    await store.commit([Put(huge)])
    await store.close()
