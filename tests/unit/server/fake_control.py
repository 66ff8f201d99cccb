"""A control and a node in memory, as small as the server's tests allow: what is submitted is written down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from insula.control.control import MachineState, VerbRequest, VolumeState
from insula.control.desk import MachineNotFound, StaleGeneration
from insula.control.port import ExecRequest
from insula.control.snapshots import Losses, SnapshotNotFound, SnapshotState
from insula.control.volumes import VolumeNotFound
from insula.engine.agent.protocol import ExitStatus, command_not_found
from insula.engine.errors import ConsoleBusy
from insula.kit.aio import Cell
from insula.kit.errors import NotFound
from insula.model.device.nic import Nic
from insula.model.event import Event
from insula.model.host import Finding, HostFacts
from insula.model.housekeeping import Bytes, KindUsage, Part, StoreCheck, StoreProblem, Usage
from insula.model.image import Image, ImageRef
from insula.model.machine import Machine
from insula.model.observation import AcceleratorFact, Observation, Phase, ProcessIdentity
from insula.model.operation import Operation, OperationState
from insula.model.template import TemplateView
from insula.storage.catalogue import CatalogueEntry, list_catalogue
from insula.storage.recipe import InitramfsRecipe

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DIGEST = "sha256:" + "0" * 64


def machine(name: str, *, generation: int = 1, project: str = "default", ephemeral: bool = False) -> Machine:
    return Machine(
        uid=f"{abs(hash((project, name))):016x}"[:16],
        project=project,
        name=name,
        generation=generation,
        created=NOW,
        image=ImageRef(name="micro", digest=DIGEST),
        cpus=2,
        memory_bytes=2**29,
        boot="direct",
        machine_type="pc",
        ephemeral=ephemeral,
        devices=(Nic(id="nic0", mac="02:00:00:00:00:01", mode="isolated", publish=("2222:22",)),),
    )


def observation(document: Machine, phase: Phase = Phase.RUNNING) -> Observation:
    return Observation(
        uid=document.uid,
        name=document.name,
        created=NOW,
        phase=phase,
        since=NOW,
        process=ProcessIdentity(pid=4711, start_time=1, boot_id="b") if phase.has_process else None,
        accelerator=AcceleratorFact(name="tcg", reason="no KVM here"),
        engine_version="7.2",
        agent="connected",
        addresses=("10.0.2.15",),
    )


class FakeSession:
    """A command whose output the test feeds and whose input it reads."""

    def __init__(self) -> None:
        self.stdin: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.orders: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self.printed: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()
        self.ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self.takes_stdin = asyncio.Event()
        self.takes_stdin.set()
        self.delivered = 0

    def end(self, status: ExitStatus) -> None:
        self.printed.put_nowait(None)
        self.ended.set_result(status)

    async def write_stdin(self, data: bytes) -> None:
        await self.takes_stdin.wait()
        self.stdin.put_nowait(data)

    async def close_stdin(self) -> None:
        self.stdin.put_nowait(None)

    async def send_signal(self, number: int) -> None:
        self.orders.put_nowait(("signal", number))

    async def resize(self, rows: int, cols: int) -> None:
        self.orders.put_nowait(("resize", rows, cols))

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        while (piece := await self.printed.get()) is not None:
            yield piece
            self.delivered += len(piece[1])

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self.ended)

    async def close(self) -> None:
        self.closed.set()


class FakeConsole:
    def __init__(self) -> None:
        self.printed: asyncio.Queue[bytes] = asyncio.Queue()
        self.typed: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def read(self) -> bytes:
        return await self.printed.get()

    async def write(self, data: bytes) -> None:
        self.typed.put_nowait(data)

    async def close(self) -> None:
        self.closed.set()


class FakeHousekeeping:
    async def usage(self) -> Usage:
        taken = {"size_bytes": 30, "exclusive_bytes": 10, "shared_bytes": 20, "memory_bytes": 0}
        part = Part(
            kind="machine",
            name="0" * 16,
            owner="machine 'web'",
            state="needed",
            reason="r",
            path="/p",
            **taken,
        )
        return Usage(
            looked=NOW,
            home="/home",
            images="/home/images",
            free_bytes=5,
            kinds=(KindUsage(kind="machine", count=1, **taken),),
            total=Bytes(**taken),
            reclaimable_bytes=0,
            reclaimable_memory_bytes=0,
            parts=(part,),
        )

    async def check(self) -> StoreCheck:
        found = StoreProblem(
            code="leftover",
            what="A file",
            path="/p",
            why="It is.",
            mend="insula system prune",
            remedy="prune",
        )
        return StoreCheck(looked=NOW, clean=False, problems=(found,))


class FakeImages:
    def all(self) -> list[Image]:
        return [
            Image(
                name="micro",
                digest=DIGEST,
                os="debian",
                created=NOW,
                size_bytes=1,
                boots=("direct",),
                agents=("insula",),
            )
        ]

    def get(self, name: str) -> Image:
        for image in self.all():
            if image.name == name:
                return image
        raise NotFound(f"There is no image '{name}'.", hint="See: insula image ls")

    def catalogue(self) -> list[CatalogueEntry]:
        return list_catalogue()

    def recipes(self) -> list[InitramfsRecipe]:
        common: dict[str, Any] = {"os": "debian", "suite": "bookworm", "kernel": "linux-image"}
        return [InitramfsRecipe(name=name, kind="initramfs", **common) for name in ("micro", "other")]


class FakeTemplates:
    def all(self) -> list[TemplateView]:
        return [
            TemplateView(
                key="0123456789ab",
                image=ImageRef(name="micro", digest=DIGEST),
                cpus=1,
                memory_bytes=2**29,
                accelerator="tcg",
                engine_version="7.2",
                created=NOW,
                held_bytes=2**27,
                disk_bytes=0,
                last_used=NOW,
            )
        ]


class FakeNode:
    def __init__(self) -> None:
        self.housekeeping = FakeHousekeeping()
        self.images = FakeImages()
        self.templates = FakeTemplates()
        self.session: FakeSession | None = None
        self.console: FakeConsole | None = None
        self.exec_requests: list[ExecRequest] = []
        self.log_pieces: list[bytes] = [b"one\n", b"two\n"]
        self.log_closed = asyncio.Event()
        self.agent_hangs = False
        self.agent_cancelled = asyncio.Event()

    def nudge(self, uid: str) -> None: ...

    async def host_facts(self) -> HostFacts:
        return HostFacts(
            cpus=2,
            memory_bytes=2**34,
            memory_available_bytes=2**33,
            accelerator=AcceleratorFact(name="tcg", reason="no KVM here"),
        )

    async def examine_host(self) -> list[Finding]:
        return [
            Finding(name="QEMU", state="missing", detail="not installed", mend="sudo apt-get install qemu")
        ]

    async def open_exec(self, uid: str, request: ExecRequest) -> FakeSession:
        self.exec_requests.append(request)
        if request.argv == ("no-such",):
            raise command_not_found("no-such")
        if self.agent_hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.agent_cancelled.set()
        if self.session is None:
            self.session = FakeSession()
        return self.session

    async def open_console(self, uid: str) -> FakeConsole:
        if self.console is None:
            raise ConsoleBusy("Somebody else has the console of machine 'web'.", hint="Wait.")
        return self.console

    async def read_log(self, uid: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        try:
            for piece in self.log_pieces[-tail:] if tail else self.log_pieces:
                yield piece
            if follow:
                await asyncio.Event().wait()
        finally:
            self.log_closed.set()


class FakeSnapshots:
    """Those of machine 'web' alone."""

    def __init__(self) -> None:
        self.states: list[SnapshotState] = []
        self.lost = Losses(since=NOW, memory=True, written_bytes={"data": 2**20}, detached=("logs",))

    def all(self, project: str, name: str) -> list[SnapshotState]:
        if (project, name) != ("default", "web"):
            raise MachineNotFound(f"There is no machine '{name}' in project '{project}'.", hint="insula ls")
        return self.states

    def find(self, project: str, name: str, snapshot: str) -> SnapshotState:
        for state in self.all(project, name):
            if state.document.name == snapshot:
                return state
        raise SnapshotNotFound(f"Machine '{name}' has no snapshot '{snapshot}'.", hint="insula snapshot ls")

    def losses(self, project: str, name: str, snapshot: str) -> Losses:
        self.find(project, name, snapshot)
        return self.lost


@dataclass
class FakeControl:
    """outcome: how operations end, and when: at once unless `holds`."""

    node: FakeNode = field(default_factory=FakeNode)
    machines: dict[tuple[str, str], MachineState] = field(default_factory=dict)
    volumes: dict[tuple[str, str], VolumeState] = field(default_factory=dict)
    snapshots: FakeSnapshots = field(default_factory=FakeSnapshots)
    requests: list[VerbRequest] = field(default_factory=list)
    operations: dict[str, Cell[Operation]] = field(default_factory=dict)
    changes: Cell[int] = field(default_factory=lambda: Cell(0))
    past: list[Event] = field(default_factory=list)
    failure: Exception | None = None
    ends_as: OperationState = OperationState.DONE
    problem: dict[str, Any] | None = None
    holds: bool = False
    waiting: Cell[int] = field(default_factory=lambda: Cell(0))
    streams_closed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, document: Machine, phase: Phase = Phase.RUNNING) -> MachineState:
        state = MachineState(document, observation(document, phase))
        self.machines[(document.project, document.name)] = state
        self.changes.set(self.changes.value + 1)
        return state

    def tell(self, kind: str, **data: Any) -> None:
        self.past.append(Event(seq=len(self.past) + 1, at=NOW, kind=kind, name="web", data=data))
        self.changes.set(self.changes.value + 1)

    def finish(self, uid: str) -> None:
        cell = self.operations[uid]
        cell.set(cell.value.changed(state=self.ends_as, problem=self.problem, finished=NOW))

    async def submit(self, request: VerbRequest) -> Operation:
        if self.failure is not None:
            raise self.failure
        self.requests.append(request)
        kinds = ("image", "template", "volume", "system")
        kind: Any = next((kind for kind in kinds if request.verb.startswith(kind)), "machine")
        if kind == "machine" and request.verb != "create":
            state = await self.find_machine(request.project, request.name)
            if request.if_generation not in (None, state.document.generation):
                raise StaleGeneration(f"Machine '{request.name}' has changed.", hint="Look again.")
        uid = f"{len(self.operations) + 1:016x}"
        operation = Operation(
            uid=uid,
            name=request.name,
            project=request.project,
            created=NOW,
            verb=request.verb,
            target_kind=kind,
            target="0" * 16,
            parameters=request.parameters,
        )
        self.operations[uid] = Cell(operation)
        if not self.holds:
            self.finish(uid)
        return operation

    async def find_machine(self, project: str, name: str) -> MachineState:
        if self.failure is not None:
            raise self.failure
        if (project, name) not in self.machines:
            raise MachineNotFound(f"There is no machine '{name}' in project '{project}'.", hint="insula ls")
        return self.machines[(project, name)]

    async def list_machines(self, project: str | None) -> list[MachineState]:
        if self.failure is not None:
            raise self.failure
        return [state for (of, _), state in self.machines.items() if project in (None, of)]

    async def find_volume(self, project: str, name: str) -> VolumeState:
        if (project, name) not in self.volumes:
            raise VolumeNotFound(f"There is no volume '{name}'.", hint="insula volume ls")
        return self.volumes[(project, name)]

    async def list_volumes(self, project: str | None) -> list[VolumeState]:
        return [state for (of, _), state in self.volumes.items() if project in (None, of)]

    async def find_operation(self, uid: str) -> Operation:
        if uid not in self.operations:
            raise NotFound(f"There is no operation '{uid}'.")
        return self.operations[uid].value

    async def list_operations(self, *, active: bool) -> list[Operation]:
        every = [cell.value for cell in self.operations.values()]
        return [operation for operation in every if not (active and operation.state.is_final)]

    async def wait_operation(self, uid: str, timeout: float | None) -> Operation:
        cell = self.operations[uid]
        self.waiting.set(self.waiting.value + 1)
        try:
            async with asyncio.timeout(timeout):
                return await cell.wait_until(lambda operation: operation.state.is_final)
        except TimeoutError:
            return cell.value
        finally:
            self.waiting.set(self.waiting.value - 1)

    async def cancel_operation(self, uid: str) -> Operation:
        operation = await self.find_operation(uid)
        self.operations[uid].set(operation.changed(cancel_requested=True))
        return self.operations[uid].value

    async def wait_machine(
        self, project: str, name: str, phases: Collection[Phase], timeout: float | None
    ) -> MachineState:
        def reached(_: int) -> bool:
            return self.machines[(project, name)].observation.phase in phases

        await self.find_machine(project, name)
        self.waiting.set(self.waiting.value + 1)
        try:
            async with asyncio.timeout(timeout):
                await self.changes.wait_until(reached)
        except TimeoutError:
            pass
        finally:
            self.waiting.set(self.waiting.value - 1)
        return self.machines[(project, name)]

    async def watch_events(self, after: int | None, *, follow: bool) -> AsyncIterator[Event]:
        seen = len(self.past) if after is None else after
        try:
            while True:
                for event in self.past[seen:]:
                    seen = event.seq
                    yield event
                if not follow:
                    return
                await self.changes.wait_until(lambda _, seen=seen: len(self.past) > seen)  # type: ignore[misc]
        finally:
            self.streams_closed.set()
