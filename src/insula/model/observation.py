"""What is true of a machine now, as its node saw it. Only transitions are published."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Literal

from insula.model.base import Document, Value


class Phase(StrEnum):
    """created -> starting -> running <-> paused -> stopping -> stopped; crashed from any with a process.

    suspended: it has no process, and its memory is on the disk; it starts in the middle of what it did.
    """

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"
    SUSPENDED = "suspended"

    @property
    def has_process(self) -> bool:
        return self in (Phase.STARTING, Phase.RUNNING, Phase.PAUSED, Phase.STOPPING)


class AcceleratorFact(Value):
    """Which accelerator runs (or would run) machines, and why it was chosen."""

    name: Literal["kvm", "tcg"]
    reason: str


class ProcessIdentity(Value):
    """A process for good: the pid alone is recycled, with its start time and the host's boot it is not.

    start_time: field 22 of /proc/PID/stat (proc(5)), clock ticks after boot. boot_id: of the host.
    """

    pid: int
    start_time: int
    boot_id: str


ExitCause = Literal["guest-shutdown", "host-stop", "host-kill", "crash", "host-reboot"]


class ExitEvidence(Value):
    """How a QEMU process ended. exit_status: 0..255 as a shell sees it (128+N: signal N), None if unknowable.

    cause: who asked. command: pasteable. stderr, serial: the last lines, at most 4000 characters each.
    """

    at: datetime
    cause: ExitCause
    exit_status: int | None
    signal: int | None = None
    command: str = ""
    stderr: str = ""
    serial: str = ""


AgentState = Literal["none", "waiting", "connected"]


class Observation(Document):
    """What the node sees of the machine with the same uid. generation: that of the document it acted on.

    since: when the phase began. reason: why it is in it, in words. addresses: of the guest's cards, without
    loopback and link-local. restarts: by the run policy since somebody last asked for a start. ejected: the
    insertion (`Medium.uid`) whose medium the guest has thrown out by itself, "" if none.
    """

    kind: ClassVar[str] = "observation"

    phase: Phase
    since: datetime
    reason: str = ""
    process: ProcessIdentity | None = None
    accelerator: AcceleratorFact | None = None
    engine_version: str = ""
    agent: AgentState = "none"
    addresses: tuple[str, ...] = ()
    last_exit: ExitEvidence | None = None
    restarts: int = 0
    ejected: str = ""
