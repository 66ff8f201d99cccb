"""What a reader saw of a home, and what the ledger remembers: the values that everything is judged from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from insula.model.machine import Machine
from insula.model.operation import Operation
from insula.model.snapshot import Snapshot
from insula.model.volume import Volume

Section = Literal[
    "machines",
    "volumes",
    "snapshots",
    "templates",
    "captures",
    "blobs",
    "claims",
    "names",
    "builds",
    "downloads",
    "home",
    "images",
]


@dataclass(frozen=True)
class SeenFile:
    """A file, or a directory, of an entry. name: relative to the entry, "" for the entry itself.

    inode: (device, number). allocated: bytes on the disk. links: how many names it has, anywhere. changed:
    its content, seconds since 1970. target: of a link, its name within the entry, None where it leads out.
    backing: the file that a qcow2 disk stands on: its name within the entry, or a whole path. resolves:
    whether that is there. damage: why a disk's header cannot be read.
    """

    name: str
    kind: Literal["file", "directory", "link", "other"]
    inode: tuple[int, int]
    allocated: int
    links: int = 1
    changed: float = 0.0
    target: str | None = None
    backing: str | None = None
    resolves: bool = True
    damage: str = ""

    @property
    def base(self) -> str:
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class SeenEntry:
    """Something that comes and goes as a whole. files: itself first.

    outside: its section is reached by a link, so that nothing of it may be removed here. memory: of the host
    that it holds. lives: a process lives in it. busy: somebody is at it who says so himself (a lock; the
    templates). whole: it is a template, or names a blob that is there. title: what people call it.
    holders: who has a claim on a blob, and the names that lead to it.
    """

    section: Section
    name: str
    path: str
    files: tuple[SeenFile, ...]
    outside: bool = False
    memory: int | None = None
    lives: bool = False
    busy: bool = False
    whole: bool = False
    title: str = ""
    holders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def is_directory(self) -> bool:
        return bool(self.files) and self.files[0].kind == "directory"

    @property
    def changed(self) -> float:
        return self.files[0].changed if self.files else 0.0

    def file(self, name: str) -> SeenFile | None:
        return next((file for file in self.files if file.name == name), None)


@dataclass(frozen=True)
class Stray:
    """A process whose directory, once in this home, is gone. keeper: it only keeps a frozen machine's memory.

    start_time: of /proc/PID/stat, so that nobody else is meant.
    """

    pid: int
    start_time: int
    directory: str
    keeper: bool
    memory: int = 0


@dataclass(frozen=True)
class Sight:
    """A home as it was from `began` (seconds since 1970) on."""

    began: float
    entries: tuple[SeenEntry, ...]
    strays: tuple[Stray, ...] = ()

    def of(self, section: Section) -> Iterator[SeenEntry]:
        return (entry for entry in self.entries if entry.section == section)

    def find(self, section: Section, name: str) -> SeenEntry | None:
        return self._index.get((section, name))

    @cached_property
    def _index(self) -> dict[tuple[Section, str], SeenEntry]:
        return {(entry.section, entry.name): entry for entry in self.entries}


@dataclass(frozen=True)
class Ledger:
    """What is remembered. busy: uid -> the unfinished operation that names it. gone: uid -> an ended one."""

    machines: Mapping[str, Machine] = field(default_factory=dict)
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    busy: Mapping[str, str] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        machines: Iterable[Machine],
        volumes: Iterable[Volume],
        snapshots: Iterable[Snapshot],
        operations: Iterable[Operation],
    ) -> Ledger:
        busy: dict[str, str] = {}
        gone: dict[str, str] = {}
        for operation in operations:
            said = f"{operation.verb} of '{operation.name}'"
            if operation.target_kind == "system":
                continue  # they name what they look at
            if not operation.state.is_final:
                busy.update(dict.fromkeys(_named_by(operation), said))
            else:
                gone.update(dict.fromkeys(_known_by(operation), f"{said}, {operation.state}"))
        known = {document.uid: document for document in snapshots}
        for snapshot in known.values():
            # What is done to a machine may take its snapshots with it.
            if snapshot.machine_uid in busy:
                busy.setdefault(snapshot.uid, busy[snapshot.machine_uid])
        return cls(
            {document.uid: document for document in machines},
            {document.uid: document for document in volumes},
            known,
            busy,
            gone,
        )

    @property
    def digests(self) -> dict[str, list[str]]:
        """Digest of an image -> names of this home's machines that need its files."""
        found: dict[str, list[str]] = {}
        for machine in self.machines.values():
            for digest in machine.digests:
                found.setdefault(digest, []).append(machine.name)
        return found


# Verbs that make documents besides their target's -> the parameter with their uids.
_MAKES = {"fork": "siblings", "snapshot-create": "snapshot", "snapshot-rm": "snapshot"}


def _known_by(operation: Operation) -> Iterator[str]:
    """uids whose documents this ledger had when the operation was asked for, and has no more if they are
    absent now: somebody wanted that. What is only named may have been lost long before: a volume that a
    machine is rid of, say."""
    yield operation.target
    yield from _strings(operation.parameters.get(_MAKES.get(operation.verb, ""), ()))


def _named_by(operation: Operation) -> Iterator[str]:
    yield operation.uid
    yield operation.target
    yield from _strings(operation.parameters)
    yield from _strings(operation.remembered)


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value: a verb that is yet to be written keeps what it names, too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)
