"""What an agent in a guest can do, whichever agent it is, and how it fails.

Unavailable
├── AgentSilent                nobody answered in time
├── AgentLost                  the connection ended while a command ran
├── AgentBusy                  too many commands at once in this guest
├── GuestFrozen                its file systems are at rest, and nothing is begun that would write to them
└── GuestFailed                the guest could not do it: out of processes, of memory, of disk
Invalid
├── GuestCommandNotFound       exit status 127, as in a shell
├── GuestCommandNotExecutable  exit status 126, as in a shell
├── GuestRefused               the guest has no such user or directory; exit status 126
└── AgentCannot                this agent never can: a terminal over the QEMU guest agent
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from insula.kit.errors import Invalid, Unavailable
from insula.kit.units import format_duration

StreamName = Literal["stdout", "stderr"]
ShutdownMode = Literal["poweroff", "reboot"]
FREEZE_MOST = 60.0  # seconds a guest is frozen at most: its services wait meanwhile, some with a watchdog


class AgentSilent(Unavailable):
    """The guest agent did not answer in time."""

    code = "agent-silent"


class AgentLost(Unavailable):
    """The connection to the guest agent ended."""

    code = "agent-lost"


class AgentBusy(Unavailable):
    """The guest agent runs as many commands as it can."""

    code = "agent-busy"


class GuestFrozen(Unavailable):
    """The guest's file systems are at rest for a moment, and nothing that would write is begun."""

    code = "guest-frozen"


class GuestFailed(Unavailable):
    """The guest tried and could not."""

    code = "guest-failed"


class GuestCommandNotFound(Invalid):
    """The guest has no such command."""

    code = "guest-command-not-found"
    exit_status = 127


class GuestCommandNotExecutable(Invalid):
    """The guest has the file, and cannot execute it."""

    code = "guest-command-not-executable"
    exit_status = 126


class GuestRefused(Invalid):
    """The guest has no such user or working directory."""

    code = "guest-refused"
    exit_status = 126


class AgentCannot(Invalid):
    """The agent in this guest has no way to do what was asked."""

    code = "agent-cannot"


@dataclass(frozen=True)
class ExitStatus:
    """How a command ended: by itself with a code, or by a signal. Exactly one of the two is set."""

    code: int | None = None
    signal: int | None = None

    @property
    def shell_status(self) -> int:
        """The status a shell would report: the code, or 128 + the signal's number."""
        if self.signal is not None:
            return 128 + self.signal
        return self.code if self.code is not None else 0


@dataclass(frozen=True)
class Interface:
    """A network interface of the guest; addresses with their prefix, e.g. 10.0.2.15/24, fe80::1/64."""

    name: str
    mac: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class GuestInfo:
    """What the guest says of itself. uptime is in seconds; None if this agent cannot tell."""

    hostname: str
    addresses: tuple[Interface, ...]
    os: str
    kernel: str
    uptime: float | None


@dataclass(frozen=True)
class Identity:
    """Who a guest is to be that woke up with another one's memory.

    machine_id: 32 hex digits (machine-id(5)). macs: (as it was frozen, as it is to be) of each network card.
    """

    hostname: str
    machine_id: str
    macs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Renewal:
    """What of its identity a guest has renewed, and what it could not, with the reason.

    Names: random, clock, hostname, machine-id, mac. hook: the image has a program for what only it knows of.
    """

    renewed: tuple[str, ...]
    failed: tuple[tuple[str, str], ...] = ()
    hook: bool = False


@dataclass(frozen=True)
class Captured:
    """A command's end and all it printed."""

    status: ExitStatus
    stdout: bytes
    stderr: bytes


class ExecSession(Protocol):
    """A command that runs in the guest.

    Output waits in the guest until output() is read: a command that prints much and is not read blocks, as on
    a full pipe, and wait() alone would then wait for ever. Use `capture` to have everything.
    """

    async def write_stdin(self, data: bytes) -> None:
        """Give input, waiting until the command takes it. What it no longer reads is dropped."""

    async def close_stdin(self) -> None:
        """Say that there is no more input. Call it at once for a command without any: it may wait for it."""

    async def send_signal(self, number: int) -> None:
        """Signal the command's process group; nothing if it has ended."""

    async def resize(self, rows: int, cols: int) -> None:
        """Tell the command's terminal its size."""

    def output(self) -> AsyncIterator[tuple[StreamName, bytes]]:
        """What it prints as it comes; ends when the command has ended and all was delivered. One reader."""

    async def wait(self) -> ExitStatus:
        """How the command ended. Raises AgentLost."""

    async def close(self) -> None:
        """Hang the command up if it still runs, and forget it. May be called twice."""


