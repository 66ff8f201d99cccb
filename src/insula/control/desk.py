"""What every verb works with: finding machines, judging, and writing an intent down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from insula.control.port import NodePort
from insula.control.request import MachineState, VerbRequest
from insula.kit.clock import utc_now
from insula.kit.errors import Conflict, NotFound, nearest
from insula.model.base import new_uid
from insula.model.event import Event
from insula.model.machine import Machine
from insula.model.observation import Observation, Phase
from insula.model.operation import Operation, OperationState
from insula.planner.lifecycle import Situation, judge
from insula.store.protocol import Change, Put, Store, Stored


class MachineNotFound(NotFound):
    """No machine of this name in the project."""

    code = "machine-not-found"


class StaleGeneration(Conflict):
    """The machine has changed since it was read."""

    code = "stale-generation"
    http_status = 412


@dataclass(frozen=True)
class Intent:
    """What one commit writes when a verb is accepted: the operation, changed documents, events."""

    operation: Operation
    changes: tuple[Change, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Conclusion:
    """What one commit writes when an operation has been performed, besides the operation.

    outcome: what it is to say instead of what the node said. nudges: whom it gives something to do.
    """

    changes: tuple[Change, ...] = ()
    events: tuple[Event, ...] = ()
    outcome: dict[str, Any] | None = None
    nudges: tuple[str, ...] = ()


NOTHING = Conclusion()


class Desk:
    """Store and node, and what verbs share."""

    def __init__(self, store: Store, node: NodePort) -> None:
        self.store = store
        self.node = node

    def find(self, project: str, name: str) -> Stored[Machine]:
        """Raises MachineNotFound with the nearest name."""
        stored = self.store.find(Machine, project, name)
        if stored is not None:
            return stored
        names = [s.document.name for s in self.store.all(Machine) if s.document.project == project]
        guess = nearest(name, names)
        if guess is not None:
            hint = f"Did you mean '{guess}'?"
        elif names:
            hint = "See which there are: insula ls --all"
        else:
            hint = "There are none yet; make one: insula run micro"
        raise MachineNotFound(f"There is no machine '{name}'.", hint=hint)

    def state(self, machine: Machine) -> MachineState:
        """The machine and what is seen of it; one that no node has seen yet is `created`."""
        stored = self.store.get(Observation, machine.uid)
        if stored is not None:
            return MachineState(machine, stored.document)
        blank = Observation(
            uid=machine.uid,
            project=machine.project,
            name=machine.name,
            created=machine.created,
            generation=machine.generation,
            phase=Phase.CREATED,
            since=machine.created,
        )
        return MachineState(machine, blank)

    def busy_with(self, target: str) -> str | None:
        """The verb that is being performed on the target, or will be next."""
        waiting = self.unfinished(target)
        running = [o for o in waiting if o.state is OperationState.RUNNING]
        first = (running or waiting)[:1]
        return first[0].verb if first else None

    def unfinished(self, target: str) -> list[Operation]:
        """Operations on the target that have not ended, oldest first."""
        operations = (stored.document for stored in self.store.all(Operation))
        return [o for o in operations if o.target == target and not o.state.is_final]

    def is_unborn(self, uid: str) -> bool:
        """Whether a fork that has not ended is still making this machine."""
        return any(
            stored.document.verb == "fork" and uid in stored.document.parameters["siblings"]
            for stored in self.store.all(Operation)
            if not stored.document.state.is_final
        )

    def machine_intent(self, request: VerbRequest, *events: Event, **wanted: Any) -> Intent:
        """The intent of a verb on an existing machine: judged, with `wanted` fields in its next generation.

        Raises MachineNotFound, StaleGeneration and what the judge says.
        """
        stored = self.find(request.project, request.name)
        machine = stored.document
        if request.if_generation is not None and request.if_generation != machine.generation:
            raise StaleGeneration(
                f"Machine '{machine.name}' is at generation {machine.generation}, not "
                f"{request.if_generation}.",
                hint="Read it again and decide anew.",
            )
        situation = Situation(
            name=machine.name,
            phase=self.state(machine).observation.phase,
            busy=self.busy_with(machine.uid),
            force=bool(request.parameters.get("force")),
            unborn=self.is_unborn(machine.uid),
        )
        verdict = judge(request.verb, situation)
        if verdict.error is not None:
            raise verdict.error
        changes: tuple[Change, ...] = ()
        if any(getattr(machine, field) != value for field, value in wanted.items()):
            machine = machine.next_generation(**wanted)
            changes = (Put(machine, stored.revision),)
        return Intent(self.operation(request, machine), changes, events)

    def operation(self, request: VerbRequest, machine: Machine, **fields: Any) -> Operation:
        """A new operation on a machine."""
        return Operation(
            uid=new_uid(),
            project=machine.project,
            name=machine.name,
            generation=machine.generation,
            created=utc_now(),
            verb=request.verb,
            target_kind="machine",
            target=machine.uid,
            parameters=request.parameters,
            **fields,
        )

    def image_operation(self, verb: str, name: str, parameters: dict[str, Any] | None = None) -> Operation:
        """A new operation on an image; '*' is all of them."""
        return Operation(
            uid=new_uid(),
            name=name,
            created=utc_now(),
            verb=verb,
            target_kind="image",
            target=f"image:{name}",
            parameters=parameters or {},
        )

    def template_operation(self, verb: str, name: str, **parameters: Any) -> Operation:
        """A new operation on templates."""
        return Operation(
            uid=new_uid(),
            name=name,
            created=utc_now(),
            verb=verb,
            target_kind="template",
            target="template:all",
            parameters=parameters,
        )

    def change_machine(self, uid: str, **wanted: Any) -> Sequence[Change]:
        """The change that gives a machine these fields in its next generation; none when it has them."""
        stored = self.store.get(Machine, uid)
        if stored is None or all(getattr(stored.document, f) == value for f, value in wanted.items()):
            return ()
        return (Put(stored.document.next_generation(**wanted), stored.revision),)

    @staticmethod
    def event(kind: str, subject: Machine | Operation, **data: Any) -> Event:
        target = subject.target if isinstance(subject, Operation) else subject.uid
        return Event(
            at=utc_now(), kind=kind, project=subject.project, target=target, name=subject.name, data=data
        )
