"""Snapshots: a machine's disks, or disks and memory, as they were at one moment.

Snapshots of a machine are a tree: each has as parent the one that the machine stood on when it was made, and
the machine's document says which one it stands on now. What is in one stays as it is until it is removed; the
files are in a directory of its own (`Home.snapshot`), and are shared with whoever stands on them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from insula.model.base import Document, Name, Value
from insula.model.machine import Machine


class SnapshotSpec(Value):
    """A snapshot as a user asks for it.

    memory: with the memory of a machine that has any. quiesce: have the guest's file systems at rest at that
    moment, if its agent can; of disks only, for memory knows what its file systems are at.
    """

    name: Name | None = None
    memory: bool = False
    quiesce: bool = False
    description: str = Field(default="", max_length=1000)


class SavedMemory(Value):
    """What is known of the file that holds a machine's memory and devices.

    size_bytes: of the file. machine_type: by its versioned name; forked: the machine had been a fork; shape:
    what must be the same where it is loaded (`engine.protocol`).
    """

    size_bytes: int
    machine_type: str
    forked: bool = False
    shape: dict[str, str] = Field(default_factory=dict)


class SnapshotDisk(Value):
    """A disk in a snapshot. id: of the machine's device. size_bytes: what the guest saw then.

    file: the frozen file, relative to the snapshot's directory. volume_uid: of a volume.
    """

    id: str
    file: str
    size_bytes: int
    volume_uid: str | None = None


class Snapshot(Document):
    """What was kept. machine_uid: whose. parent: uid of the snapshot it was made upon.

    phase: what the machine did then. memory: None where only disks were kept. machine: its document as it
    was, so that what is restored fits its devices. stood_seconds: how long its vCPUs stood for it. whole: the
    work is done; before, nobody can restore it.
    """

    kind: ClassVar[str] = "snapshot"

    machine_uid: str
    machine: Machine
    parent: str | None = None
    description: str = ""
    phase: Literal["running", "paused", "off"] = "off"
    memory: SavedMemory | None = None
    quiesced: bool = False
    disks: tuple[SnapshotDisk, ...] = ()
    taken: datetime | None = None
    stood_seconds: float = 0.0
    whole: bool = False

    def next_generation(self, **fields: Any) -> Snapshot:
        """The document after a change."""
        return self.changed(generation=self.generation + 1, **fields)
