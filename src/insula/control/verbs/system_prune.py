"""system-prune: remove what nobody needs; with `lost`, also what is named and has no document."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.housekeeping import NothingLost, system_operation
from insula.control.request import VerbRequest
from insula.model.base import parse
from insula.model.housekeeping import PruneSpec
from insula.model.operation import Operation


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises BadDocument, NothingLost. What is removed without being named is decided when it is removed."""
    spec = parse(PruneSpec, request.parameters, "request")
    if spec.lost:
        found = await desk.node.housekeeping.check()
        lost = {problem.uid for problem in found.problems if problem.remedy == "lost"}
        for uid in spec.lost:
            if uid not in lost:
                raise NothingLost(
                    f"Nothing that has lost its document has the uid '{uid}', or a process runs in it.",
                    hint="See what there is: insula system check",
                )
    return Intent(system_operation("system-prune", spec.model_dump(mode="json")))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
