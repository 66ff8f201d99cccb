"""Removing what nobody needs, each thing judged once more in the moment before it goes.

Between the judgement and the rename that takes a directory out of sight nothing else of this daemon runs, so
no operation can begin to need it. What is renamed so is removed for good by the next one, should we die.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insula.engine.strays import end_keeper, find_strays
from insula.kit.errors import InsulaError
from insula.model.housekeeping import StoreProblem
from insula.model.operation import Progress
from insula.node.housekeeping.keeper import Housekeeper, Judgement
from insula.node.housekeeping.reading import CLOCK_GRAIN, DISK_SECTIONS, look_at, read_ledger, room_of
from insula.node.rooms import Rooms
from insula.planner.housekeeping.belonging import NEW_PATIENCE, REMOVING, Belonging, find_leftovers, judge
from insula.planner.housekeeping.sight import Section, SeenEntry
from insula.planner.housekeeping.usage import freed_by

_IMAGES = ("claims", "names", "builds", "downloads")


@dataclass
class Pruned:
    """What was done. removed, left: as the operation's outcome has them."""

    removed: list[dict[str, Any]] = field(default_factory=list)
    left: list[dict[str, str]] = field(default_factory=list)

    def gone(self, problem: StoreProblem, freed: int, memory: int = 0) -> None:
        said = {"code": problem.code, "what": problem.what, "path": problem.path}
        self.removed.append({**said, "freed_bytes": freed, "freed_memory_bytes": memory})

    def stays(self, problem: StoreProblem, why: str) -> None:
        self.left.append({"what": problem.what, "path": problem.path, "why": why})

    def outcome(self) -> dict[str, Any]:
        return {
            "removed": self.removed,
            "left": self.left,
            "freed_bytes": sum(one["freed_bytes"] for one in self.removed),
            "freed_memory_bytes": sum(one["freed_memory_bytes"] for one in self.removed),
        }


