"""The ledger: documents and events in one SQLite file (WAL), written by one thread.

A commit is on the disk before it returns (synchronous=FULL: the write-ahead log is flushed with each commit,
https://www.sqlite.org/pragma.html#pragma_synchronous). At opening everything is read into memory once,
documents of older versions are upgraded, and a damaged file is refused and kept.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from insula.model.base import Document
from insula.model.event import Event
from insula.store.memory import MemoryStore
from insula.store.protocol import Commit, LedgerCorrupt, LedgerFull, LedgerTooNew, Put, Stored

LEDGER_VERSION = 1  # of the tables below; each kind of document has a version of its own

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    kind TEXT NOT NULL, uid TEXT NOT NULL, revision INTEGER NOT NULL, version INTEGER NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (kind, uid)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, body TEXT NOT NULL);
"""


class SqliteStore(MemoryStore):
    """The durable store of one host; made by `open_ledger`."""

    def __init__(self, path: Path, kinds: Sequence[type[Document]]) -> None:
        super().__init__()
        self._path = path
        self._kinds = {kind.kind: kind for kind in kinds}
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._database: sqlite3.Connection

    def _open(self) -> None:
        try:
            self._connect()
            self._load()
        except (sqlite3.DatabaseError, ValidationError, json.JSONDecodeError) as error:
            if _is_full(error):
                raise _full(self._path) from error
            raise LedgerCorrupt(
                f"The ledger '{self._path}' is damaged; it was left as it is.",
                hint="Make a new one from the machines' own directories; the damaged file is kept beside it: "
                "insula daemon start --recover-ledger",
                evidence={"ledger": str(self._path), "cause": str(error)[:1000]},
            ) from error

    def _connect(self) -> None:
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._database = database
        self._path.chmod(0o600)
        (answer,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise sqlite3.DatabaseError(str(answer))
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.executescript(_TABLES)
        row = database.execute("SELECT value FROM meta WHERE key='version'").fetchone()
        if row is None:
            database.execute("INSERT INTO meta VALUES ('version', ?)", (str(LEDGER_VERSION),))
        elif int(row[0]) > LEDGER_VERSION:
            raise LedgerTooNew(
                f"The ledger '{self._path}' was written by a later version of Insula.",
                hint="Use that version, or a home of its own: INSULA_HOME=DIR.",
            )

    def _load(self) -> None:
        for name, uid, revision, version, body in self._database.execute(
            "SELECT kind, uid, revision, version, body FROM documents"
        ):
            kind = self._kinds.get(name)
            if kind is None or version > kind.stored_version:
                raise LedgerTooNew(
                    f"The ledger '{self._path}' holds a {name} of version {version}, which this Insula does "
                    "not know.",
                    hint="Use the version of Insula that wrote it, or a home of its own: INSULA_HOME=DIR.",
                )
            if version < kind.stored_version:
                document = kind.model_validate(kind.upgrade(json.loads(body), version))
            else:
                document = kind.model_validate_json(body)
            self._documents.setdefault(kind, {})[uid] = Stored(document, revision)
            if kind.names_are_unique:
                self._names[(kind, document.project, document.name)] = uid
            self._revision = max(self._revision, revision)
        for kind in tuple(self._documents):
            self._sort(kind)
        (last,) = self._database.execute("SELECT max(seq) FROM events").fetchone()
        row = self._database.execute("SELECT value FROM meta WHERE key='last-event'").fetchone()
        self._last_event = max(last or 0, int(row[0]) if row else 0)

    async def _persist(self, commit: Commit) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._write, commit)

    def _write(self, commit: Commit) -> None:
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            for change in commit.changes:
                if isinstance(change, Put):
                    document = change.document
                    database.execute(
                        "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?)",
                        (
                            document.kind,
                            document.uid,
                            commit.revision,
                            document.stored_version,
                            document.model_dump_json(),
                        ),
                    )
                else:
                    database.execute(
                        "DELETE FROM documents WHERE kind=? AND uid=?", (change.kind.kind, change.uid)
                    )
            for event in commit.events:
                database.execute("INSERT INTO events VALUES (?, ?)", (event.seq, event.model_dump_json()))
            database.execute("COMMIT")
        except BaseException as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            if _is_full(error):
                raise _full(self._path) from error
            raise

    def _keep_events(self, events: Sequence[Event]) -> None:
        """They are in the file; memory needs only the number of the last."""

    async def events(self, after: int, limit: int) -> list[Event]:
        def read() -> list[Event]:
            rows = self._database.execute(
                "SELECT body FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
            )
            return [Event.model_validate_json(body) for (body,) in rows]

        return await asyncio.get_running_loop().run_in_executor(self._writer, read)

    async def forget_events(self, keep: int) -> None:
        def forget() -> None:
            last = self._last_event
            self._database.execute("INSERT OR REPLACE INTO meta VALUES ('last-event', ?)", (str(last),))
            self._database.execute("DELETE FROM events WHERE seq <= ?", (last - keep,))

        await asyncio.get_running_loop().run_in_executor(self._writer, forget)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._database.close)
        self._writer.shutdown()


def _is_full(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_WRITE,
    )


def _full(path: Path) -> LedgerFull:
    return LedgerFull(
        f"There is no room for the ledger '{path}'; nothing was changed.",
        hint="Make room on that disk, then try again.",
    )


def open_ledger(path: Path, kinds: Sequence[type[Document]]) -> SqliteStore:
    """The ledger at `path`, made if absent. Raises LedgerCorrupt, LedgerTooNew, LedgerFull."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = SqliteStore(path, kinds)
    store._open()
    return store


def set_aside(path: Path, suffix: str) -> Path:
    """Move a ledger (with its -wal and -shm) out of the way, keeping it; where it is now."""
    kept = path.with_name(f"{path.name}.{suffix}")
    for tail in ("", "-wal", "-shm"):
        part = path.with_name(path.name + tail)
        if part.exists():
            part.rename(kept.with_name(kept.name + tail))
    return kept
