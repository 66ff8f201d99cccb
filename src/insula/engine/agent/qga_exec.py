"""Commands over the QEMU guest agent, whose guest-exec takes all input first and returns all output last.

Streamed, where the guest has /bin/sh: a private directory in the guest's /tmp holds

    out, err   plain files that the command appends to and we read on (guest-file-read goes on after EOF).
               Not FIFOs: the agent fread()s on a non-blocking descriptor and loses data at EAGAIN.
    in         a FIFO, the command's stdin; each piece of input is a guest-exec of `cat >in`, so a command
               that does not read blocks the writer, as on any pipe
    eof        a FIFO; a holder process keeps `in` open until somebody opens this one: the end of input

The command replaces the shell that prepared it (exec): guest-exec-status tells its own exit code or signal.
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
_READ = 128 * 1024  # bytes per guest-file-read
_WRITE = 256 * 1024  # bytes of input per guest-exec
_POLL_FIRST, _POLL_MOST = 0.02, 0.5  # seconds between looks at a running command

# $1 directory, $2 user, $3 working directory, $4 command. Prints one word.
_PREPARE = r"""
umask 077
say() { echo "$1"; [ "$1" = ready ] || rm -rf "$d"; exit 0; }
d=$1
PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
mkdir "$d" && mkfifo "$d/in" "$d/eof" && : >"$d/out" && : >"$d/err" || say no-room
[ -z "$2" ] || id -u "$2" >/dev/null 2>&1 || say no-user
[ -z "$3" ] || cd "$3" 2>/dev/null || say no-directory
case $4 in
*/*)
    [ -e "$4" ] || say not-found
    [ -f "$4" ] && [ -x "$4" ] || say not-executable
    say ready ;;
esac
found=not-found
IFS=:
for p in $PATH; do
    [ ! -f "$p/$4" ] || found=not-executable
    [ ! -f "$p/$4" ] || [ ! -x "$p/$4" ] || say ready
done
say $found
"""

# $1 directory, $2 user, $3 working directory, $4 number of NAME=VALUE words that follow, then the command.
# A user comes by setpriv (util-linux) or, with busybox, by su; a session of its own by setsid where there is.
_RUN = r"""
umask 022
_dir=$1 _user=$2 _cwd=$3 _n=$4
shift 4
PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
_uid=$(id -u ${_user:+"$_user"}) _gid=$(id -g ${_user:+"$_user"}) _own=$(id -u) HOME=/
while IFS=: read -r _name _x _number _x _x _home _shell; do
    [ "$_number" != "$_uid" ] || { HOME=$_home USER=$_name LOGNAME=$_name SHELL=${_shell:-/bin/sh}; break; }
done </etc/passwd
_login=$USER
export PATH HOME USER LOGNAME SHELL
if [ -n "$_cwd" ]; then cd "$_cwd"; else cd "$HOME" 2>/dev/null || cd /; fi
exec 3<>"$_dir/in" 4>"$_dir/in"
( ( read -r _x <"$_dir/eof" ) 3<&- & ) </dev/null >/dev/null 2>&1
exec <"$_dir/in" >>"$_dir/out" 2>>"$_dir/err" 3<&- 4>&-
while [ "$_n" -gt 0 ]; do export "$1"; shift; _n=$((_n - 1)); done
_session=
command -v setsid >/dev/null 2>&1 && _session=setsid
[ -n "$_user" ] && [ "$_uid" != "$_own" ] || exec $_session "$@"
if setpriv --version >/dev/null 2>&1; then
    exec $_session setpriv --reuid "$_uid" --regid "$_gid" --init-groups -- "$@"
fi
exec $_session su -s /bin/sh "$_login" -c 'exec "$0" "$@"' "$@"
"""

_WRITE_IN = 'cat >"$1/in"'
_END_IN = ': >"$1/eof"'
_SIGNAL = 'kill "-$1" "-$2" 2>/dev/null || kill "-$1" "$2"'
# Opening a FIFO both ways never blocks (Linux) and frees everybody who waits in it for the other side.
_CLEAN = '[ -d "$1" ] || exit 0; exec 4<>"$1/eof" 5<>"$1/in"; rm -rf "$1"'


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
        self._handles: dict[StreamName, int] = {}
        self._read: dict[StreamName, int] = {"stdout": 0, "stderr": 0}
        self._hurry = asyncio.Event()
        self._stdin_open = True
        self._pid = 0
        self._ending: int | None = None  # the guest-exec that ends the input
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
        _, said = await self._agent.run_shell(_PREPARE, self._directory, self._user, self._cwd, self._argv[0])
        if said.strip() != "ready":
            raise _unready(said.strip(), self._argv[0], self._user, self._cwd)
        additions = [f"{name}={value}" for name, value in self._env.items()]
        words = [self._directory, self._user, self._cwd, str(len(additions)), *additions, *self._argv]
        started = await self._agent.request(
            "guest-exec", path="/bin/sh", arg=["-c", _RUN, "insula-exec", *words]
        )
        self._pid = int(started["pid"])
        for name, file in (("stdout", "out"), ("stderr", "err")):
            path = f"{self._directory}/{file}"
            handle = await self._agent.request("guest-file-open", path=path, mode="r")
            self._handles["stdout" if name == "stdout" else "stderr"] = int(handle)

    async def write_stdin(self, data: bytes) -> None:
        for at in range(0, len(data), _WRITE):
            if self._stream.over or not self._stdin_open:
                return
            piece = base64.b64encode(data[at : at + _WRITE]).decode()
            started = await self._agent.request(
                "guest-exec",
                path="/bin/sh",
                arg=["-c", _WRITE_IN, "insula", self._directory],
                input_data=piece,
            )
            # The writer ends when the command has taken the piece, or when _CLEAN frees it.
            writing = asyncio.create_task(self._agent.wait_ended(int(started["pid"])))
            over = asyncio.create_task(self._wait_over())
            try:
                await asyncio.wait({writing, over}, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    writing.result()
            finally:
                await cancel_and_wait(writing, over)
            self._hurry.set()

    async def close_stdin(self) -> None:
        if not self._stdin_open or self._stream.over:
            return
        self._stdin_open = False
        started = await self._agent.request(
            "guest-exec", path="/bin/sh", arg=["-c", _END_IN, "insula", self._directory]
        )
        self._ending = int(started["pid"])
        self._hurry.set()

    async def send_signal(self, number: int) -> None:
        if not 1 <= number <= 64:
            raise Invalid(f"{number} is not a signal's number.", hint="Signals are 1 to 64; TERM is 15.")
        if not self._stream.over:
            await self._agent.run_shell(_SIGNAL, str(number), str(self._pid))
            self._hurry.set()

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
                await self._agent.run_shell(_SIGNAL, "1", str(self._pid))
            await self._clean()
        elif self._pump is not None:
            await asyncio.gather(self._pump, return_exceptions=True)

    async def _wait_over(self) -> None:
        while not self._stream.over:
            await self._stream.wait_changed()

    async def _fetch(self) -> None:
        """Look whether it has ended, then fetch what there is: so nothing said before the end is missed."""
        pause = _POLL_FIRST
        try:
            while True:
                status = await self._agent.request("guest-exec-status", pid=self._pid)
                fetched = 0
                for name in self._handles:
                    fetched += await self._drain(name, ended=bool(status["exited"]))
                if status["exited"]:
                    break
                pause = _POLL_FIRST if fetched or self._hurry.is_set() else min(1.5 * pause, _POLL_MOST)
                self._hurry.clear()
                await self._pause(pause)
            self._stream.end(exit_status(status))
        except InsulaError as error:
            self._stream.lose("The guest agent failed", error)
        await self._clean()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            pass

    async def _drain(self, name: StreamName, *, ended: bool) -> int:
        """Fetch to the end of the file; of a command that has ended, to where that end is now.

        A grandchild may go on writing for ever.
        """
        handle, fetched = self._handles[name], 0
        limit: int | None = None
        if ended:
            end = await self._agent.request("guest-file-seek", handle=handle, offset=0, whence=2)
            begin = self._read[name]
            await self._agent.request("guest-file-seek", handle=handle, offset=begin, whence=0)
            limit = int(end["position"]) - begin
        while limit is None or fetched < limit:
            await self._stream.wait_queued_below(OUTPUT_LIMIT)
            count = _READ if limit is None else min(_READ, limit - fetched)
            piece = await self._agent.request("guest-file-read", handle=handle, count=count)
            data = base64.b64decode(piece["buf-b64"])
            if data:
                self._stream.put(name, data)
                self._read[name] += len(data)
                fetched += len(data)
            if piece["eof"] or not data:
                break
        return fetched

    async def _clean(self) -> None:
        """Leave nothing in the guest: files, processes, and what the agent remembers of them."""
        self._agent.forget(self)
        try:
            for handle in self._handles.values():
                await self._agent.request("guest-file-close", handle=handle)
            await self._agent.run_shell(_CLEAN, self._directory)
            if self._ending is not None:
                await self._agent.wait_ended(self._ending)
        except InsulaError:
            pass  # the guest or its agent is gone, and the directory is the guest's /tmp


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
