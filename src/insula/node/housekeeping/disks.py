"""Looking into every disk that nobody has open, with word of how far it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from insula.kit.units import format_size
from insula.model.housekeeping import StoreProblem
from insula.model.operation import Progress
from insula.node.housekeeping.keeper import Judgement
from insula.node.housekeeping.reading import look
from insula.node.rooms import Rooms
from insula.planner.housekeeping.belonging import judge_all
from insula.planner.housekeeping.disks import DiskToCheck, choose_disks
from insula.storage.disk_check import DiskState, check_disk


async def check_disks(
    rooms: Rooms, found: Judgement, report: Callable[[Progress], None]
) -> tuple[int, list[StoreProblem]]:
    """How many disks were looked into, and what is wrong with them."""
    disks = choose_disks(found.sight, found.ledger, found.judged)
    total = sum(disk.allocated for disk in disks) or 1
    done, problems = 0, []
    for number, disk in enumerate(disks, 1):
        message = f"Looking into disk {number} of {len(disks)}, of {disk.owner}"
        report(Progress(message=message, fraction=done / total))
        state = await check_disk(Path(disk.path))
        done += disk.allocated
        if not state.is_sound and await _is_still_closed(rooms, disk):
            problems.append(_problem(disk, state))
    return len(disks), problems


async def _is_still_closed(rooms: Rooms, disk: DiskToCheck) -> bool:
    """Of a disk that a machine has begun to write meanwhile, nothing true was seen."""
    sight, ledger = await look(rooms)
    return any(disk.path == other.path for other in choose_disks(sight, ledger, judge_all(sight, ledger)))


def _problem(disk: DiskToCheck, state: DiskState) -> StoreProblem:
    if state.corruptions:
        return StoreProblem(
            code="corrupt-disk",
            what=f"A disk of {disk.owner} is damaged inside",
            path=disk.path,
            why=f"{state.corruptions} of its clusters are not as they must be.",
            mend=f"Copy it first, then: qemu-img check -r all '{disk.path}'",
        )
    if state.leaks:
        lost = format_size(state.leaks * state.cluster_bytes)
        return StoreProblem(
            code="leaking-disk",
            what=f"A disk of {disk.owner} takes {lost} that it does not use",
            path=disk.path,
            why=f"{state.leaks} of its clusters are used by nothing; its data is whole.",
            mend=f"While no machine that uses it runs: qemu-img check -r leaks '{disk.path}'",
            size_bytes=state.leaks * state.cluster_bytes,
        )
    return StoreProblem(
        code="unchecked-disk",
        what=f"A disk of {disk.owner} could not be looked into",
        path=disk.path,
        why=f"{state.failure.rstrip('.')}.",
        mend=f"See what it says: qemu-img check '{disk.path}'",
    )
