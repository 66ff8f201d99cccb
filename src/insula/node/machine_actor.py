"""The actor of one machine: its only writer, its only listener."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from insula.engine.protocol import (
    AgentPortChanged,
    EngineEvent,
    Exited,
    GuestPanicked,
    GuestReset,
    Instance,
    Paused,
    Resumed,
    ShuttingDown,
    TrayMoved,
)
from insula.kit.clock import boot_id, utc_now
from insula.kit.errors import Bug, InsulaError
from insula.model.device.disk import Disk
from insula.model.machine import Machine
from insula.model.observation import ExitEvidence, Phase
from insula.model.operation import Operation
from insula.node.context import MachineContext, Seat
from insula.node.journal import OperationJournal
from insula.node.mailbox import Actor
from insula.node.media import notice_ejection
from insula.node.observer import Observer
from insula.node.procedure import MOST_RECOVERIES, DaemonDied, perform
from insula.node.procedures import find_steps
from insula.node.rooms import Rooms
from insula.planner.lifecycle import Cancelled, Situation, Verdict, judge
from insula.store.room import when_there_is_room

log = logging.getLogger(__name__)

# Seconds between questions for the guest's addresses until it has some: DHCP takes its time after the agent.
ADDRESS_INTERVALS = (0.5, 1, 2, 4, 8, 15, 30, 60, 60, 60)
AGENT_ANSWER = 10.0  # seconds for an agent whose port is open to answer
# The verbs in whose course a process ends because somebody wanted so.
_ENDING = ("stop", "restart", "kill", "rm", "suspend", "snapshot-restore")


class GivenUp(Bug):
    """The daemon died in an operation again and again, so the operation was undone."""

    code = "operation-given-up"


@dataclass(frozen=True)
class _Heard:
    """An event of a live machine; instance tells whose, so that a predecessor's last words do no harm."""

    instance: Instance
    event: EngineEvent


