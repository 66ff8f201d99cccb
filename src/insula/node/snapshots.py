"""Snapshots on this host: a directory each, with links to frozen layers of disks and, perhaps, memory.

    DIRECTORY/UID/snapshot.json     written last: without it the directory is nothing that anybody uses
                  disk0-TAG.qcow2   frozen layers, and all that they stand on, as links
                  vol-UID/...       those of a volume
                  machine.state     memory and devices

A snapshot stands by itself: it needs nothing of the machine's directory, and the machine nothing of it.
"""

from __future__ import annotations

from pathlib import Path

from insula.engine.protocol import OWN_MEMORY, Memory, Saved
from insula.kit.errors import Bug
from insula.kit.paths import SNAPSHOT_DOCUMENT, SNAPSHOT_STATE, Home, write_atomically
from insula.model.device.disk import Disk
from insula.model.machine import Machine
from insula.model.snapshot import Snapshot, SnapshotDisk
from insula.node import removal
from insula.node.disks import KeptDisk, kept_disks
from insula.storage import chain
from insula.storage.layers import layers_below
from insula.storage.merging import Stand
from insula.store.protocol import Store


class Snapshots:
    """See the module. The documents are control's; the files are made and removed here."""

    def __init__(self, home: Home, store: Store) -> None:
        self._home = home
        self._store = store

    def directory(self, uid: str) -> Path:
        return self._home.snapshot(uid)

    def kept_disks(self, machine: Machine) -> list[KeptDisk]:
        """See `disks.kept_disks`."""
        return kept_disks(self._home, machine)

    def stands(self, machine: Machine, kept: KeptDisk) -> list[Stand]:
        """Where a disk stands: now, and in every snapshot of it, whosesoever."""
        stands = [kept.stand]
        for stored in self._store.all(Snapshot):
            snapshot = stored.document
            for disk in snapshot.disks if snapshot.whole else ():
                if self._is_of(snapshot, disk, machine, kept.disk):
                    path = self.directory(snapshot.uid) / disk.file
                    stands.append(Stand(path.parent, path.name))
        return [stand for stand in stands if (stand.directory / stand.top).exists()]

    @staticmethod
    def _is_of(snapshot: Snapshot, kept: SnapshotDisk, machine: Machine, disk: Disk) -> bool:
        if disk.volume is not None:
            return kept.volume_uid == disk.volume.uid
        return snapshot.machine_uid == machine.uid and kept.volume_uid is None and kept.id == disk.id

    def of(self, machine: str) -> list[str]:
        """The uids of a machine's snapshots, also of those that are not whole."""
        found = (stored.document for stored in self._store.all(Snapshot))
        return [snapshot.uid for snapshot in found if snapshot.machine_uid == machine]

    def keep(self, snapshot: Snapshot) -> None:
        """Write down that the snapshot is whole."""
        write_atomically(
            self.directory(snapshot.uid) / SNAPSHOT_DOCUMENT, snapshot.model_dump_json(indent=1) + "\n"
        )

    def link(self, uid: str, kept: KeptDisk, layer: str) -> SnapshotDisk:
        """Give the snapshot a frozen layer of a disk, and all it stands on."""
        directory = self.directory(uid) / kept.place
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        chain.link(kept.directory, directory, layer)
        size = next(layers_below(directory, layer)).size_bytes
        volume = kept.disk.volume
        return SnapshotDisk(
            id=kept.disk.id,
            file=str(kept.place / layer),
            size_bytes=size,
            volume_uid=volume.uid if volume is not None else None,
        )

    def memory(self, snapshot: Snapshot) -> Memory:
        """What a machine that is restored wakes up with."""
        if snapshot.memory is None:
            return OWN_MEMORY
        state = self.directory(snapshot.uid) / SNAPSHOT_STATE
        return Memory(saved=Saved(state, snapshot.memory.machine_type, snapshot.memory.forked))

    def find(self, uid: str) -> Snapshot:
        stored = self._store.get(Snapshot, uid)
        if stored is None:
            raise Bug(f"The document of snapshot '{uid}' has vanished during an operation.")
        return stored.document

    def written_since(self, machine: Machine, snapshot: Snapshot) -> dict[str, int]:
        """Bytes that each disk of the machine has taken on the host since; id of the disk -> at most so many.

        Of a disk that stands on nothing of the snapshot, all of its layers but those they share.
        """
        told = {}
        for kept in self.kept_disks(machine):
            before = {
                layer.name
                for disk in snapshot.disks
                if self._is_of(snapshot, disk, machine, kept.disk)
                for layer in layers_below(
                    (self.directory(snapshot.uid) / disk.file).parent, Path(disk.file).name
                )
            }
            since = [
                layer.name
                for layer in layers_below(kept.directory, kept.stand.top)
                if layer.name not in before
            ]
            told[kept.disk.id] = sum((kept.directory / name).stat().st_blocks * 512 for name in since)
        return told

    def exclusive_bytes(self, uid: str) -> int:
        """What the removal of a snapshot would free at once: the files that nobody else has a link to."""
        found = (path.stat() for path in self.directory(uid).rglob("*") if path.is_file())
        return sum(stat.st_blocks * 512 for stat in found if stat.st_nlink == 1)

    async def remove(self, uid: str) -> None:
        """Its files are gone; what stands on its layers lives on. Idempotent."""
        await removal.remove_directory(self.directory(uid))
