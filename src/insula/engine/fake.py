"""An engine without QEMU: what the node, control, server and CLI are tested with.

It passes the conformance suite that QemuEngine passes (tests/conformance/engine.py). The `World` stands for
the host: its machines outlive any engine made on it, as processes outlive a daemon, and a test tells it
what the guests do. Files are really written (plan, command, PID file, exit status, serial log), so that
logs and evidence are read the same way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from insula.engine import console, evidence, process
from insula.engine.errors import (
    DiskFileInUse,
    EngineLost,
    LaunchFailed,
    MachineDirectoryBusy,
    TemplateGone,
)
from insula.engine.fakecdrom import FakeDrive
from insula.engine.fakedisks import FakeDisks, OpenDisk
from insula.engine.fakeguest import FakeAgent, FakeFileSystems
from insula.engine.fakeinstance import FakeConsole, FakeInstance
from insula.engine.plan import choose_accelerator, plan_to_json, render
from insula.engine.protocol import (
    OWN_MEMORY,
    AgentPortChanged,
    BootFiles,
    DiskSwitch,
    EngineEvent,
    EngineFacts,
    Exited,
    GuestPanicked,
    GuestReset,
    Instance,
    LaunchPlan,
    Memory,
    Paused,
    Resumed,
    RunState,
    ShuttingDown,
    Uefi,
)
from insula.kit.aio import Cell
from insula.kit.clock import boot_id
from insula.kit.paths import (
    COMMAND,
    DEVICE_STATE,
    EXIT_STATUS,
    LAUNCH_PLAN,
    PID_FILE,
    QEMU_STDERR,
    RUN_LOCK,
    SERIAL_LOG,
)
from insula.kit.paths import write_atomically as write
from insula.kit.run import render_command
from insula.model.machine import Machine
from insula.model.observation import AcceleratorFact, ExitEvidence, ProcessIdentity

_FIRST_PID = 4_200_000  # above the kernel's largest pid (2**22), so that nothing here can name a real process


@dataclass
class Script:
    """How the guests of a machine behave. May be changed at any time.

    agent: opens its port when the vCPUs run; when the test calls `open_agent`; opens it and never answers.
    obeys_power_off: ends when agent or power button ask it to. heeds_disks: looks at one that is attached,
    lets go of one that is detached. gives_out_media: opens a tray it has locked when asked. launch_error:
    what the monitor says instead of starting. boot_text: printed on the serial port at each boot.
    """

    agent: Literal["at-once", "when-told", "silent"] = "at-once"
    obeys_power_off: bool = True
    heeds_disks: bool = True
    gives_out_media: bool = False
    launch_error: str = ""
    boot_text: str = "Fake guest booted\r\n"


@dataclass(frozen=True)
class FrozenGuest:
    """What a fork wakes up with: the name the guest called itself, and whether its agent was up."""

    hostname: str
    agent_open: bool
    memory_bytes: int


@dataclass
class World:
    """A host that runs fake machines. scripts: by machine name; others follow `script`.

    frozen: by the directory of the template; it is the host's memory, so it outlives any daemon.
    """

    script: Script = field(default_factory=Script)
    scripts: dict[str, Script] = field(default_factory=dict)
    machines: dict[Path, FakeMachine] = field(default_factory=dict)
    frozen: dict[Path, FrozenGuest] = field(default_factory=dict)
    facts: EngineFacts = field(
        default_factory=lambda: EngineFacts(
            version="7.2.0",
            binary=Path("/usr/bin/qemu-system-x86_64"),
            auto=AcceleratorFact(name="tcg", reason="KVM is not used: this host is a fake"),
            kvm_refused="this host is a fake",
            machine_types={"pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2"},
        )
    )
    launches: int = 0
    uefi: Uefi | None = None

    def script_of(self, name: str) -> Script:
        return self.scripts.get(name, self.script)

    def open_disks(self) -> list[OpenDisk]:
        """What all machines have open."""
        return [disk for machine in self.machines.values() for disk in machine.disks.open.values()]

    def machine(self, name: str) -> FakeMachine:
        """The machine of this name that was launched last. Raises KeyError."""
        for machine in reversed(self.machines.values()):
            if machine.plan.name == name:
                return machine
        raise KeyError(name)


class FakeMachine:
    """A process of the fake host and the guest in it. Tests make things happen by its methods."""

    def __init__(self, world: World, plan: LaunchPlan) -> None:
        self.world = world
        self.plan = plan
        world.launches += 1
        self.identity = ProcessIdentity(
            pid=_FIRST_PID + world.launches, start_time=world.launches, boot_id=boot_id()
        )
        self.state: RunState = "prepared"
        self.hostname = plan.name
        self.exit: Cell[ExitEvidence | None] = Cell(None)
        self.port_open = Cell(False)
        self.instance: FakeInstance | None = None
        self.agent: FakeAgent | None = None
        self.console: FakeConsole | None = None
        self.power_button_presses = 0
        self.file_systems = FakeFileSystems()
        self._killed = False
        self._shutdown: dict[str, object] | None = None
        self.disks = FakeDisks(plan, world.open_disks, lambda: self.script.heeds_disks, self._check_living)
        self._booted = plan.memory.template is not None or plan.memory.saved is not None
        self.drive = FakeDrive(plan, lambda: self.script.gives_out_media, self._check_living, self.tell)
        self.drive.open_launched()
        if plan.memory.template is not None:
            self.hostname = world.frozen[plan.memory.template].hostname

    def _check_living(self) -> None:
        if self.exit.value is not None:
            raise EngineLost(f"The monitor of machine '{self.plan.name}' ended before it answered.")

    @property
    def script(self) -> Script:
        return self.world.script_of(self.plan.name)

    # What tests make happen

    def open_agent(self) -> None:
        """The guest's agent has come up."""
        if not self.port_open.value and self.plan.agent is not None:
            self.port_open.set(True)
            self.tell(AgentPortChanged(open=True))

    def close_agent(self) -> None:
        """The guest's agent goes away."""
        if self.agent is not None:
            self.agent.lose()
            self.agent = None
        if self.port_open.value:
            self.port_open.set(False)
            self.tell(AgentPortChanged(open=False))

    def power_off(self) -> None:
        """The guest powers itself off."""
        self._shutdown = {"guest": True, "reason": "guest-shutdown"}
        self.tell(ShuttingDown(by_guest=True))
        self._end(0)

    def panic(self) -> None:
        self.tell(GuestPanicked())

    def crash(self, status: int = 128 + 11, stderr: str = "") -> None:
        """The monitor dies: by default of SIGSEGV."""
        if stderr:
            (self.plan.directory / QEMU_STDERR).write_text(stderr)
        self._end(status)

    def fail_io(self, reason: str = "The host's storage under disk 'root' is full.") -> None:
        """A disk on the host is full or failing: the vCPUs stand."""
        self.state = "paused"
        self.tell(Paused(reason, io_error=True))

    def print(self, text: str) -> None:
        """The guest prints on its serial port."""
        if self.plan.has_console:
            with (self.plan.directory / SERIAL_LOG).open("ab") as log:
                log.write(text.encode())
            if self.console is not None:
                self.console.received.put_nowait(text.encode())

    def wake_sleepers(self) -> None:
        """Every `sleep` in the guest is over."""
        if self.agent is not None:
            self.agent.wake_sleepers()

    # What the engine does

    def tell(self, event: EngineEvent) -> None:
        if self.instance is not None:
            self.instance.queue.put_nowait(event)

    def resume(self) -> None:
        if self.state != "running":
            self.state = "running"
            self.tell(Resumed())
        if not self._booted:
            self._boot()

    def pause(self) -> None:
        if self.state == "running":
            self.state = "paused"
            self.tell(Paused("Paused by request."))

    def reset(self, by_guest: bool) -> None:
        self.close_agent()
        self.tell(GuestReset(by_guest=by_guest))
        self._booted = False
        if self.state == "running":
            self._boot()

    def _boot(self) -> None:
        self._booted = True
        self.print(self.script.boot_text)
        if self.script.agent != "when-told":
            self.open_agent()

    def asked_to_power_off(self) -> None:
        if self.script.obeys_power_off and self.state == "running":
            asyncio.get_running_loop().call_soon(self._power_off_if_alive)

    def _power_off_if_alive(self) -> None:
        if self.exit.value is None:
            self.power_off()

    def kill(self) -> None:
        if self.exit.value is None:
            self._killed = True
            self._end(128 + 9)

    def _end(self, status: int) -> None:
        directory = self.plan.directory
        write(directory / EXIT_STATUS, f"{status}\n")
        found = evidence.collect(directory, status, killed=self._killed, shutdown=self._shutdown)
        if self.agent is not None:
            self.agent.lose()
            self.agent = None
        if self.console is not None:
            self.console.received.put_nowait(b"")
        self.world.machines.pop(directory, None)
        self.exit.set(found)
        self.port_open.set(False)
        self.tell(Exited(found))


