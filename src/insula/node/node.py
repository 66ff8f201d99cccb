"""The node of this host: its actors, and the little that control asks at once (`control.port.NodePort`)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from insula.control.port import ExecRequest
from insula.engine.agent.protocol import ExecSession
from insula.engine.console import rotate_log
from insula.engine.protocol import Console, EngineFacts, Instance
from insula.kit.aio import Crew
from insula.kit.clock import utc_now
from insula.kit.errors import Conflict, InsulaError
from insula.model.host import Finding, HostFacts
from insula.model.image import MACHINE_TYPES
from insula.model.machine import Machine
from insula.model.observation import Observation, Phase
from insula.model.operation import Operation
from insula.model.volume import Volume
from insula.node.image_actor import ImageActor
from insula.node.images import Images
from insula.node.machine_actor import MachineActor
from insula.node.mailbox import Actor
from insula.node.rooms import Rooms
from insula.node.template_actor import TemplateActor
from insula.node.volume_actor import VolumeActor
from insula.planner.lifecycle import NotRunning

if TYPE_CHECKING:
    from insula.node.housekeeping.keeper import Housekeeper

log = logging.getLogger(__name__)

BOOT_PATIENCE = 300.0  # seconds after its start that a guest may need until its agent answers
PATIENCE = 30.0  # seconds for the agent of a guest that has long been up
HOUSEKEEPING_INTERVAL = 60.0  # seconds between rounds over serial logs
IMAGE_TARGET = "image:"
TEMPLATE_TARGET = "template:"
SYSTEM_TARGET = "system:"


class GuestPaused(Conflict):
    """The machine is paused, so nothing in it can answer."""

    code = "guest-paused"


class Node:
    """Implements `NodePort`. start() adopts what lives; close() leaves it alive."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        self.images = Images(rooms.home, rooms.images)
        self.templates = rooms.templates
        self.snapshots = rooms.snapshots
        self._actors: dict[str, Actor] = {}
        self._crew = Crew(lambda name, error: log.error("%s failed", name, exc_info=error))

    async def start(self) -> list[str]:
        """Adopt every machine and go on with every operation; what was found, in words."""
        self.rooms.home.machines.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._crew.start(self.rooms.images.sweep(), "sweep of dead builds")
        self._crew.start(self.rooms.templates.sweep(), "sweep of dead templates")
        self._crew.start(self.rooms.captures.sweep(), "sweep of captures that are not needed")
        machines = [stored.document for stored in self.rooms.store.all(Machine)]
        found = await asyncio.gather(*(self._adopt(machine) for machine in machines))
        told = [line for line in found if line]
        for stored in self.rooms.store.all(Operation):
            operation = stored.document
            if not operation.state.is_final and operation.steps:
                done = [record.name for record in operation.steps if record.state == "done"]
                after = f"after '{done[-1]}'" if done else "from its beginning"
                told.append(f"Operation '{operation.verb}' of '{operation.name}' goes on {after}.")
        for actor in self._actors.values():
            actor.start()
        for stored in self.rooms.store.all(Operation):
            if not stored.document.state.is_final:
                self.nudge(stored.document.target)
        self._crew.start(self._keep_house(), "housekeeping")
        return told

    async def _adopt(self, machine: Machine) -> str | None:
        actor = MachineActor(machine.uid, self.rooms)
        self._actors[machine.uid] = actor
        try:
            return await actor.adopt()
        except InsulaError as error:
            log.warning("machine %s could not be adopted", machine.name, exc_info=error)
            return f"Machine '{machine.name}' could not be adopted: {error.message}"

    async def close(self) -> None:
        await self._crew.close()
        await asyncio.gather(*(actor.close() for actor in self._actors.values()))

    async def _keep_house(self) -> None:
        """Bound what a guest can write on the host's disk by talking on its serial port."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_INTERVAL)
            for stored in self.rooms.store.all(Observation):
                if stored.document.phase.has_process:
                    directory = self.rooms.home.machine(stored.document.uid)
                    await asyncio.to_thread(rotate_log, directory)

    # -- NodePort

    def nudge(self, uid: str) -> None:
        actor = self._actors.get(uid)
        if actor is None:
            if uid.startswith(IMAGE_TARGET):
                actor = ImageActor(uid, self.rooms)
            elif uid.startswith(TEMPLATE_TARGET):
                actor = TemplateActor(uid, self.rooms)
            elif uid.startswith(SYSTEM_TARGET):
                from insula.node.system_actor import SystemActor

                actor = SystemActor(uid, self.rooms)
            elif self.rooms.store.get(Machine, uid) is not None:
                actor = MachineActor(uid, self.rooms)
            elif self.rooms.store.get(Volume, uid) is not None:
                actor = VolumeActor(uid, self.rooms)
            else:
                return
            self._actors[uid] = actor
            actor.start()
        actor.nudge()

    def release(self, uid: str) -> None:
        """The target is gone for good: end its actor once it has nothing left to do."""
        actor = self._actors.pop(uid, None)
        if actor is not None:
            self._crew.start(actor.retire(), f"end of actor {uid}")

    async def host_facts(self) -> HostFacts:
        facts = await self.rooms.engine.facts()
        page = os.sysconf("SC_PAGE_SIZE")
        return HostFacts(
            cpus=os.cpu_count() or 1,
            memory_bytes=page * os.sysconf("SC_PHYS_PAGES"),
            memory_available_bytes=page * os.sysconf("SC_AVPHYS_PAGES"),
            accelerator=facts.auto,
            kvm_refused=facts.kvm_refused,
            engine_version=facts.version,
            uefi=tuple(kind for kind in MACHINE_TYPES if self.rooms.engine.find_uefi(kind) is not None),
        )

    async def examine_host(self) -> list[Finding]:
        from insula.node.doctor import examine, examine_templates

        facts: EngineFacts | InsulaError
        try:
            facts = await self.rooms.engine.facts()
        except InsulaError as error:
            facts = error
        held = [template.held_bytes for template in self.templates.all()]
        return [*await examine(self.rooms.home, facts), examine_templates(self.templates.budget, held)]

    @property
    def housekeeping(self) -> Housekeeper:
        from insula.node.housekeeping.keeper import Housekeeper

        return Housekeeper(self.rooms)

    async def open_exec(self, uid: str, request: ExecRequest) -> ExecSession:
        instance = await self._running(uid)
        timeout = request.timeout if request.timeout is not None else self._patience(uid)
        agent = await instance.agent(timeout)
        return await agent.exec(
            request.argv,
            env=dict(request.environment) or None,
            cwd=request.working_directory,
            user=request.user,
            tty=request.tty,
            rows=request.rows,
            cols=request.columns,
        )

    def _patience(self, uid: str) -> float:
        """Seconds an agent gets to answer: what is left of BOOT_PATIENCE, and never less than PATIENCE."""
        seen = self.rooms.store.get(Observation, uid)
        running = (utc_now() - seen.document.since).total_seconds() if seen is not None else 0.0
        return max(PATIENCE, BOOT_PATIENCE - running)

    async def open_console(self, uid: str) -> Console:
        if self._instance(uid).plan.memory.wakes:
            # Until a fork is itself, what is typed into it would be done by its template.
            await self.rooms.store.wait(
                Observation, uid, lambda seen: seen is None or seen.phase is not Phase.STARTING
            )
        return await self._instance(uid).console()

    def read_log(self, uid: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        return self.rooms.engine.follow_log(self.rooms.home.machine(uid), follow=follow, tail=tail)

    async def _running(self, uid: str) -> Instance:
        """The live machine once its vCPUs run. Raises NotRunning, GuestPaused."""
        seen = await self.rooms.store.wait(
            Observation, uid, lambda seen: seen is None or seen.phase is not Phase.STARTING
        )
        if seen is not None and seen.phase is Phase.PAUSED:
            raise GuestPaused(
                f"Machine '{seen.name}' is paused, so nothing in it can answer: {seen.reason}",
                hint=f"Let it go on: insula resume {seen.name}",
            )
        return self._instance(uid)

    def _instance(self, uid: str) -> Instance:
        actor = self._actors.get(uid)
        if isinstance(actor, MachineActor) and actor.seat.instance is not None:
            return actor.seat.instance
        stored = self.rooms.store.get(Machine, uid)
        name = stored.document.name if stored is not None else uid
        seen = self.rooms.store.get(Observation, uid)
        phase = seen.document.phase if seen is not None else Phase.CREATED
        raise NotRunning(f"Machine '{name}' is {phase}.", hint=f"Start it: insula start {name}")
