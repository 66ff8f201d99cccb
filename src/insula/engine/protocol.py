"""What the node needs of an engine: plan, launch, adopt, and one object per live machine.

`QemuEngine` and `FakeEngine` both pass tests/conformance/engine.py; whatever is true of one is true of the
other. No word of QEMU's appears in these signatures.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from insula.engine.agent.protocol import Agent
from insula.model.device.cdrom import Cdrom
from insula.model.device.disk import Disk
from insula.model.machine import Machine
from insula.model.observation import AcceleratorFact, ExitEvidence, ProcessIdentity

RunState = Literal["prepared", "running", "paused"]


@dataclass(frozen=True)
class EngineFacts:
    """What was found by running the engine here. version: of the monitor. auto: what 'auto' means here.

    kvm_refused: why KVM is not used, "" where it is. kvm_mend: what would mend that, "" if nothing is known.
    machine_types: alias -> versioned name. features: what this build of the monitor was found to have.
    build: changes with every other build of the monitor, also of the same version.
    """

    version: str
    binary: Path
    auto: AcceleratorFact
    kvm_refused: str
    machine_types: dict[str, str]
    features: frozenset[str] = frozenset()
    kvm_mend: str = ""
    build: str = ""


@dataclass(frozen=True)
class FirmwareFile:
    """What fills a part of a board's flash memory, to the byte."""

    path: Path
    size_bytes: int


@dataclass(frozen=True)
class Uefi:
    """A UEFI of this host. code: never written. variables: what those of a new machine begin as."""

    code: FirmwareFile
    variables: FirmwareFile


@dataclass(frozen=True)
class BootFiles:
    """Files for direct kernel boot (all None: the machine boots from its disk).

    uefi: what it boots by; None: by the BIOS that the engine brings along.
    """

    kernel: Path | None = None
    initrd: Path | None = None
    arguments: str = ""
    uefi: Uefi | None = None


@dataclass(frozen=True)
class Saved:
    """A file with a machine's memory and devices as they were (`Engine.save`).

    machine_type: of the machine that was saved, by its versioned name. forked: that one was a fork.
    """

    path: Path
    machine_type: str
    forked: bool = False


@dataclass(frozen=True)
class Memory:
    """Where a machine's memory comes from.

    shareable: it can be frozen, and forks made of it. vessel: it is to take what a live machine is at one
    moment (`Engine.capture`), has no disks, and never runs. template: the directory of a frozen machine which
    this one is a fork of: it wakes up with a copy-on-write view of that one's memory, in the middle of what
    that one was doing. saved: it goes on as itself from what was saved of it.
    """

    shareable: bool = False
    vessel: bool = False
    template: Path | None = None
    saved: Saved | None = None

    @property
    def wakes(self) -> bool:
        """Whether its guest goes on in the middle of something instead of booting."""
        return self.template is not None or self.saved is not None

    @property
    def forked(self) -> bool:
        """Whether its guest was another one's first, at whatever time."""
        return self.template is not None or (self.saved is not None and self.saved.forked)


OWN_MEMORY = Memory()


@dataclass(frozen=True)
class LaunchPlan:
    """Everything that decides how a machine is launched: frozen, readable, stored in its run directory.

    directory: the machine's directory; argv names files in it relatively and runs with it as working
    directory. argv: the monitor's command line. accelerator: which and why. agent: protocol of the agent
    port, if any. memory_bytes: what the guest has. memory: where that comes from. shape: what must be the
    same for a state that is saved of it to be loaded again (accelerator, processor, ...), in words.
    state_files: whether the monitor takes a state's file by its path.
    """

    uid: str
    name: str
    directory: Path
    argv: tuple[str, ...]
    accelerator: AcceleratorFact
    engine_version: str
    agent: Literal["insula", "qemu"] | None
    has_console: bool
    memory_bytes: int = 0
    memory: Memory = OWN_MEMORY
    shape: Mapping[str, str] = field(default_factory=dict)
    state_files: bool = False


@dataclass(frozen=True)
class DiskSwitch:
    """A disk of a live machine, and the file in which it is to go on: an empty overlay of the one it has.

    file: as in the disk's document, and a name that was never another file's. A monitor opens a file again by
    its name when it has it for reading only from then on.
    """

    id: str
    file: str


# What a live machine tells. Each is a frozen value; `Exited` is always the last.


@dataclass(frozen=True)
class Resumed:
    """The vCPUs run."""


@dataclass(frozen=True)
class Paused:
    """The vCPUs stand. reason: in words; io_error: by a full disk or a failing one."""

    reason: str
    io_error: bool = False


