"""Commands over the QEMU guest agent, whose guest-exec takes all input first and returns all output last.

Streamed, where the guest has /bin/sh: a private directory in the guest's /tmp holds FIFOs

    in         the command's stdin; a piece of input is a guest-exec of `cat >in`
    out, err   its stdout and stderr; a piece of output is a guest-exec of `dd count=1 <out`
    eof, end   what two holder processes wait for: they keep `in` open for writing until the end of the input,
               and `out` and `err` open between two pieces

so that a command which does not read or is not read blocks, as on any pipe. (Plain files would fill the
guest's disk, and guest-file-read on a FIFO, which is a non-blocking fread(), loses data.) The command
replaces the shell that prepared it (exec): guest-exec-status tells its own exit code or signal. When it has
ended we write a mark behind its last words; what a process in the background says after that is not ours.

Everything is polled, because the agent never speaks unasked; the pace adapts to how much comes.

Captured, elsewhere (Windows): the command starts at close_stdin() and its output comes at its end.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from insula.engine.agent import qga_scripts as scripts
from insula.engine.agent.protocol import (
    AgentCannot,
    AgentLost,
    ExitStatus,
    GuestFailed,
    GuestRefused,
    StreamName,
    command_not_executable,
    command_not_found,
)
from insula.engine.agent.stream import CommandStream
from insula.kit.aio import cancel_and_wait
from insula.kit.errors import InsulaError, Invalid

OUTPUT_LIMIT = 256 * 1024  # bytes of a command's output that may wait on the host
_WRITE = 256 * 1024  # bytes of input per guest-exec
_CLEAN_TIMEOUT = 5.0  # seconds for our own helpers in the guest to end


class Requests(Protocol):
    """What a session needs of the connection."""

    async def request(self, command: str, *, timeout: float = ..., **arguments: Any) -> Any: ...
    async def run_shell(self, script: str, *words: str) -> tuple[ExitStatus, str]: ...
    async def wait_ended(self, pid: int) -> dict[str, Any]: ...
    def start(self, work: Any, name: str) -> asyncio.Task[None]: ...
    def forget(self, session: Any) -> None: ...


def exit_status(status: Mapping[str, Any]) -> ExitStatus:
    """From guest-exec-status of a command that has ended."""
    if "signal" in status:
        return ExitStatus(signal=int(status["signal"]))
    return ExitStatus(code=int(status.get("exitcode", 0)))


class StreamedExec:
    """A command with streams, in a guest with a shell; see ExecSession."""

    def __init__(
        self, agent: Requests, argv: Sequence[str], env: Mapping[str, str], cwd: str, user: str
    ) -> None:
        self._agent = agent
        self._argv = argv
        self._env = env
        self._cwd = cwd
        self._user = user
        self._directory = f"/tmp/insula-{secrets.token_hex(16)}"
        self._stream = CommandStream(argv[0])
        self._mark = secrets.token_hex(16).encode()
        self._helpers: set[int] = set()  # guest-execs of ours whose end we have not seen
        self._stdin_open = True
        self._pid = 0
        self._pump: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Prepare, run, and begin to fetch output. Raises like Agent.exec."""
        try:
            await self._start()
        except BaseException:
            if self._pump is None:
                self._agent.start(self._clean(), "qga-clean")
            raise
        self._pump = self._agent.start(self._fetch(), "qga-output")

    async def _start(self) -> None:
        _, said = await self._agent.run_shell(
            scripts.PREPARE, self._directory, self._user, self._cwd, self._argv[0]
        )
        if said.strip() != "ready":
            raise _unready(said.strip(), self._argv[0], self._user, self._cwd)
        additions = [f"{name}={value}" for name, value in self._env.items()]
        words = [self._directory, self._user, self._cwd, str(len(additions)), *additions, *self._argv]
        started = await self._agent.request(
            "guest-exec", path="/bin/sh", arg=["-c", scripts.RUN, "insula-exec", *words]
        )
        self._pid = int(started["pid"])

    async def write_stdin(self, data: bytes) -> None:
        for at in range(0, len(data), _WRITE):
            if self._stream.over or not self._stdin_open:
                return
            helper = await self._launch(scripts.WRITE_IN, data[at : at + _WRITE])
            # It ends when the command has taken the piece, or when CLEAN frees it.
            writing = asyncio.create_task(self._agent.wait_ended(helper))
            over = asyncio.create_task(self._wait_over())
            try:
                await asyncio.wait({writing, over}, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    writing.result()
                    self._helpers.discard(helper)
            finally:
                await cancel_and_wait(writing, over)

    async def close_stdin(self) -> None:
        if self._stdin_open and not self._stream.over:
            self._stdin_open = False
            await self._launch(scripts.END_IN)

    async def send_signal(self, number: int) -> None:
        if not 1 <= number <= 64:
            raise Invalid(f"{number} is not a signal's number.", hint="Signals are 1 to 64; TERM is 15.")
        if not self._stream.over:
            await self._agent.run_shell(scripts.SIGNAL, str(number), str(self._pid))

    async def resize(self, rows: int, cols: int) -> None:
        """Nothing: there is no terminal."""

    def output(self) -> AsyncIterator[tuple[StreamName, bytes]]:
        return self._stream.output()

    async def wait(self) -> ExitStatus:
        return await self._stream.wait()

    async def close(self) -> None:
        if not self._stream.over:
            self._stream.lose("The session was closed")
            await cancel_and_wait(self._pump)
            with contextlib.suppress(InsulaError):  # without connection we can do nothing for the guest
                await self._agent.run_shell(scripts.SIGNAL, "1", str(self._pid))
            await self._clean()
        elif self._pump is not None:
            await asyncio.gather(self._pump, return_exceptions=True)

    async def _wait_over(self) -> None:
        while not self._stream.over:
            await self._stream.wait_changed()

    async def _launch(self, script: str, stdin: bytes = b"") -> int:
        """Start a helper in the guest; its pid."""
        arguments: dict[str, Any] = {"path": "/bin/sh", "arg": ["-c", script, "insula", self._directory]}
        if stdin:
            arguments["input_data"] = base64.b64encode(stdin).decode()
        started = await self._agent.request("guest-exec", capture_output=True, **arguments)
        helper = int(started["pid"])
        self._helpers.add(helper)
        return helper

    async def _fetch(self) -> None:
        """Fetch output until the mark that is set when the command has ended."""
        try:
            async with asyncio.TaskGroup() as fetching:
                fetching.create_task(self._fetch_one("stdout", scripts.READ_OUT))
                fetching.create_task(self._fetch_one("stderr", scripts.READ_ERR))
                status = await self._agent.wait_ended(self._pid)
                await self._agent.run_shell(scripts.MARK, self._directory, self._mark.decode())
            self._stream.end(exit_status(status))
        except* InsulaError as group:
            self._stream.lose("The guest agent failed", group.exceptions[0])
        await self._clean()

    async def _fetch_one(self, name: StreamName, script: str) -> None:
        held = b""  # may be the beginning of the mark
        while True:
            await self._stream.wait_queued_below(OUTPUT_LIMIT)
            helper = await self._launch(script)
            status = await self._agent.wait_ended(helper)
            self._helpers.discard(helper)
            piece = base64.b64decode(status.get("out-data", ""))
            held += piece
            at = held.find(self._mark)
            ready = at if at >= 0 else len(held) - _overlap(held, self._mark)
            if ready > 0:
                self._stream.put(name, held[:ready])
            if at >= 0 or not piece:  # no mark: the FIFO is gone
                return
            held = held[ready:]

    async def _clean(self) -> None:
        """Leave nothing in the guest: files, processes, and what the agent remembers of them."""
        self._agent.forget(self)
        with contextlib.suppress(InsulaError, TimeoutError):  # the guest or its agent is gone, or slow to die
            await self._agent.run_shell(scripts.CLEAN, self._directory)
            async with asyncio.timeout(_CLEAN_TIMEOUT):
                for helper in list(self._helpers):
                    await self._agent.wait_ended(helper)


class CapturedExec:
    """A command in a guest without a shell: starts at close_stdin(), prints at its end; see ExecSession."""

    def __init__(self, agent: Requests, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._agent = agent
        self._argv = argv
        self._env = env
        self._stdin = bytearray()
        self._stream = CommandStream(argv[0])
        self._run: asyncio.Task[None] | None = None

    async def write_stdin(self, data: bytes) -> None:
        if self._run is None:
            self._stdin += data

    async def close_stdin(self) -> None:
        if self._run is None and not self._stream.over:
            self._run = self._agent.start(self._execute(), "qga-captured")

    async def send_signal(self, number: int) -> None:
        raise AgentCannot(
            "The QEMU guest agent cannot signal a command in a guest without /bin/sh.",
            hint="End it inside the guest, e.g. with: taskkill.",
        )

    async def resize(self, rows: int, cols: int) -> None:
        """Nothing: there is no terminal."""

    def output(self) -> AsyncIterator[tuple[StreamName, bytes]]:
        return self._stream.output()

    async def wait(self) -> ExitStatus:
        return await self._stream.wait()

    async def close(self) -> None:
        """The command cannot be ended from here: it runs on in the guest."""
        if not self._stream.over:
            self._stream.lose("The session was closed")
        await cancel_and_wait(self._run)
        self._agent.forget(self)

    async def _execute(self) -> None:
        try:
            status = await self._agent.wait_ended(await self._launch())
            names: tuple[tuple[StreamName, str], ...] = (("stdout", "out-data"), ("stderr", "err-data"))
            for name, key in names:
                if status.get(key):
                    self._stream.put(name, base64.b64decode(status[key]))
            self._stream.end(exit_status(status))
        except AgentLost as error:
            self._stream.lose("The connection to the guest agent ended", error)
        except InsulaError as error:
            self._stream.fail(error)
        self._agent.forget(self)

    async def _launch(self) -> int:
        arguments: dict[str, Any] = {"capture_output": True}
        if self._stdin:
            arguments["input_data"] = base64.b64encode(self._stdin).decode()
        if self._env:
            arguments["env"] = [f"{name}={value}" for name, value in self._env.items()]
        try:
            started = await self._agent.request(
                "guest-exec", path=self._argv[0], arg=list(self._argv[1:]), **arguments
            )
        except GuestFailed as error:
            raise _unstarted(error, self._argv[0]) from error
        return int(started["pid"])


def _overlap(data: bytes, mark: bytes) -> int:
    """How many bytes at the end of data may be the beginning of the mark."""
    return next((n for n in range(min(len(data), len(mark) - 1), 0, -1) if data.endswith(mark[:n])), 0)


def _unready(word: str, command: str, user: str, cwd: str) -> InsulaError:
    match word:
        case "not-found":
            return command_not_found(command)
        case "not-executable":
            return command_not_executable(command)
        case "no-user":
            return GuestRefused(f"The guest has no user '{user}'.", hint="Make it in the guest.")
        case "no-directory":
            return GuestRefused(
                f"The guest cannot enter the directory '{cwd}'.",
                hint="Make it in the guest, or name another.",
            )
        case _:
            return GuestFailed(
                f"The guest could not prepare '{command}'.",
                hint="Its /tmp may be full or read-only, or mkfifo missing.",
                evidence={"guest_said": word},
            )


def _unstarted(error: GuestFailed, command: str) -> InsulaError:
    """GLib's words for a failed spawn are all there is; in another language it stays a GuestFailed."""
    said = str(error.evidence.get("guest_error", ""))
    if "No such file" in said:
        return command_not_found(command)
    if "Permission denied" in said or "Exec format" in said:
        return command_not_executable(command)
    return error
