"""What control and the server ask of a home at once: implements `control.housekeeping.Housekeeping`."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

from insula.kit.clock import utc_now
from insula.model.housekeeping import StoreCheck, StoreProblem, Usage
from insula.node.housekeeping.reading import look
from insula.node.rooms import Rooms
from insula.planner.housekeeping.belonging import judge_all
from insula.planner.housekeeping.sight import Ledger, Sight
from insula.planner.housekeeping.usage import Judged, sum_up
from insula.planner.housekeeping.wholeness import find_problems, is_clean
from insula.storage.layers import read_layer


@dataclass(frozen=True)
class Judgement:
    """A look, and what came of it."""

    sight: Sight
    ledger: Ledger
    judged: Judged
    problems: tuple[StoreProblem, ...]


class Housekeeper:
    """See the module. Cheap to make; holds nothing."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def usage(self) -> Usage:
        sight, ledger = await look(self._rooms)
        home = self._rooms.home
        free = shutil.disk_usage(home.root).free
        # In a thread, as all that follows a look: it is pure, and a large home must keep nobody waiting.
        judged = await asyncio.to_thread(judge_all, sight, ledger)
        return await asyncio.to_thread(
            sum_up, sight, ledger, judged, utc_now(), str(home.root), str(home.images), free
        )

    async def check(self) -> StoreCheck:
        found = await self.judge()
        return StoreCheck(looked=utc_now(), clean=is_clean(list(found.problems)), problems=found.problems)

    async def judge(self) -> Judgement:
        """Look, and judge; what only seemed to miss, since it came meanwhile, is left out."""
        sight, ledger = await look(self._rooms)
        root, images = str(self._rooms.home.root), str(self._rooms.home.images)

        def conclude() -> Judgement:
            judged = judge_all(sight, ledger)
            found = find_problems(sight, ledger, judged, root, images)
            return Judgement(sight, ledger, judged, tuple(filter(_still_holds, found)))

        return await asyncio.to_thread(conclude)


def _still_holds(problem: StoreProblem) -> bool:
    """The directories were read before the ledger: what was made in between is in the latter only."""
    path = Path(problem.path)
    if problem.code in ("missing-directory", "missing-disk"):
        return not path.exists()
    if problem.code == "missing-image":
        return not (path / "manifest.json").exists()
    if problem.code == "missing-backing":
        try:
            backing = read_layer(path).backing
        except OSError:
            return False
        return backing is not None and not (path.parent / backing).exists()
    return True
