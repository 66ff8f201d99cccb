"""A whole host without QEMU: ledger, node and control on the fake engine, with daemons that can die."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insula.control.control import Control
from insula.control.recovery import KINDS
from insula.control.request import VerbRequest
from insula.engine.fake import FakeEngine, World
from insula.kit.clock import utc_now
from insula.kit.paths import Home
from insula.model.image import Image, ImageDefaults, ImageDisk, Kernel
from insula.model.machine import Machine
from insula.model.observation import Observation, Phase
from insula.model.operation import Operation
from insula.model.volume import Volume
from insula.node.captures import Captures
from insula.node.node import Node
from insula.node.procedure import Faults
from insula.node.rooms import Rooms
from insula.node.snapshots import Snapshots
from insula.node.templates import Templates
from insula.storage.images import ImageStore
from insula.store.sqlite import SqliteStore, open_ledger

PATIENCE = 5.0  # seconds after which a wait in a test has failed


def publish_fake_image(images: ImageStore, name: str = "micro", **fields: Any) -> Image:
    """An image that the fake engine can run: a kernel of a few bytes, both agents, no disk."""
    with images.new_build() as work:
        files = work / "image"
        (files / "vmlinuz").write_bytes(b"not a kernel")
        image = Image(
            name=name,
            digest=fields.pop("digest", f"sha256:{name.encode().hex():0<64}"[:71]),
            os="none",
            created=utc_now(),
            size_bytes=12,
            kernel=Kernel(file="vmlinuz"),
            boots=("direct",),
            agents=("insula", "qemu"),
            defaults=ImageDefaults(memory_bytes=128 * 2**20),
            **fields,
        )
        return images.publish(image, files)


def publish_medium(images: ImageStore, name: str = "tools") -> Image:
    """An image that can be put into a drive, as an import of an ISO file makes it."""
    with images.new_build() as work:
        files = work / "image"
        (files / "disk.raw").write_bytes(name.encode().ljust(4096, b"\0"))
        image = Image(
            name=name,
            digest=f"sha256:{name.encode().hex():1<64}"[:71],
            os="none",
            created=utc_now(),
            size_bytes=4096,
            disk=ImageDisk(file="disk.raw", format="raw", virtual_size_bytes=4096),
            boots=("disk",),
            agents=(),
        )
        return images.publish(image, files)


@dataclass
class FakeHost:
    """One home with a world of fake processes. `boot` starts a daemon's rooms; `die` is its kill -9."""

    root: Path
    world: World = field(default_factory=World)
    store: SqliteStore | None = None
    node: Node | None = None
    control: Control | None = None
    told: list[str] = field(default_factory=list)
    template_budget: int = 0

    @property
    def home(self) -> Home:
        return Home(self.root)

    async def boot(self, faults: Faults | None = None) -> Control:
        self.home.root.mkdir(parents=True, exist_ok=True)
        self.store = open_ledger(self.home.ledger, KINDS)
        images = ImageStore(self.home.images, ["micro"])
        engine = FakeEngine(self.world)
        templates = Templates(self.home.templates, engine, images, self.template_budget, idle_look=0.001)
        captures = Captures(self.home, engine, self.store)
        self.node = Node(
            Rooms(
                self.home,
                self.store,
                engine,
                images,
                templates,
                captures,
                Snapshots(self.home, self.store),
                faults or Faults(),
            )
        )
        self.control = Control(self.store, self.node)
        self.told = [*await self.node.start(), *await self.control.start()]
        return self.control

    async def close(self) -> None:
        """End the daemon in order."""
        assert self.control is not None
        assert self.node is not None
        assert self.store is not None
        await self.control.close()
        await self.node.close()
        await self.store.close()

    async def die(self) -> None:
        """End the daemon as kill -9 would: nothing is undone, nothing more is written."""
        await self.close()

    async def do(self, verb: str, name: str = "web", /, **parameters: Any) -> Operation:
        """Submit a verb and wait for its end."""
        operation = await self.submit(verb, name, **parameters)
        return await self.ended(operation.uid)

    async def submit(self, verb: str, name: str = "web", /, **parameters: Any) -> Operation:
        assert self.control is not None
        if verb == "create":
            parameters.setdefault("spec", {})
            parameters["spec"] = {"image": "micro", "name": name, **parameters["spec"]}
        return await self.control.submit(VerbRequest(verb, name=name, parameters=parameters))

    async def ended(self, uid: str) -> Operation:
        assert self.control is not None
        operation = await self.control.wait_operation(uid, PATIENCE)
        assert operation.state.is_final, f"{operation.verb} still {operation.state}: {operation.steps}"
        return operation

    async def run(self, name: str = "web", **spec: Any) -> Operation:
        """Create and start."""
        operation = await self.do("create", name, spec=spec, start=True)
        assert operation.problem is None, operation.problem
        return operation

    def seen(self, name: str = "web") -> Observation:
        assert self.store is not None
        machine = self.store.find(Machine, "default", name)
        assert machine is not None, f"no machine {name}"
        observation = self.store.get(Observation, machine.document.uid)
        assert observation is not None
        return observation.document

    def machine(self, name: str = "web") -> Machine | None:
        assert self.store is not None
        stored = self.store.find(Machine, "default", name)
        return None if stored is None else stored.document

    def volumes(self) -> dict[str, int]:
        """Every volume's size in bytes, by name."""
        assert self.store is not None
        return {s.document.name: s.document.size_bytes for s in self.store.all(Volume)}

    async def until(self, phases: Collection[Phase] | Phase, name: str = "web") -> Observation:
        """Wait for a phase."""
        assert self.control is not None
        wanted = {phases} if isinstance(phases, Phase) else set(phases)
        state = await self.control.wait_machine("default", name, wanted, PATIENCE)
        assert state.observation.phase in wanted, state.observation
        return state.observation

    async def until_gone(self, name: str = "web") -> None:
        assert self.store is not None
        machine = self.machine(name)
        if machine is not None:
            async with asyncio.timeout(PATIENCE):
                await self.store.wait(Machine, machine.uid, lambda m: m is None)
