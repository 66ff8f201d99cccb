"""The guest of the fake engine: an agent and a handful of commands, run in this process and at once.

A command is an async function from its `Call` to an exit status; it registers itself by name. `sh -c` knows
`;`, `>&2`, `exit N` and `kill -N $$`, and runs the commands that are here.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from insula.engine.agent.protocol import (
    AgentCannot,
    AgentLost,
    ExecSession,
    ExitStatus,
    GuestFailed,
    GuestInfo,
    GuestRefused,
    Identity,
    Interface,
    Renewal,
    ShutdownMode,
    StreamName,
    command_not_found,
    frozen,
)

if TYPE_CHECKING:
    from insula.engine.fake import FakeMachine

_USERS = ("root", "0", "insula", "1000")
_RELEASE = "6.1.0-fake"


class _Killed(Exception):
    """The command ends by a signal of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class Call:
    """One command that runs: what it was given, and where it prints."""

    argv: Sequence[str]
    machine: FakeMachine
    env: Mapping[str, str]
    tty: bool
    stdin: asyncio.Queue[bytes]
    print: Callable[[StreamName, bytes], None]
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def out(self, text: str) -> None:
        self.print("stdout", text.encode())

    def redirected(self, argv: Sequence[str], to_stderr: bool) -> Call:
        """The same surroundings for another command, its stdout perhaps sent to stderr."""

        def to_stderr_only(_name: StreamName, data: bytes) -> None:
            self.print("stderr", data)

        printer = to_stderr_only if to_stderr else self.print
        return Call(argv, self.machine, self.env, self.tty, self.stdin, printer, self.wake)


Command = Callable[[Call], Awaitable[int]]
COMMANDS: dict[str, Command] = {}


def _command(function: Command) -> Command:
    COMMANDS[getattr(function, "__name__", "").strip("_")] = function
    return function


@_command
async def _true(call: Call) -> int:
    return 0


@_command
async def _false(call: Call) -> int:
    return 1


@_command
async def _echo(call: Call) -> int:
    call.out(" ".join(call.argv[1:]) + "\n")
    return 0


@_command
async def _printf(call: Call) -> int:
    call.out(call.argv[1].encode().decode("unicode_escape") if len(call.argv) > 1 else "")
    return 0


@_command
async def _cat(call: Call) -> int:
    while data := await call.stdin.get():
        call.print("stdout", data)
    return 0


@_command
async def _sleep(call: Call) -> int:
    """Sleeps until it is signalled or the machine's `wake_sleepers` is called; 'sleep 0' is over at once."""
    if call.argv[1:] != ["0"]:
        await call.wake.wait()
    return 0


@_command
async def _uname(call: Call) -> int:
    fields = {"-s": "Linux", "-n": call.machine.hostname, "-r": _RELEASE, "-m": "x86_64"}
    asked = call.argv[1] if len(call.argv) > 1 else "-s"
    call.out((" ".join(fields.values()) if asked == "-a" else fields.get(asked, "Linux")) + "\n")
    return 0


@_command
async def _hostname(call: Call) -> int:
    call.out(call.machine.hostname + "\n")
    return 0


@_command
async def _env(call: Call) -> int:
    call.out("".join(f"{name}={value}\n" for name, value in call.env.items()))
    return 0


@_command
async def _poweroff(call: Call) -> int:
    call.machine.asked_to_power_off()
    return 0


@_command
async def _sh(call: Call) -> int:
    if len(call.argv) > 2 and call.argv[1] == "-c":
        return await _run_script(call, call.argv[2])
    pending, status = b"", 0
    while data := await call.stdin.get():
        if call.tty:
            call.print("stdout", data.replace(b"\r", b"\r\n"))
        *lines, pending = (pending + data.replace(b"\r", b"\n")).split(b"\n")
        for line in lines:
            if line.strip().startswith(b"exit"):
                return await _run_script(call, line.decode())
            status = await _run_script(call, line.decode())
    return status


async def _run_script(call: Call, script: str) -> int:
    status = 0
    for part in script.replace("&&", ";").replace("\n", ";").split(";"):
        words = shlex.split(part.strip())
        to_stderr = any(word in (">&2", "1>&2") for word in words)
        words = [word for word in words if word not in (">&2", "1>&2")]
        match words:
            case []:
                continue
            case ["exit", *rest]:
                return int(rest[0]) if rest else status
            case ["kill", number, "$$"]:
                raise _Killed(int(number.lstrip("-")))
            case [name, *_] if name in COMMANDS:
                status = await COMMANDS[name](call.redirected(words, to_stderr))
            case [name, *_]:
                call.print("stderr", f"sh: {name}: not found\n".encode())
                status = 127
    return status


