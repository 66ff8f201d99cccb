"""What the server calls: reading documents, submitting verbs, waiting for operations, watching events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import suppress

from insula.control.conclusion import Concluder
from insula.control.desk import Desk, MachineNotFound
from insula.control.port import NodePort
from insula.control.repair import Repair
from insula.control.request import MachineState, VerbRequest, VolumeState
from insula.control.snapshots import SnapshotReader
from insula.control.verbs import find_verb
from insula.control.volumes import attachments, find_volume
from insula.control.waiting_creates import WaitingCreates
from insula.kit.aio import Crew
from insula.kit.clock import utc_now
from insula.kit.errors import Conflict, NotFound
from insula.model.event import Event
from insula.model.machine import Machine
from insula.model.observation import Phase
from insula.model.operation import Operation, OperationState
from insula.model.volume import Volume
from insula.store.protocol import NameTaken, Put, RevisionConflict, Store

log = logging.getLogger(__name__)

EVENT_PAGE = 500  # events read from the ledger at a time


class OperationNotFound(NotFound):
    """No operation of this uid; finished ones are kept for a while only."""

    code = "operation-not-found"


class OperationFinished(Conflict):
    """The operation has ended, so it cannot be cancelled."""

    code = "operation-finished"


class Control:
    """The verbs, durable operations, repair."""

    def __init__(self, store: Store, node: NodePort) -> None:
        self.store = store
        self.node = node
        self._desk = Desk(store, node)
        self.snapshots = SnapshotReader(self._desk)
        self._crew = Crew(lambda name, error: log.error("%s failed", name, exc_info=error))
        self._concluder = Concluder(self._desk)
        self._creates = WaitingCreates(self._desk, self._crew)
        self._repair = Repair(self._desk, self.submit, self._crew)

    async def start(self) -> list[str]:
        """Conclude what an earlier daemon left, then watch; what was found, in words."""
        watch = self.store.watch()
        told = await self._concluder.conclude_all()
        self._creates.resume_all()
        self._crew.start(self._concluder.follow(watch), "concluding operations")
        self._repair.start()
        return told

    async def close(self) -> None:
        await self._crew.close()

    # -- verbs

    async def submit(self, request: VerbRequest) -> Operation:
        """Check everything, then record the operation and nudge the node; does not wait for its end."""
        verb = find_verb(request.verb)
        for attempt in range(5):
            intent = await verb.intend(self._desk, request)
            changes = [*intent.changes, Put(intent.operation, expect=0)]
            try:
                await self.store.commit(changes, intent.events)
                break
            except (RevisionConflict, NameTaken):
                # Somebody was faster between our look and our commit: look again, and judge anew.
                if attempt == 4:
                    raise
        operation = intent.operation
        if operation.parameters.get("awaiting"):
            self._creates.begin(operation)
        elif not operation.state.is_final:
            self.node.nudge(operation.target)
        return operation

    async def find_operation(self, uid: str) -> Operation:
        stored = self.store.get(Operation, uid)
        if stored is None:
            raise OperationNotFound(
                f"There is no operation '{uid}'.", hint="See which there are: insula op ls"
            )
        return stored.document

    async def list_operations(self, *, active: bool) -> list[Operation]:
        operations = [stored.document for stored in self.store.all(Operation)]
        return [operation for operation in operations if not active or not operation.state.is_final]

    async def wait_operation(self, uid: str, timeout: float | None) -> Operation:
        """The operation once it is final, or as it is when `timeout` seconds have passed."""
        found = await self.find_operation(uid)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.store.wait(Operation, uid, lambda o: o is None or o.state.is_final)
        stored = self.store.get(Operation, uid)
        return stored.document if stored is not None else found

    async def cancel_operation(self, uid: str) -> Operation:
        """Ask for the end of an operation; it undoes what it has done. Raises OperationFinished."""
        operation = await self.find_operation(uid)
        if operation.state.is_final or operation.state is OperationState.PERFORMED:
            raise OperationFinished(f"The operation '{operation.verb}' of '{operation.name}' has ended.")
        asked = await self.store.update(
            Operation, uid, lambda o: o.model_copy(update={"cancel_requested": True})
        )
        if not self._creates.cancel(asked):
            self.node.nudge(asked.target)
        return asked

    # -- machines

    async def find_machine(self, project: str, name: str) -> MachineState:
        """Raises MachineNotFound with the nearest name."""
        return self._desk.state(self._desk.find(project, name).document)

    async def list_machines(self, project: str | None) -> list[MachineState]:
        machines = (stored.document for stored in self.store.all(Machine))
        return [self._desk.state(machine) for machine in machines if project in (None, machine.project)]

    async def wait_machine(
        self, project: str, name: str, phases: Collection[Phase], timeout: float | None
    ) -> MachineState:
        """The machine once its phase is one of `phases`; as it is after `timeout` seconds.

        Raises MachineNotFound, also when the machine is removed meanwhile.
        """
        machine = self._desk.find(project, name).document
        watch = self.store.watch()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._phase(machine) not in phases:
                    await anext(watch)
        return self._desk.state(self._present(machine))

    def _present(self, machine: Machine) -> Machine:
        stored = self.store.get(Machine, machine.uid)
        if stored is None:
            raise MachineNotFound(f"Machine '{machine.name}' was removed.")
        return stored.document

    def _phase(self, machine: Machine) -> Phase:
        return self._desk.state(self._present(machine)).observation.phase

    # -- volumes

    async def find_volume(self, project: str, name: str) -> VolumeState:
        """Raises VolumeNotFound with the nearest name."""
        return self._volume_state(find_volume(self._desk, project, name).document)

    async def list_volumes(self, project: str | None) -> list[VolumeState]:
        volumes = (stored.document for stored in self.store.all(Volume))
        return [self._volume_state(volume) for volume in volumes if project in (None, volume.project)]

    def _volume_state(self, volume: Volume) -> VolumeState:
        users = attachments(self._desk, volume.uid)
        return VolumeState(volume, tuple((user.machine.name, user.disk.read_only) for user in users))

    # -- events

    async def watch_events(self, after: int | None, *, follow: bool) -> AsyncIterator[Event]:
        """Events with seq > after (None: only new ones when following, else all), in order."""
        watch = self.store.watch()  # before the backlog is read, so that nothing falls in between
        seen = after if after is not None else (self.store.last_event() if follow else 0)
        while page := await self.store.events(seen, EVENT_PAGE):
            for event in page:
                yield event
            seen = page[-1].seq
        while follow:
            for event in (await anext(watch)).events:
                if event.seq > seen:
                    seen = event.seq
                    yield event

    async def publish(self, kind: str, **data: object) -> None:
        """An event of the daemon itself."""
        await self.store.commit([], [Event(at=utc_now(), kind=kind, data=dict(data))])


__all__ = ["Control", "MachineState", "OperationFinished", "OperationNotFound", "VerbRequest", "VolumeState"]
