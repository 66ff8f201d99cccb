"""The actor of this host's store: looks into disks and removes what nobody needs, one at a time."""

from __future__ import annotations

from typing import Any

from insula.kit.clock import utc_now
from insula.model.housekeeping import CheckSpec, PruneSpec, StoreCheck
from insula.model.operation import Operation
from insula.node.housekeeping.disks import check_disks
from insula.node.housekeeping.keeper import Housekeeper
from insula.node.housekeeping.pruning import Pruning, tell
from insula.node.journal import OperationJournal
from insula.node.one_step import OneStepActor
from insula.planner.housekeeping.wholeness import is_clean


class SystemActor(OneStepActor):
    """uid is 'system:store'. No undo: what nobody needed is not put back, and a look changes nothing."""

    async def work(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        if operation.verb == "system-check":
            return await self._check(CheckSpec.model_validate(operation.parameters), journal)
        spec = PruneSpec.model_validate(operation.parameters)
        outcome = await Pruning(self.rooms, spec.lost, journal.progress).run()
        for line in tell(outcome):
            journal.note(line)
        if operation.recovered:
            journal.note("A daemon ended in the middle of this; what it had removed is not counted.")
        return outcome

    async def _check(self, spec: CheckSpec, journal: OperationJournal) -> dict[str, Any]:
        found = await Housekeeper(self.rooms).judge()
        problems = list(found.problems)
        checked = None
        if spec.disks:
            checked, inside = await check_disks(self.rooms, found, journal.progress)
            problems += inside
        check = StoreCheck(
            looked=utc_now(), clean=is_clean(problems), problems=tuple(problems), disks_checked=checked
        )
        return check.model_dump(mode="json")
