"""rename: another name for the same machine; nothing but the document changes, so it is done at once."""

from __future__ import annotations

from insula.control.desk import NOTHING, Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.verbs.create import refuse_taken_name
from insula.kit.clock import utc_now
from insula.model.base import require_name
from insula.model.observation import Observation
from insula.model.operation import Operation, OperationState
from insula.store.protocol import Put


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, BadName, MachineNameTaken, StaleGeneration, BeingRemoved."""
    new = require_name(str(request.parameters.get("name", "")))
    if new != request.name:
        desk.find(request.project, request.name)
        refuse_taken_name(desk, request.project, new)
    intent = desk.machine_intent(request, name=new)
    now = utc_now()
    done = intent.operation.model_copy(
        update={"state": OperationState.DONE, "started": now, "finished": now, "outcome": {"name": new}}
    )
    changes = list(intent.changes)
    seen = desk.store.get(Observation, done.target)
    if seen is not None:
        # The name in an observation is a label, not an observation: it may be written here.
        changes.append(Put(seen.document.model_copy(update={"name": new}), seen.revision))
    event = desk.event("machine.renamed", done, **{"from": request.name, "to": new})
    return Intent(done, tuple(changes), (event,))


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    return NOTHING