class FakeEngine:
    """See Engine. Several on one world are daemons that came one after the other."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self._live: dict[Path, FakeInstance] = {}

    async def facts(self) -> EngineFacts:
        return self.world.facts

    def find_uefi(self, machine_type: str) -> Uefi | None:
        return self.world.uefi

    def plan(
        self,
        machine: Machine,
        files: BootFiles,
        directory: Path,
        facts: EngineFacts,
        memory: Memory = OWN_MEMORY,
    ) -> LaunchPlan:
        return render(machine, files, directory, facts, choose_accelerator(machine, facts), memory)

    async def launch(self, plan: LaunchPlan) -> FakeInstance:
        living = await self.adopt(plan.directory)
        if living is not None:
            return living
        template = plan.memory.template
        if template is not None and template not in self.world.frozen:
            raise TemplateGone(
                f"Machine '{plan.name}' cannot be a fork: the memory of its template is not there any more."
            )
        directory = plan.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(directory / LAUNCH_PLAN, plan_to_json(plan))
        write(directory / COMMAND, render_command(plan.argv, directory) + "\n")
        (directory / EXIT_STATUS).unlink(missing_ok=True)
        machine = FakeMachine(self.world, plan)
        error = machine.script.launch_error
        try:
            machine.disks.open_launched()
        except DiskFileInUse as refused:
            error = f"{refused.message}\n"
        (directory / QEMU_STDERR).write_text(error)
        if error:
            found = evidence.collect(directory, 1)
            told = {"exit_status": 1, "command": found.command, "stderr": error, "serial": found.serial}
            raise LaunchFailed(
                f"Machine '{plan.name}' could not be launched: QEMU ended with status 1.", evidence=told
            )
        identity = machine.identity
        write(directory / PID_FILE, f"{identity.pid} {identity.start_time} {identity.boot_id}\n")
        if plan.has_console:
            (directory / SERIAL_LOG).touch()
        self.world.machines[directory] = machine
        self._live[directory] = FakeInstance(machine)
        if template is not None and self.world.frozen[template].agent_open:
            machine.open_agent()
        if (saved := plan.memory.saved) is not None:
            found = json.loads(saved.path.read_text())
            machine.hostname = found["hostname"]
            if found["agent_open"]:
                machine.open_agent()
        return self._live[directory]

    async def freeze(self, instance: Instance) -> None:
        assert isinstance(instance, FakeInstance), "an instance of another engine"
        directory = instance.plan.directory
        machine = self.world.machines[directory]
        self.world.frozen[directory] = FrozenGuest(
            machine.hostname, machine.port_open.value, instance.plan.memory_bytes
        )
        machine.kill()
        self.forget(directory)
        write(directory / DEVICE_STATE, "fake")

    async def capture(
        self, instance: Instance, vessel: LaunchPlan, disks: Sequence[DiskSwitch], *, forks: int = 1
    ) -> float:
        machine = self.world.machines.get(instance.plan.directory)
        if machine is None:
            raise EngineLost(f"Machine '{instance.plan.name}' ended before it could be captured.")
        await machine.disks.freeze(disks)
        vessel.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.world.frozen[vessel.directory] = FrozenGuest(
            machine.hostname, machine.port_open.value, instance.plan.memory_bytes
        )
        write(vessel.directory / DEVICE_STATE, "fake")
        return 0.0

    async def find_unsavable(self, instance: Instance, plan: LaunchPlan) -> list[str]:
        return []

    async def save(
        self, instance: Instance, path: Path, disks: Sequence[DiskSwitch], *, stay: bool = False
    ) -> float:
        machine = self.world.machines.get(instance.plan.directory)
        if machine is None:
            raise EngineLost(f"Machine '{instance.plan.name}' ended before it could be saved.")
        path.touch()
        await machine.disks.freeze(disks)
        if stay:
            machine.pause()
        write(path, json.dumps({"hostname": machine.hostname, "agent_open": machine.port_open.value}))
        return 0.0

    def frozen_bytes(self, directory: Path) -> int | None:
        guest = self.world.frozen.get(directory)
        return None if guest is None else guest.memory_bytes

    async def discard(self, directory: Path) -> None:
        if (machine := self.world.machines.get(directory)) is not None:
            machine.kill()
            self.forget(directory)
        self.world.frozen.pop(directory, None)
        (directory / DEVICE_STATE).unlink(missing_ok=True)

    async def adopt(self, directory: Path) -> FakeInstance | None:
        machine = self.world.machines.get(directory)
        if machine is None:
            return None
        if process.read_identity(directory) != machine.identity:
            raise MachineDirectoryBusy(
                f"A process holds the lock in {directory}, and the PID file there does not name it."
            )
        known = self._live.get(directory)
        if known is None or machine.instance is not known:  # another daemon's, and that one is gone
            known = self._live[directory] = FakeInstance(machine)
            if machine.state == "prepared" and machine.plan.memory.wakes:
                machine.state = "paused"  # QEMU does not tell one that was given its state from one that ran
        return known

    def read_exit(self, directory: Path) -> ExitEvidence | None:
        identity = process.read_identity(directory)
        if identity is None or directory in self.world.machines:
            return None
        return evidence.collect(directory, process.read_exit_status(directory), identity=identity)

    def forget(self, directory: Path) -> None:
        if directory in self.world.machines:
            raise MachineDirectoryBusy(f"A process still runs in {directory}.")
        for name in (PID_FILE, EXIT_STATUS, RUN_LOCK):
            (directory / name).unlink(missing_ok=True)

    def follow_log(self, directory: Path, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        return console.follow_log(directory, follow=follow, tail=tail)
