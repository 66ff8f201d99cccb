"""Machines as they were when they were forked, kept until their forks have what they need.

    make ── disks frozen, memory captured ──> capture.json ──> forks are made ──> release by the last ──> gone
      └── killed, failed: swept

DIRECTORY/UID/ is named by the fork operation. It has a link to each frozen file of the machine's disks, and,
of one that ran, the state of its devices; its memory is kept by a process (`engine.capture`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from insula.engine.protocol import DiskSwitch, Engine, Instance, LaunchPlan
from insula.kit.paths import CAPTURE_DOCUMENT, Home, write_atomically
from insula.model.machine import Machine
from insula.model.operation import Operation
from insula.node.disks import disks_of, kept_disks
from insula.storage import chain, late_boot
from insula.store.protocol import Store


class Captures:
    """See the module. A capture is needed as long as an operation that names it has not ended."""

    def __init__(self, home: Home, engine: Engine, store: Store) -> None:
        self._home = home
        self._root = home.captures
        self._engine = engine
        self._store = store
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._served: set[str] = set()  # operations that need theirs no more, whatever their record says yet

    def directory(self, uid: str) -> Path:
        return self._root / uid

    def is_whole(self, uid: str) -> bool:
        """Whether it was made to the end, and its memory is still there if it has any."""
        try:
            live = self._read(uid)["live"]
        except (OSError, ValueError, KeyError):
            return False
        return not live or self._engine.frozen_bytes(self.directory(uid)) is not None

    def layers(self, uid: str) -> dict[str, str]:
        """The frozen layers of a whole capture's disks: id of the disk -> file in its directory."""
        return dict(self._read(uid)["layers"])

    def _read(self, uid: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory(uid) / CAPTURE_DOCUMENT).read_text())
        return found

    async def make(
        self,
        uid: str,
        machine: Machine,
        home: Path,
        instance: Instance | None,
        vessel: LaunchPlan,
        forks: int,
    ) -> float:
        """Freeze the machine's disks and, of a live one, capture its memory at the same moment.

        home: the machine's directory. forks: how many will be made of it. Returns the seconds in which its
        vCPUs stood. What was begun before is begun anew. Raises what the engine and the disks do; the machine
        goes on then.
        """
        await self.remove(uid)
        directory = self.directory(uid)
        directory.mkdir(parents=True, mode=0o700)
        switches, layers = [], {}
        for kept in kept_disks(self._home, machine):
            tag, place = chain.new_tag(), directory / kept.place
            frozen = await chain.freeze(kept.directory, kept.file, tag)
            place.mkdir(mode=0o700, exist_ok=True)
            chain.link(kept.directory, place, frozen)
            layers[kept.disk.id] = str(kept.place / frozen)
            switches.append(DiskSwitch(kept.disk.id, kept.switch_file(chain.layer_name(kept.file, tag))))
        for disk in disks_of(machine, "seed"):
            os.link(home / disk.file, directory / disk.file)
        stood = 0.0
        if instance is not None:
            late_boot.link(home, directory)
            stood = await self._engine.capture(instance, vessel, switches, forks=forks)
        document = json.dumps({"machine": machine.uid, "layers": layers, "live": instance is not None})
        write_atomically(directory / CAPTURE_DOCUMENT, document + "\n")
        return stood

    async def remove(self, uid: str) -> None:
        """Let go of a capture; forks of it live on. Idempotent."""
        directory = self.directory(uid)
        # A sweep, a prune and the last of its forks may want it gone at the same time.
        turn = self._turns.setdefault(uid, asyncio.Lock())
        async with turn:
            if not directory.exists():
                return
            (directory / CAPTURE_DOCUMENT).unlink(missing_ok=True)
            await self._engine.discard(directory)
            await asyncio.to_thread(shutil.rmtree, directory)

    async def release(self, uid: str, ended: str) -> None:
        """The operation `ended` needs it no more; once nobody does, it goes."""
        self._served.add(ended)
        if not self._is_needed(uid):
            await self.remove(uid)

    async def sweep(self) -> None:
        """Remove what a daemon that died has left and nobody needs."""
        if self._root.is_dir():
            for path in sorted(self._root.iterdir()):
                await self.drop_unneeded(path.name)

    async def drop_unneeded(self, uid: str) -> bool:
        """Remove a capture unless an operation needs it; whether it was removed."""
        if self._is_needed(uid) or not self.directory(uid).exists():
            return False
        await self.remove(uid)
        return True

    def _is_needed(self, uid: str) -> bool:
        operations = (stored.document for stored in self._store.all(Operation))
        return any(
            uid in (operation.uid, operation.remembered.get("captured"))
            for operation in operations
            if not operation.state.is_final and operation.uid not in self._served
        )