@dataclass(frozen=True)
class GuestReset:
    """The machine was reset. by_guest: by itself, not by us."""

    by_guest: bool


@dataclass(frozen=True)
class ShuttingDown:
    """The machine ends now. by_guest: it powered itself off (asked by us to do so, or not)."""

    by_guest: bool


@dataclass(frozen=True)
class GuestPanicked:
    """The guest's kernel said that it has panicked."""


@dataclass(frozen=True)
class AgentPortChanged:
    """A guest agent opened or closed its port."""

    open: bool


@dataclass(frozen=True)
class TrayMoved:
    """The tray of the machine's CD drive opened or closed, by whomever."""

    open: bool


@dataclass(frozen=True)
class Exited:
    """The process is gone, with all the evidence there is."""

    evidence: ExitEvidence


EngineEvent = (
    Resumed | Paused | GuestReset | ShuttingDown | GuestPanicked | AgentPortChanged | TrayMoved | Exited
)


class Console(Protocol):
    """The serial console, held by one person at a time."""

    async def read(self) -> bytes:
        """What the guest printed since; b"" when the machine has ended."""

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


class Disks(Protocol):
    """The disks of a live machine. Each request may be repeated: what is so already is left as it is.

    disk: of the machine's document, its `file` an absolute path or one in the machine's directory.
    """

    async def attach(self, disk: Disk) -> None:
        """Show the guest a disk. Nothing is left when it raises.

        Raises DiskFileInUse, UnsupportedDevice, EngineRefused.
        """

    async def wait_seen(self, disk: Disk, timeout: float) -> bool:
        """Whether the guest has begun to read a disk that is attached. timeout: seconds it gets for that."""

    async def detach(self, disk: Disk, timeout: float) -> None:
        """Ask the guest to let go of a disk, and close its file. timeout: seconds.

        Raises DiskNotReleased when it has not by then: it still has the disk, though it may let go later.
        """

    async def grow(self, disk: Disk, size_bytes: int) -> None:
        """Show the guest a larger disk; never a smaller one. Raises EngineRefused."""

    async def freeze(self, disks: Sequence[DiskSwitch]) -> None:
        """Have each go on in a new layer, all at one moment: all or none. Raises EngineRefused."""

    async def has_layer(self, file: str) -> bool:
        """Whether it has that layer open. file: as in `DiskSwitch`."""

    async def merge(self, disk: Disk, onto: str, base: str | None, report: Callable[[float], None]) -> None:
        """Have the layer `onto` take over all that is below it down to `base`, on which it then stands.

        onto: as in `DiskSwitch`. base: the file as the layer shall name it; None: it stands on nothing then.
        report: is told the fraction that is done. May be cancelled. Raises MergeFailed; the disk is
        whole in any case.
        """


class Drive(Protocol):
    """The CD drive of a live machine. Each request may be repeated: what is so already is left as it is.

    drive: of the machine's document, the `file` of its medium an absolute path. timeout: seconds that the
    guest gets to give out a medium that it has locked.
    """

    async def insert(self, drive: Cdrom, timeout: float) -> None:
        """The medium is in the drive, which is plugged first if the machine has none, and what was in it is
        out. When it raises, what was in it still is, or the drive is empty.

        Raises MediumLocked, UnsupportedDevice (it can be plugged only while off), EngineRefused.
        """

    async def eject(self, drive: Cdrom, timeout: float, *, force: bool = False) -> None:
        """The drive is empty, whatever was in it, and its tray closed. force: whatever the guest says.

        Raises MediumLocked.
        """

    async def unplug(self, drive: Cdrom, timeout: float) -> None:
        """The machine has no drive. Raises DiskNotReleased, when its guest does not let go of it."""

    async def settle(self, drive: Cdrom) -> str | None:
        """The uid of the medium in the drive, if any. One on a tray that was opened by the guest is taken
        out."""