class Agent(Protocol):
    """The agent of one running guest."""

    kind: str  # "insula" | "qemu"

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
    ) -> ExecSession:
        """Start a command: argv[0] is looked up in the guest's PATH, env is added, user is a name or a uid.

        Without cwd it starts in the user's home. Raises GuestCommandNotFound, GuestCommandNotExecutable,
        GuestRefused, GuestFailed, GuestFrozen, AgentBusy, AgentCannot, AgentSilent, AgentLost.
        """

    async def info(self) -> GuestInfo:
        """What the guest is, now."""

    async def shutdown(self, mode: ShutdownMode) -> None:
        """Ask the guest's init system for an orderly end; returns when it was asked, not when it is off."""

    async def renew(self, identity: Identity) -> Renewal:
        """Give the guest fresh random numbers and the host's time, then another identity.

        Raises AgentCannot for an agent that cannot do it.
        """

    async def refresh(self) -> Renewal:
        """Give a guest that goes on from a saved memory, as itself, fresh random numbers and the host's time.

        Its host name, machine-id and MACs stay as they are. Raises AgentCannot for an agent that cannot do
        it; what a guest could do only in part is in `failed`.
        """

    async def freeze(self, timeout: float) -> int:
        """Write out and bring to rest every mounted file system of a block device; how many are frozen.

        Those that cannot be frozen (tmpfs, FAT) do not count, and 0 is no error. If one fails, none stays
        frozen. Until `thaw`, whoever writes in the guest waits, and exec, shutdown, renew, refresh and freeze
        raise GuestFrozen. The guest goes on by itself after `timeout` seconds of its time, FREEZE_MOST at
        most, and when this connection ends (the QEMU guest agent only with our help: qga_freeze). So a copy
        of its disks is consistent only if `thaw` then says as many as were frozen.

        Raises GuestFailed (it names the file system and the reason), GuestFrozen, AgentCannot, AgentSilent
        and AgentLost.
        """

    async def thaw(self) -> int:
        """Let all frozen file systems go on; how many still were frozen. May be called at any time.

        Raises GuestFailed, AgentCannot, AgentSilent, AgentLost.
        """

    async def ping(self, timeout: float) -> bool:
        """Whether the agent answers within timeout seconds."""

    async def close(self) -> None:
        """End the connection; commands that still run are hung up."""


async def capture(session: ExecSession, stdin: bytes = b"") -> Captured:
    """Give a command its input, read all its output, wait for its end, and close the session."""
    collected: dict[StreamName, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    async def feed() -> None:
        if stdin:
            await session.write_stdin(stdin)
        await session.close_stdin()

    feeder = asyncio.create_task(feed(), name="agent-capture-stdin")
    try:
        async for name, data in session.output():
            collected[name] += data
        status = await session.wait()
        await feeder
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)
        await session.close()
    return Captured(status, bytes(collected["stdout"]), bytes(collected["stderr"]))


def silent(what: str, waited: float, cause: BaseException | None = None) -> AgentSilent:
    """The AgentSilent for an agent (or a request to it) that gave no answer in `waited` seconds."""
    error = AgentSilent(
        f"{what} gave no answer in {format_duration(waited)}.",
        hint="The guest may be booting, be paused, or not run the agent; its console shows: insula logs.",
        evidence={"waited_seconds": round(waited, 3)},
        retry_after=1.0,
    )
    error.__cause__ = cause
    return error


def frozen(cause: BaseException | None = None) -> GuestFrozen:
    """The GuestFrozen for something that would write to file systems which are at rest."""
    error = GuestFrozen(
        "The guest's file systems are frozen.",
        hint="A snapshot is being taken; try again in a moment. They go on by themselves within a minute.",
        retry_after=1.0,
    )
    error.__cause__ = cause
    return error


def command_not_found(command: str) -> GuestCommandNotFound:
    return GuestCommandNotFound(
        f"The guest has no command '{command}'.",
        hint="Check the spelling, give the full path, or install it in the guest.",
    )


def command_not_executable(command: str) -> GuestCommandNotExecutable:
    return GuestCommandNotExecutable(
        f"The guest cannot execute '{command}'.",
        hint="Check that it is a program for this guest with the execute permission: chmod +x.",
    )