class MachineActor(Actor):
    """Performs the operations on one machine and records what becomes of it."""

    def __init__(self, uid: str, rooms: Rooms) -> None:
        super().__init__(uid, rooms.store)
        self.rooms = rooms
        self.observer = Observer(rooms.store, uid)
        self.seat = Seat()
        self._asked_to_end = False
        self._listening: asyncio.Task[None] | None = None
        self._asking_addresses: asyncio.Task[None] | None = None

    @property
    def machine(self) -> Machine | None:
        stored = self.store.get(Machine, self.uid)
        return None if stored is None else stored.document

    # -- operations

    def judge(self, operation: Operation, busy: str | None) -> Verdict:
        situation = Situation(
            name=operation.name,
            phase=self.observer.phase,
            busy=busy,
            force=bool(operation.parameters.get("force")),
        )
        return judge(operation.verb, situation)

    async def perform_operation(self, operation: Operation, journal: OperationJournal) -> dict[str, Any]:
        context = MachineContext(
            rooms=self.rooms,
            operation=operation,
            observer=self.observer,
            journal=journal,
            seat=self.seat,
            attach=self.attach,
        )
        self._asked_to_end = operation.verb in _ENDING
        backwards: InsulaError | None = None
        if operation.recovered and operation.cancel_requested:
            backwards = Cancelled(f"The operation '{operation.verb}' was cancelled and undone.")
        elif operation.recovered > MOST_RECOVERIES:
            backwards = GivenUp(
                f"The daemon ended {operation.recovered} times while it was at '{operation.verb}' of "
                f"'{operation.name}'; the operation was undone.",
                hint="Please report it with the daemon's log (insula daemon status names it).",
            )
        steps = find_steps(operation.verb, context)
        try:
            await perform(operation.verb, steps, context, journal, self.rooms.faults, backwards=backwards)
        except DaemonDied:
            raise
        except BaseException:
            if not journal.abandoned:  # the next daemon goes on, and needs what we need
                await self._release_capture(context)
            raise
        finally:
            context.end_turn()
            self._asked_to_end = False
        await self._release_capture(context)
        return context.outcome

    async def _release_capture(self, context: MachineContext) -> None:
        if context.is_sibling:
            captured = context.journal.remembered["captured"]
            await self.rooms.captures.release(captured, context.operation.uid)

    # -- the live machine

    def attach(self, instance: Instance) -> None:
        """Listen to a live machine from now on."""
        self.seat.instance = instance
        self._listening = self.crew.start(self._listen(instance), f"listening to {self.uid}")
        self._look_at_drive()  # its guest may have opened the tray while nobody listened

    async def _listen(self, instance: Instance) -> None:
        async for event in instance.events():
            self.post(_Heard(instance, event))

    async def receive(self, message: Any) -> None:
        assert isinstance(message, _Heard)
        if message.instance is not self.seat.instance:
            return
        event = message.event
        if isinstance(event, Resumed):
            if self.observer.phase in (Phase.STARTING, Phase.PAUSED) and not self.seat.waking:
                await self.observer.see(phase=Phase.RUNNING, reason="")
        elif isinstance(event, Paused) and not self.seat.capturing:
            if self.observer.phase in (Phase.RUNNING, Phase.PAUSED):
                await self.observer.see(phase=Phase.PAUSED, reason=self._named(event.reason))
        elif isinstance(event, ShuttingDown):
            await self.observer.see(phase=Phase.STOPPING)
        elif isinstance(event, GuestReset):
            await self.observer.tell("machine.reset", by_guest=event.by_guest)
        elif isinstance(event, GuestPanicked):
            await self.observer.see(reason="The guest's kernel panicked.")
            await self.observer.tell("machine.panicked")
        elif isinstance(event, AgentPortChanged):
            await self._agent_changed(event.open)
        elif isinstance(event, TrayMoved):
            self._look_at_drive()
        elif isinstance(event, Exited):
            await self._ended(event.evidence)

    def _named(self, reason: str) -> str:
        """A reason with the names of volumes in place of the ids that the engine knows their disks by."""
        for device in self.machine.devices if self.machine is not None else ():
            if isinstance(device, Disk) and device.volume is not None:
                reason = reason.replace(f"disk '{device.id}'", f"volume '{device.volume.name}'")
        return reason

    def _look_at_drive(self) -> None:
        instance, machine = self.seat.instance, self.machine
        if instance is not None and machine is not None and machine.cdrom is not None:
            looking = notice_ejection(self.store, self.observer, instance, self.uid)
            self.crew.start(looking, f"the drive of {self.uid}")

    async def _agent_changed(self, is_open: bool) -> None:
        await self.observer.see(agent="connected" if is_open else "waiting")
        machine = self.machine
        has_nic = machine is not None and any(device.device == "nic" for device in machine.devices)
        if is_open and has_nic and (self._asking_addresses is None or self._asking_addresses.done()):
            self._asking_addresses = self.crew.start(self._ask_addresses(), f"addresses of {self.uid}")

    async def _ask_addresses(self) -> None:
        for interval in ADDRESS_INTERVALS:
            if self.seat.instance is None:
                return
            try:
                agent = await self.seat.instance.agent(AGENT_ANSWER)
                info = await agent.info()
                addresses = tuple(
                    address.partition("/")[0]
                    for interface in info.addresses
                    for address in interface.addresses
                    if not address.startswith(("127.", "::1", "fe80:", "169.254."))
                )
            except (InsulaError, TimeoutError) as error:
                log.info("no addresses of %s yet: %s", self.uid, error)
                addresses = ()
            if addresses:
                await self.observer.see(addresses=addresses)
                return
            await asyncio.sleep(interval)

    async def _ended(self, evidence: ExitEvidence) -> None:
        self.seat.instance = None
        if self._asking_addresses is not None:
            self._asking_addresses.cancel()
        self.rooms.engine.forget(self.rooms.home.machine(self.uid))
        asked = self._asked_to_end
        await when_there_is_room(lambda: self.observer.see_end(evidence, asked=asked))

    # -- coming back

    async def adopt(self) -> str | None:
        """Find the live machine of an earlier daemon; what was found, in words, when there was something."""
        seen = self.observer.seen
        machine = self.machine
        if machine is None:
            return None
        directory = self.rooms.home.machine(self.uid)
        instance = await self.rooms.engine.adopt(directory)
        if instance is not None:
            self.attach(instance)
            return await self._seat_adopted(instance)
        if seen is None or not seen.phase.has_process:
            return None
        busy = [
            stored.document.verb
            for stored in self.store.all(Operation)
            if stored.document.target == self.uid and not stored.document.state.is_final
        ]
        evidence = self.rooms.engine.read_exit(directory)
        if evidence is None and busy and seen.phase is Phase.STARTING:
            return None  # never launched: the operation that was starting it goes on
        if evidence is None:
            evidence = self._lost(seen.process.boot_id if seen.process else None)
        self.rooms.engine.forget(directory)
        asked = any(verb in _ENDING for verb in busy)
        await self.observer.see_end(evidence, asked=asked)
        return f"Machine '{machine.name}' ended while no daemon ran: {self.observer.phase}."

    async def _seat_adopted(self, instance: Instance) -> str:
        state = await instance.state()
        seen = self.observer.seen
        phase = seen.phase if seen is not None else Phase.RUNNING
        if phase is Phase.STARTING:
            pass  # until its operation, which goes on, says more; one that wakes up stands like a paused one
        elif state == "paused":
            phase = Phase.PAUSED
            self.seat.stale = instance.plan.memory.saved is not None  # told once too often is no harm
        elif state == "running" and phase is not Phase.STOPPING:
            phase = Phase.RUNNING
        elif state == "prepared":
            phase = Phase.STARTING
        await self.observer.see(
            phase=phase,
            process=instance.identity,
            accelerator=instance.plan.accelerator,
            engine_version=instance.plan.engine_version,
        )
        name = self.machine.name if self.machine else self.uid
        return f"Machine '{name}' was adopted: {phase}, pid {instance.identity.pid}."

    def _lost(self, started_under: str | None) -> ExitEvidence:
        """A process that left no trace: the host went down under it, or somebody removed its files."""
        rebooted = started_under is not None and started_under != boot_id()
        return ExitEvidence(at=utc_now(), cause="host-reboot" if rebooted else "crash", exit_status=None)

    async def close(self) -> None:
        await super().close()
        if self.seat.instance is not None:
            await self.seat.instance.detach()
