"""Snapshots at the desk: finding them, their tree, and what keeps one from being made or restored.

Their names are unique within a machine. Every intent that builds on that writes the machine's document at the
revision that was read, so that of two that exclude each other one is judged anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from insula.control.desk import Desk
from insula.control.volumes import volume_of
from insula.kit.errors import Conflict, NotFound, nearest
from insula.model.machine import Machine
from insula.model.observation import Phase
from insula.model.snapshot import Snapshot
from insula.store.protocol import Stored


class SnapshotNotFound(NotFound):
    """The machine has no snapshot of this name."""

    code = "snapshot-not-found"


class SnapshotNameTaken(Conflict):
    """Another snapshot of the machine has the name."""

    code = "snapshot-name-taken"


class SnapshotUnfinished(Conflict):
    """The snapshot is still being made."""

    code = "snapshot-unfinished"


class VolumeInSnapshot(Conflict):
    """A snapshot of a machine holds the volume's past."""

    code = "volume-in-snapshot"


def snapshots_of(desk: Desk, machine: str) -> list[Stored[Snapshot]]:
    """Of the machine of that uid, oldest first."""
    return [stored for stored in desk.store.all(Snapshot) if stored.document.machine_uid == machine]


def find_snapshot(desk: Desk, machine: Machine, name: str) -> Stored[Snapshot]:
    """Raises SnapshotNotFound with the nearest name."""
    found = snapshots_of(desk, machine.uid)
    for stored in found:
        if stored.document.name == name:
            return stored
    names = [stored.document.name for stored in found]
    guess = nearest(name, names)
    if guess is not None:
        hint = f"Did you mean '{guess}'?"
    elif names:
        hint = f"See which there are: insula snapshot ls {machine.name}"
    else:
        hint = f"It has none yet; make one: insula snapshot create {machine.name} {name}"
    raise SnapshotNotFound(f"Machine '{machine.name}' has no snapshot '{name}'.", hint=hint)


def find_whole(desk: Desk, machine: Machine, name: str) -> Stored[Snapshot]:
    """One that is not still being made. Raises SnapshotNotFound, SnapshotUnfinished."""
    stored = find_snapshot(desk, machine, name)
    if not stored.document.whole:
        raise SnapshotUnfinished(
            f"Snapshot '{name}' of machine '{machine.name}' is still being made.",
            hint="See how far it is: insula op ls",
        )
    return stored


def choose_name(desk: Desk, machine: Machine, wanted: str | None) -> str:
    """The name wanted, or the first free number. Raises SnapshotNameTaken."""
    taken = {stored.document.name for stored in snapshots_of(desk, machine.uid)}
    if wanted is None:
        return next(name for n in range(1, len(taken) + 2) if (name := f"snap{n}") not in taken)
    if wanted in taken:
        raise SnapshotNameTaken(
            f"Machine '{machine.name}' has a snapshot '{wanted}' already.",
            hint=f"Choose another name, or remove that one: insula snapshot rm {machine.name} {wanted}",
        )
    return wanted


def refuse_kept_volume(desk: Desk, uid: str, name: str) -> None:
    """Before a volume is removed. Raises VolumeInSnapshot."""
    for stored in desk.store.all(Snapshot):
        snapshot = stored.document
        if any(disk.volume_uid == uid for disk in snapshot.disks):
            machine = snapshot.machine.name
            raise VolumeInSnapshot(
                f"Cannot remove volume '{name}': snapshot '{snapshot.name}' of machine '{machine}' holds "
                "its past.",
                hint=f"Remove that first: insula snapshot rm {machine} {snapshot.name}",
            )


def draw_order(snapshots: Iterable[Snapshot]) -> list[tuple[int, Snapshot]]:
    """A machine's snapshots as a tree: (depth, snapshot), parents before their children, oldest first."""
    children: dict[str | None, list[Snapshot]] = {}
    known = {snapshot.uid for snapshot in snapshots}
    for snapshot in snapshots:
        parent = snapshot.parent if snapshot.parent in known else None
        children.setdefault(parent, []).append(snapshot)
    drawn: list[tuple[int, Snapshot]] = []
    waiting = [(0, snapshot) for snapshot in reversed(children.get(None, []))]
    while waiting:
        depth, snapshot = waiting.pop()
        drawn.append((depth, snapshot))
        waiting += [(depth + 1, child) for child in reversed(children.get(snapshot.uid, []))]
    return drawn


@dataclass(frozen=True)
class SnapshotState:
    """A snapshot as it is shown. machine, parent: names. current: the machine stands on it."""

    document: Snapshot
    machine: str
    parent: str | None
    depth: int
    current: bool
    exclusive_bytes: int


@dataclass(frozen=True)
class Losses:
    """What a restore would lose. written_bytes: by name of the disk or volume, at most."""

    since: datetime | None
    memory: bool
    written_bytes: dict[str, int]
    detached: tuple[str, ...]


class SnapshotReader:
    """Snapshots as the server shows them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def all(self, project: str, machine: str) -> list[SnapshotState]:
        """A machine's snapshots as a tree. Raises MachineNotFound."""
        document = self._desk.find(project, machine).document
        found = [stored.document for stored in snapshots_of(self._desk, document.uid)]
        names = {snapshot.uid: snapshot.name for snapshot in found}
        return [
            SnapshotState(
                document=snapshot,
                machine=document.name,
                parent=names.get(snapshot.parent or ""),
                depth=depth,
                current=document.snapshot == snapshot.uid,
                exclusive_bytes=self._desk.node.snapshots.exclusive_bytes(snapshot.uid),
            )
            for depth, snapshot in draw_order(found)
        ]

    def find(self, project: str, machine: str, name: str) -> SnapshotState:
        """Raises MachineNotFound, SnapshotNotFound."""
        found = find_snapshot(self._desk, self._desk.find(project, machine).document, name).document
        return next(state for state in self.all(project, machine) if state.document.uid == found.uid)

    def losses(self, project: str, machine: str, name: str) -> Losses:
        """What a restore would lose now. Raises MachineNotFound, SnapshotNotFound, SnapshotUnfinished."""
        document = self._desk.find(project, machine).document
        snapshot = find_whole(self._desk, document, name).document
        phase = self._desk.state(document).observation.phase
        volumes = {
            device.id: ref.name for device in document.devices if (ref := volume_of(device)) is not None
        }
        kept = {device.id for device in snapshot.machine.devices}
        written = self._desk.node.snapshots.written_since(document, snapshot)
        return Losses(
            since=snapshot.taken,
            memory=phase.has_process or phase is Phase.SUSPENDED,
            written_bytes={volumes.get(disk, disk): size for disk, size in written.items() if disk in kept},
            detached=tuple(name for disk, name in volumes.items() if disk not in kept),
        )