class Pruning:
    """One performance. lost: uids of what may go although the ledger has never heard of it."""

    def __init__(self, rooms: Rooms, lost: Collection[str], report: Callable[[Progress], None]) -> None:
        self._rooms = rooms
        self._lost = frozenset(lost)
        self._report = report
        self._pruned = Pruned()

    async def run(self) -> dict[str, Any]:
        """Remove everything that may go; the operation's outcome. Done again, it goes on."""
        found = await Housekeeper(self._rooms).judge()
        going = [problem for problem in found.problems if self._may_go(problem)]
        for number, problem in enumerate(going):
            message = f"Removing what nobody needs: {problem.what}"
            self._report(Progress(message=message, fraction=number / len(going)))
            try:
                await self._remove(problem, found)
            except FileNotFoundError:
                continue  # somebody else, a sweep say, was faster
            except InsulaError as error:
                self._pruned.stays(problem, error.message)
            except OSError as error:
                self._pruned.stays(problem, f"{error.strerror or error}.")
        await self._sweep_images([problem for problem in going if _section(problem, found) in _IMAGES])
        return self._pruned.outcome()

    def _may_go(self, problem: StoreProblem) -> bool:
        return problem.remedy == "prune" or (problem.remedy == "lost" and problem.uid in self._lost)

    async def _remove(self, problem: StoreProblem, found: Judgement) -> None:
        section = _section(problem, found)
        name = Path(problem.path).name
        if problem.pid is not None:
            await self._end_stray(problem)
        elif problem.code == "leftover":
            await self._remove_leftover(problem, found)
        elif section == "templates":
            if await self._rooms.templates.drop_dead(name):
                self._pruned.gone(problem, problem.size_bytes, problem.memory_bytes)
        elif section == "captures":
            if await self._rooms.captures.drop_unneeded(name):
                self._pruned.gone(problem, problem.size_bytes, problem.memory_bytes)
        elif section == "home":
            self._remove_file(problem)
        elif section in DISK_SECTIONS:
            await self._remove_directory(problem, section)

    # -- one thing each

    async def _remove_directory(self, problem: StoreProblem, section: Section) -> None:
        began = time.time() - CLOCK_GRAIN
        entry = await look_at(self._rooms, section, Path(problem.path).name)
        if entry is None:
            return  # it has gone by itself
        # From here to the rename nothing else of this daemon runs.
        belonging = judge(entry, read_ledger(self._rooms.store), began)
        if why := self._why_not(entry, belonging):
            self._pruned.stays(problem, why)
            return
        path = Path(entry.path)
        uid = entry.name.removeprefix(REMOVING)
        doomed = room_of(self._rooms.home, section) / f"{REMOVING}{uid}"
        if path != doomed:
            if doomed.exists():
                self._pruned.stays(problem, f"Something is at '{doomed}' already; it goes first.")
                return
            path.rename(doomed)
        await asyncio.to_thread(shutil.rmtree, doomed)
        self._pruned.gone(problem, freed_by(entry.files), entry.memory or 0)

    def _why_not(self, entry: SeenEntry, belonging: Belonging) -> str:
        if entry.lives:
            return "A process runs in it."
        if entry.outside:
            return "It is reached by a link, or something is mounted in it."
        if belonging.state == "orphan" or (belonging.state == "lost" and entry.name in self._lost):
            return ""
        return f"It is needed by now: {belonging.reason}."

    async def _remove_leftover(self, problem: StoreProblem, found: Judgement) -> None:
        owner = next(entry for entry, _ in found.judged if problem.path.startswith(f"{entry.path}/"))
        if owner.section == "home" or owner.section not in DISK_SECTIONS:
            self._remove_file(problem)
            return
        began = time.time() - CLOCK_GRAIN
        entry = await look_at(self._rooms, owner.section, owner.name)
        if entry is None:
            return
        ledger = read_ledger(self._rooms.store)
        for left in find_leftovers(entry, judge(entry, ledger, began), ledger, began):
            if f"{entry.path}/{left.file.name}" == problem.path:
                freed = freed_by([left.file])
                Path(problem.path).unlink()
                self._pruned.gone(problem, freed)
                return
        self._pruned.stays(problem, "It is needed by now.")

    def _remove_file(self, problem: StoreProblem) -> None:
        """A file that was about to be renamed, of nobody's who has operations."""
        path = Path(problem.path)
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISREG(status.st_mode) or status.st_mtime >= time.time() - NEW_PATIENCE:
            self._pruned.stays(problem, "Somebody has written it anew.")
            return
        path.unlink()
        self._pruned.gone(problem, problem.size_bytes)

    async def _end_stray(self, problem: StoreProblem) -> None:
        room = Path(problem.path).parent
        for stray in await asyncio.to_thread(find_strays, [room]):
            if stray.pid == problem.pid and end_keeper(stray):
                self._pruned.gone(problem, 0, stray.held_bytes)

    async def _sweep_images(self, problems: list[StoreProblem]) -> None:
        """What is dead beside the images, their own store knows best, under its lock."""
        if not problems:
            return
        why = "Somebody is at it by now, or it could not be removed."
        try:
            await self._rooms.images.sweep()
            await asyncio.to_thread(self._rooms.images.drop_dead_claims)
        except OSError as error:
            why = f"{error.strerror or error}."
        for problem in problems:
            if os.path.lexists(problem.path):
                self._pruned.stays(problem, why)
            else:
                self._pruned.gone(problem, problem.size_bytes)


def _section(problem: StoreProblem, found: Judgement) -> Section | None:
    """Of the entry that a problem is about; None when it is about another thing."""
    return next((entry.section for entry, _ in found.judged if entry.path == problem.path), None)


def tell(outcome: dict[str, Any]) -> list[str]:
    """What a person should hear of what was left."""
    return [f"{one['what']} was left: {one['why']} ({one['path']})" for one in outcome["left"]]


__all__ = ["Pruned", "Pruning", "tell"]