class FakeExec:
    """See ExecSession."""

    def __init__(
        self, call: Call, body: Command, output: asyncio.Queue[tuple[StreamName, bytes] | None]
    ) -> None:
        self._call = call
        self._output = output
        self._status: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._status.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._task = asyncio.create_task(self._run(body), name=f"fake {call.argv[0]}")

    async def _run(self, body: Command) -> None:
        try:
            self._end(ExitStatus(code=await body(self._call)))
        except _Killed as killed:
            self._end(ExitStatus(signal=killed.number))

    def _end(self, status: ExitStatus) -> None:
        if not self._status.done():
            self._status.set_result(status)
            self._output.put_nowait(None)

    def lose(self) -> None:
        """The machine is gone, or the connection."""
        self._task.cancel()
        if not self._status.done():
            self._status.set_exception(AgentLost("The connection to the guest agent ended."))
            self._output.put_nowait(None)

    def wake(self) -> None:
        self._call.wake.set()

    async def write_stdin(self, data: bytes) -> None:
        if data and not self._status.done():
            self._call.stdin.put_nowait(data)

    async def close_stdin(self) -> None:
        self._call.stdin.put_nowait(b"")

    async def send_signal(self, number: int) -> None:
        self._task.cancel()
        self._end(ExitStatus(signal=number))

    async def resize(self, rows: int, cols: int) -> None:
        pass

    async def output(self) -> AsyncIterator[tuple[StreamName, bytes]]:
        while (item := await self._output.get()) is not None:
            yield item
        if self._status.done() and not self._status.cancelled() and (error := self._status.exception()):
            raise error

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self._status)

    async def close(self) -> None:
        self._task.cancel()
        self._end(ExitStatus(signal=1))


class FakeFileSystems:
    """What of a fake guest can be brought to rest. log: "freeze", "thaw" and "thaw by itself", as they came.

    count: how many file systems of block devices are mounted. fails: why the first of them cannot be frozen.
    """

    def __init__(self) -> None:
        self.count = 1
        self.fails = ""
        self.frozen = 0
        self.log: list[str] = []

    def freeze(self) -> int:
        if self.fails:
            raise GuestFailed(f"The guest could not freeze its file system '/': {self.fails}.")
        self.log.append("freeze")
        self.frozen = self.count
        return self.frozen

    def thaw(self, word: str = "thaw") -> int:
        thawed, self.frozen = self.frozen, 0
        self.log.append(word)
        return thawed

    def go_on(self) -> None:
        """The time is over, or the agent's connection: nothing stays frozen."""
        if self.frozen:
            self.thaw("thaw by itself")


class FakeAgent:
    """See Agent."""

    def __init__(self, machine: FakeMachine, kind: Literal["insula", "qemu"]) -> None:
        self.kind: str = kind
        self.lost = False
        self._machine = machine
        self._sessions: list[FakeExec] = []

    def _require_connection(self) -> None:
        if self.lost:
            raise AgentLost("The connection to the guest agent ended.")

    def _require_thawed(self) -> None:
        self._require_connection()
        if self._machine.file_systems.frozen:
            raise frozen()

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
        self._require_thawed()
        if tty and self.kind == "qemu":
            raise AgentCannot(
                "The QEMU guest agent has no terminals.", hint="Use an image with Insula's agent."
            )
        if user is not None and user not in _USERS:
            raise GuestRefused(f"The guest has no user '{user}'.")
        body = COMMANDS.get(argv[0].rpartition("/")[2])
        if body is None:
            raise command_not_found(argv[0])
        output: asyncio.Queue[tuple[StreamName, bytes] | None] = asyncio.Queue()

        def show(name: StreamName, data: bytes) -> None:
            output.put_nowait(("stdout" if tty else name, data))

        surroundings = {"HOME": "/root", "PATH": "/bin", **(env or {})}
        call = Call(list(argv), self._machine, surroundings, tty, asyncio.Queue(), show)
        session = FakeExec(call, body, output)
        self._sessions.append(session)
        return session

    def wake_sleepers(self) -> None:
        for session in self._sessions:
            session.wake()

    async def info(self) -> GuestInfo:
        self._require_connection()
        loopback = Interface("lo", "00:00:00:00:00:00", ("127.0.0.1/8",))
        return GuestInfo(self._machine.hostname, (loopback,), "Fake 1", _RELEASE, 1.0)

    async def shutdown(self, mode: ShutdownMode) -> None:
        self._require_thawed()
        if mode == "reboot":
            self._machine.reset(by_guest=True)
        else:
            self._machine.asked_to_power_off()

    async def renew(self, identity: Identity) -> Renewal:
        self._require_thawed()
        if self.kind != "insula":
            raise AgentCannot("The QEMU guest agent cannot renew a guest's identity.")
        self._machine.hostname = identity.hostname
        return Renewal(("random", "clock", "hostname", "machine-id", *("mac" for _ in identity.macs)))

    async def refresh(self) -> Renewal:
        self._require_thawed()
        if self.kind != "insula":
            return Renewal(("clock",), (("random", "mixed in, and not forced"),))
        return Renewal(("random", "clock"))

    async def freeze(self, timeout: float) -> int:
        self._require_thawed()
        return self._machine.file_systems.freeze()

    async def thaw(self) -> int:
        self._require_connection()
        return self._machine.file_systems.thaw()

    async def ping(self, timeout: float) -> bool:
        return not self.lost

    def lose(self) -> None:
        """The port was closed under it."""
        self.lost = True
        self._machine.file_systems.go_on()
        for session in self._sessions:
            session.lose()

    async def close(self) -> None:
        self.lose()
