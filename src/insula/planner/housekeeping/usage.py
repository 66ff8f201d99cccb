"""What the parts of a home take: sums over inodes, since frozen disks are shared by hard links."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from datetime import datetime
from typing import get_args

from insula.model.housekeeping import Bytes, KindUsage, Part, PartKind, PartState, Usage
from insula.planner.housekeeping.belonging import Belonging, find_leftovers
from insula.planner.housekeeping.sight import Ledger, SeenEntry, SeenFile, Sight

# What `prune --all` removes: orphans by system-prune, the others by the verbs on images and templates.
_RECLAIMABLE: tuple[PartState, ...] = ("orphan", "cache", "unused")

Judged = Sequence[tuple[SeenEntry, Belonging]]


def sum_up(
    sight: Sight, ledger: Ledger, judged: Judged, looked: datetime, home: str, images: str, free: int
) -> Usage:
    """The report of a look."""
    taken = take_each(judged)
    parts = tuple(
        Part(
            kind=belonging.kind,
            name=entry.name,
            owner=belonging.owner,
            state=belonging.state,
            reason=belonging.reason,
            path=entry.path,
            **_with_memory(taken[index], entry),
        )
        for index, (entry, belonging) in enumerate(judged)
    )
    kinds = tuple(
        usage for kind in get_args(PartKind) if (usage := _sum_kind(kind, sight, ledger, judged)) is not None
    )
    everything = _measure([file for entry, _ in judged for file in entry.files])
    stray = sum(stray.memory for stray in sight.strays)
    memory = sum(part.memory_bytes for part in parts) + stray
    return Usage(
        looked=looked,
        home=home,
        images=images,
        free_bytes=free,
        kinds=kinds,
        total=everything.changed(memory_bytes=memory),
        reclaimable_bytes=_reclaimable(judged, sight, ledger),
        reclaimable_memory_bytes=sum(kind.reclaimable_memory_bytes for kind in kinds) + stray,
        parts=parts,
    )


def take_each(judged: Judged) -> list[Bytes]:
    """What each entry takes; two entries share an inode when both have a name of it."""
    return [_measure(entry.files) for entry, _ in judged]


def _measure(files: Iterable[SeenFile]) -> Bytes:
    """What a set of files takes. Exclusive is an inode of which all names are among these files."""
    names: dict[Hashable, int] = defaultdict(int)
    inodes: dict[Hashable, SeenFile] = {}
    for file in files:
        names[file.inode] += 1
        inodes[file.inode] = file
    size = sum(file.allocated for file in inodes.values())
    exclusive = sum(
        file.allocated
        for inode, file in inodes.items()
        if file.kind == "directory" or names[inode] >= file.links
    )
    return Bytes(size_bytes=size, exclusive_bytes=exclusive, shared_bytes=size - exclusive)


def freed_by(files: Iterable[SeenFile]) -> int:
    """Bytes that are freed once all these names are gone."""
    return _measure(files).exclusive_bytes


def _with_memory(taken: Bytes, entry: SeenEntry) -> dict[str, int]:
    return {**dict(taken), "memory_bytes": entry.memory or 0}


def _sum_kind(kind: PartKind, sight: Sight, ledger: Ledger, judged: Judged) -> KindUsage | None:
    mine = [(entry, belonging) for entry, belonging in judged if belonging.kind == kind]
    if not mine:
        return None
    taken = _measure([file for entry, _ in mine for file in entry.files])
    going = [entry for entry, belonging in mine if belonging.state in _RECLAIMABLE]
    return KindUsage(
        kind=kind,
        count=sum(map(_counts(kind), (entry for entry, _ in mine))),
        **_with_all_memory(taken, [entry for entry, _ in mine]),
        reclaimable_bytes=_reclaimable(mine, sight, ledger),
        reclaimable_memory_bytes=sum(entry.memory or 0 for entry in going),
    )


def _counts(kind: PartKind) -> Callable[[SeenEntry], bool]:
    """Whether an entry counts as one: an image's names and claims are no images."""
    return (lambda entry: entry.section == "blobs") if kind == "image" else (lambda _: True)


def _with_all_memory(taken: Bytes, entries: Iterable[SeenEntry]) -> dict[str, int]:
    return {**dict(taken), "memory_bytes": sum(entry.memory or 0 for entry in entries)}


def _reclaimable(judged: Judged, sight: Sight, ledger: Ledger) -> int:
    going: list[SeenFile] = []
    for entry, belonging in judged:
        if belonging.state in _RECLAIMABLE and not entry.outside:
            going += entry.files
        else:
            going += [left.file for left in find_leftovers(entry, belonging, ledger, sight.began)]
    return freed_by(going)
