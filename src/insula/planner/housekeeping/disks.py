"""Which disks may be looked into: those that no running machine has open, each once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from insula.model.device.disk import Disk
from insula.planner.housekeeping.belonging import is_new
from insula.planner.housekeeping.sight import Ledger, SeenEntry, Sight
from insula.planner.housekeeping.usage import Judged

_WITH_DISKS = ("machines", "volumes", "snapshots", "templates", "captures")


@dataclass(frozen=True)
class DiskToCheck:
    """owner: in words. entry: whose file it is."""

    path: str
    owner: str
    allocated: int
    entry: SeenEntry


def choose_disks(sight: Sight, ledger: Ledger, judged: Judged) -> list[DiskToCheck]:
    """A frozen file that a running machine stands on is open, too, whoever else has a name of it."""
    open_entries = set(_open_entries(sight, ledger))
    seen = {
        file.inode
        for entry in sight.entries
        if (entry.section, entry.name) in open_entries
        for file in entry.files
    }
    chosen = []
    for entry, belonging in judged:
        if entry.section not in _WITH_DISKS or belonging.state not in ("needed", "cache"):
            continue
        for file in entry.files:
            is_disk = file.kind == "file" and file.name.endswith(".qcow2") and not is_new(file.base)
            if is_disk and not file.damage and file.inode not in seen:
                seen.add(file.inode)
                path = f"{entry.path}/{file.name}"
                chosen.append(DiskToCheck(path, belonging.owner, file.allocated, entry))
    return chosen


def _open_entries(sight: Sight, ledger: Ledger) -> Iterator[tuple[str, str]]:
    """(section, name) of what a running machine, or one that an operation is at, has open."""
    for entry in sight.of("machines"):
        if not entry.lives and entry.name not in ledger.busy:
            continue
        yield "machines", entry.name
        machine = ledger.machines.get(entry.name)
        for device in machine.devices if machine is not None else ():
            if isinstance(device, Disk) and device.volume is not None:
                yield "volumes", device.volume.uid
