"""Memory of a suspended machine, on the host's disk, and whether its disks are still those it belongs to.

    suspend ──> suspended.state, suspended.json ──start──> loaded ──> resuming.json ──> vCPUs run ──> gone
                                                              └── the process dies before: as before

What a guest has in memory of its file systems must be of its disks as they are: a disk that was written since
would be destroyed by it. So the files of the disks are known by inode, size and time of change. Until the
vCPUs were told to run, a state can be used again; after that only if the disks show that they wrote nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insula.engine.protocol import LaunchPlan, Memory, Saved
from insula.kit.clock import boot_id
from insula.kit.errors import Conflict
from insula.kit.paths import RESUMING_DOCUMENT, SUSPENDED_DOCUMENT, SUSPENDED_STATE, write_atomically
from insula.model.snapshot import SavedMemory
from insula.node.disks import KeptDisk

_FILES = (SUSPENDED_DOCUMENT, RESUMING_DOCUMENT, SUSPENDED_STATE)


class StateDoesNotFit(Conflict):
    """Saved memory cannot be loaded into this machine as it and its host are now."""

    code = "state-does-not-fit"


@dataclass(frozen=True)
class Suspension:
    """What a directory says of its machine's suspended memory. disks: their files, as they were."""

    memory: SavedMemory
    disks: dict[str, list[int]]
    resumed_under: str = ""

    def launch_memory(self, directory: Path) -> Memory:
        return Memory(saved=Saved(directory / SUSPENDED_STATE, self.memory.machine_type, self.memory.forked))


def describe_state(path: Path, plan: LaunchPlan) -> SavedMemory:
    """What is to be known of a state that was saved of a machine launched by this plan."""
    return SavedMemory(
        size_bytes=path.stat().st_size,
        machine_type=plan.shape.get("machine type", ""),
        forked=plan.memory.forked,
        shape=dict(plan.shape),
    )


def require_fit(memory: SavedMemory, plan: LaunchPlan, hint: str) -> None:
    """Raises StateDoesNotFit when this plan's machine is another one than was saved."""
    differences = {
        what: (was, plan.shape.get(what)) for what, was in memory.shape.items() if plan.shape.get(what) != was
    }
    if differences:
        what, (was, now) = next(iter(differences.items()))
        raise StateDoesNotFit(
            f"The memory of machine '{plan.name}' was saved with {what} '{was}'; here it would be '{now}'.",
            hint=hint,
            evidence={"differences": {key: list(values) for key, values in differences.items()}},
        )


def keep(directory: Path, memory: SavedMemory, disks: list[KeptDisk]) -> None:
    """The state in the directory is whole."""
    _write(directory, SUSPENDED_DOCUMENT, Suspension(memory, _look_at(disks)))


def find(directory: Path, name: str, disks: list[KeptDisk]) -> Suspension | None:
    """The suspended memory of a machine; None: it has none, or had been let run with it already.

    name: of the machine. Raises StateDoesNotFit when its disks have changed since it was suspended.
    """
    if not (directory / SUSPENDED_STATE).exists():
        return None
    resuming, suspended = _read(directory / RESUMING_DOCUMENT), _read(directory / SUSPENDED_DOCUMENT)
    found = resuming or suspended
    if found is None:
        return None
    same = found.disks == _look_at(disks)
    if resuming is not None:
        return resuming if same and resuming.resumed_under == boot_id() else None
    if not same:
        raise StateDoesNotFit(
            f"Machine '{name}' cannot go on from its suspended memory: its disks have been written since, "
            "and what it remembers of them would destroy them.",
            hint=f"Boot it without that memory: insula start --cold {name}",
        )
    return found


def begin_resume(directory: Path, found: Suspension) -> None:
    """From now on the machine may have run with it."""
    _write(directory, RESUMING_DOCUMENT, Suspension(found.memory, found.disks, boot_id()))
    (directory / SUSPENDED_DOCUMENT).unlink(missing_ok=True)


def set_aside(directory: Path) -> None:
    """The memory belongs to other disks than the machine has now; `put_back` when it has them again."""
    for name in _FILES:
        if (directory / name).exists():
            (directory / name).rename(directory / f".aside-{name}")


def put_back(directory: Path) -> bool:
    """Take back `set_aside`; whether there was anything."""
    aside = [name for name in _FILES if (directory / f".aside-{name}").exists()]
    for name in aside:
        (directory / f".aside-{name}").rename(directory / name)
    return bool(aside)


def remove(directory: Path) -> None:
    """The suspended memory is no more. Idempotent."""
    for name in _FILES:
        (directory / name).unlink(missing_ok=True)
        (directory / f".aside-{name}").unlink(missing_ok=True)


def _look_at(disks: list[KeptDisk]) -> dict[str, list[int]]:
    found = {}
    for kept in disks:
        stat = (kept.directory / kept.stand.top).stat()
        found[kept.disk.id] = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
    return found


def _write(directory: Path, name: str, what: Suspension) -> None:
    fields: dict[str, Any] = {
        "memory": what.memory.model_dump(mode="json"),
        "disks": what.disks,
        "resumed_under": what.resumed_under,
    }
    write_atomically(directory / name, json.dumps(fields) + "\n")
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # the name must be there before the vCPUs run, also after a power failure
    finally:
        os.close(descriptor)


def _read(path: Path) -> Suspension | None:
    try:
        fields = json.loads(path.read_text())
        memory = SavedMemory.model_validate(fields["memory"])
        return Suspension(memory, fields["disks"], fields["resumed_under"])
    except (OSError, ValueError, KeyError):
        return None