class Instance(Protocol):
    """A live machine. Every method may raise EngineLost when the process ends meanwhile."""

    identity: ProcessIdentity
    plan: LaunchPlan

    @property
    def disks(self) -> Disks: ...

    @property
    def drive(self) -> Drive: ...

    def events(self) -> AsyncIterator[EngineEvent]:
        """Every event since the launch or adoption, in order, for one reader; ends after `Exited`."""

    async def state(self) -> RunState:
        """What the monitor says now: 'prepared' was never resumed.

        Of one that wakes up only its launcher knows that; whoever adopts it hears 'paused'.
        """

    async def resume(self) -> None: ...

    async def pause(self) -> None: ...

    async def reset(self) -> None:
        """Like the reset button."""

    async def press_power_button(self) -> None:
        """ACPI: asks the guest to shut down; no answer is owed."""

    async def processor_seconds(self) -> float:
        """How much of the host's processors its process has used since its start."""

    async def saved_bytes(self) -> int:
        """How large the file of its memory would be at most, were it saved now."""

    async def kill(self) -> ExitEvidence:
        """End the process at once and wait until it has ended."""

    async def wait_exit(self) -> ExitEvidence:
        """Wait until the process has ended."""

    async def agent(self, timeout: float) -> Agent:
        """The guest agent, connected (shared, reconnected when lost). timeout: seconds.

        Raises AgentSilent (says how long it waited) and NoAgent (the machine has no agent port).
        """

    async def console(self) -> Console:
        """Raises ConsoleBusy when somebody has it, NoConsole when the machine has no serial port."""

    async def detach(self) -> None:
        """Close our connections; the machine lives on and can be adopted again."""


class Engine(Protocol):
    """A way to run machines on this host."""

    async def facts(self) -> EngineFacts:
        """Probed by running, cached per boot of the host. Raises EngineMissing."""

    def find_uefi(self, machine_type: str) -> Uefi | None:
        """The UEFI of this host for machines of that type; None: there is none."""

    def plan(
        self,
        machine: Machine,
        files: BootFiles,
        directory: Path,
        facts: EngineFacts,
        memory: Memory = OWN_MEMORY,
    ) -> LaunchPlan:
        """Pure: the same values give the same plan. Raises AcceleratorUnavailable, UnsupportedDevice."""

    async def launch(self, plan: LaunchPlan) -> Instance:
        """Start the process, vCPUs standing ('prepared'). Idempotent: a live process is adopted instead.

        Raises LaunchFailed with exit status, command, last stderr and serial tail, and TemplateGone when the
        memory it is to be a fork of is not there any more; nothing is left running.
        """

    async def freeze(self, instance: Instance) -> None:
        """Make a template of a machine that was launched with shareable memory: its directory.

        Its vCPUs stand, the state of its devices is written there, its process ends, and its memory, which
        nobody can change any more, stays in the host's memory until `discard` or the host's end.
        """

    async def capture(
        self, instance: Instance, vessel: LaunchPlan, disks: Sequence[DiskSwitch], *, forks: int = 1
    ) -> float:
        """Make a template of a live machine, which goes on: the vessel's directory. As `freeze` leaves it.

        disks: where the machine writes from that moment on; what it wrote before stays as it was then. forks:
        how many are to be made of it, which may decide how it is kept.
        Returns the seconds in which its vCPUs stood. Raises EngineLost, EngineRefused, LaunchFailed: then the
        machine goes on as before, and the vessel is gone.
        """

    async def find_unsavable(self, instance: Instance, plan: LaunchPlan) -> list[str]:
        """Devices that a live machine has and one launched by this plan would not have, or the other way.

        What is saved or captured of it could not be loaded again.
        """

    async def save(
        self, instance: Instance, path: Path, disks: Sequence[DiskSwitch], *, stay: bool = False
    ) -> float:
        """Write memory and devices of a live machine, as they are at one moment, to a file.

        disks: where it writes from that moment on. It goes on meanwhile; stay: it stands from then on.
        Returns the seconds in which its vCPUs stood for it; the file is whole then, and on the disk.
        Raises EngineLost, EngineRefused, OSError: then the machine goes on as before.
        """

    def frozen_bytes(self, directory: Path) -> int | None:
        """How much of the host's memory the frozen machine of this directory holds; None: it is none."""

    async def discard(self, directory: Path) -> None:
        """Let go of a frozen machine's memory; forks of it live on, with what they share.

        A machine that lives in the directory, because it was not frozen to the end, is ended. Idempotent.
        """

    async def adopt(self, directory: Path) -> Instance | None:
        """The live machine of this directory, or None when none lives (never a recycled pid).

        One whose launcher died before it had given it what it was to wake up with has never lived: it is
        ended, and as if it had not been launched.
        """

    def read_exit(self, directory: Path) -> ExitEvidence | None:
        """How a process ended that nobody watched; None if none was launched, or one lives."""

    def forget(self, directory: Path) -> None:
        """Remove what a launch left in the directory (sockets, pid, locks); logs, plan and evidence stay."""

    def follow_log(self, directory: Path, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """The serial log from its start, or its last `tail` lines; with follow, on until closed."""
