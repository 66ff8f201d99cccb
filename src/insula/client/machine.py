"""One machine: its life, commands in its guest, its console and log."""

from __future__ import annotations

import contextlib
import shlex
import time

from insula.client.errors import GuestCommandFailed, GuestCommandTimeout
from insula.client.operation import Operation
from insula.client.session import STDERR, STDOUT, Console, ExecSession, open_console, open_exec
from insula.client.snapshots import SnapshotsOfMachine
from insula.client.transport import ANSWER_TIMEOUT
from insula.client.wire import quote, with_query
from insula.kit.errors import InsulaError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Self

    from insula.client.fork import Siblings
    from insula.client.operation import Progress
    from insula.client.transport import Transport
    from insula.client.types import MachineInfo, OperationInfo, Phase

_KILL_GRACE = 2.0  # seconds between SIGTERM and hanging up on a command that ran too long
_WAIT_SLICE = 300.0  # seconds of one waiting request


class ExecResult:
    """How a guest command ended. exit_code: as a shell sees it (128+N for signal N). signal: N or None."""

    __slots__ = ("argv", "exit_code", "signal", "stderr_bytes", "stdout_bytes")

    def __init__(
        self, argv: tuple[str, ...], exit_code: int, signal: int | None, stdout: bytes, stderr: bytes
    ) -> None:
        self.argv = argv
        self.exit_code = exit_code
        self.signal = signal
        self.stdout_bytes = stdout
        self.stderr_bytes = stderr

    @property
    def stdout(self) -> str:
        """stdout as text (UTF-8; bytes that are none become U+FFFD)."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """stderr as text (UTF-8; bytes that are none become U+FFFD)."""
        return self.stderr_bytes.decode(errors="replace")

    def __repr__(self) -> str:
        return (
            f"ExecResult({shlex.join(self.argv)!r}, exit_code={self.exit_code}, stdout={self.stdout[:60]!r})"
        )


class Machine(SnapshotsOfMachine):
    """A machine by its name; the verbs wait for their end and raise the error an operation ended with.

    uid: of the machine that this object was made for ("" when only the name is known). last_info: as last
    heard. As a context manager it removes the machine at the end, unless `rm` is false.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        project: str = "default",
        *,
        uid: str = "",
        info: MachineInfo | None = None,
        rm: bool = True,
    ) -> None:
        self._transport = transport
        self.name = name
        self.project = project
        self.uid = info["uid"] if info else uid
        self.last_info = info
        self.rm = rm

    def __repr__(self) -> str:
        return f"Machine({self.name!r}, project={self.project!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.rm:
            with contextlib.suppress(NotFound):
                self.remove(force=True)

    @property
    def path(self) -> str:
        """Where the machine is in the REST interface."""
        return f"/v1/projects/{quote(self.project)}/machines/{quote(self.name)}"

    @property
    def info(self) -> MachineInfo:
        """The machine as it is now (asked anew each time)."""
        info: MachineInfo = self._transport.call("GET", self.path)
        self.last_info = info
        return info

    @property
    def phase(self) -> Phase:
        """created, starting, running, paused, stopping, stopped, suspended or crashed, now."""
        return self.info["phase"]

    @property
    def addresses(self) -> list[str]:
        """The addresses of the guest's network cards, now."""
        return self.info["addresses"]

    # Life

    def submit(self, verb: str, body: dict[str, Any] | None = None) -> Operation:
        """Ask for a verb ('start', 'stop', ...) without waiting for its end."""
        return Operation(self._transport, self._transport.call("POST", f"{self.path}/{verb}", body or {}))

    def start(self, *, cold: bool = False, progress: Progress | None = None) -> OperationInfo:
        """Start it; one that is suspended goes on where it was. cold: boot, and lose what was saved of it."""
        return self.submit("start", {"cold": cold} if cold else None).wait(progress)

    def stop(
        self, *, timeout: float = 30.0, force: bool = True, progress: Progress | None = None
    ) -> OperationInfo:
        """Ask the guest to shut down. After `timeout` seconds it is forced (and `notes` says so), or, without
        `force`, that is the error."""
        return self.submit("stop", {"timeout": timeout, "force": force}).wait(progress)

    def restart(
        self, *, timeout: float = 30.0, force: bool = True, progress: Progress | None = None
    ) -> OperationInfo:
        """Stop as `stop` does, then start."""
        return self.submit("restart", {"timeout": timeout, "force": force}).wait(progress)

    def reset(self) -> OperationInfo:
        """Press the reset button: nothing is saved."""
        return self.submit("reset").wait()

    def pause(self) -> OperationInfo:
        """Stand the processors still; memory stays."""
        return self.submit("pause").wait()

    def resume(self) -> OperationInfo:
        return self.submit("resume").wait()

    def suspend(self, *, progress: Progress | None = None) -> OperationInfo:
        """Save its memory on the host's disk and end its process; `start` lets it go on from there."""
        return self.submit("suspend").wait(progress)

    def kill(self) -> OperationInfo:
        """Pull the plug."""
        return self.submit("kill").wait()

    def fork(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        paused: bool = False,
        progress: Progress | None = None,
    ) -> Siblings:
        """`count` siblings of the machine as it is now, memory and disks; it goes on after a blink.

        name: of one, or a pattern in which {n} is its number. paused: each is paused once it is itself. One
        that has no process is forked by its disks. As a context manager the siblings are removed at the end.
        """
        from insula.client.fork import fork

        return fork(self, count, name, paused, progress)

    def rename(self, name: str) -> OperationInfo:
        """Give the machine another name; this object goes by it from then on."""
        info = self.submit("rename", {"name": name}).wait()
        self.name = name
        return info

    def attach(self, volume: str, *, read_only: bool = False, bus: str = "virtio") -> OperationInfo:
        """Give the machine a volume, at once when it runs. bus: 'virtio' or 'scsi'. The outcome's `serial`
        tells by which serial number the guest finds it."""
        return self.submit("attach", {"volume": volume, "read_only": read_only, "bus": bus}).wait()

    def detach(self, volume: str) -> OperationInfo:
        """Take a volume back. Conflict 'disk-not-released' when the guest does not let go of it."""
        return self.submit("detach", {"volume": volume}).wait()

    def insert_cdrom(self, image: str, *, bus: str | None = None) -> OperationInfo:
        """Put an image into the CD drive, at once when it runs. bus: 'ata' or 'scsi', of a drive that it gets
        if it has none; 'ata' only while it is off. Conflict 'medium-locked' when the guest uses what is in
        it."""
        return self.submit("cdrom-insert", {"image": image, **({"bus": bus} if bus else {})}).wait()

    def eject_cdrom(self, *, force: bool = False) -> OperationInfo:
        """Empty the CD drive. Conflict 'medium-locked' when the guest uses what is in it, unless forced."""
        return self.submit("cdrom-eject", {"force": force}).wait()

    def submit_remove(self, *, force: bool = False) -> Operation:
        """Ask for the removal without waiting for its end."""
        target = with_query(self.path, force=force)
        headers = None
        if self.uid:
            # Only ever our own: another machine may carry the name by now.
            info = self.info
            if info["uid"] != self.uid:
                raise NotFound(f"Machine '{self.name}' is gone; another one carries its name now.")
            headers = {"If-Match": f'"{info["generation"]}"'}
        return Operation(self._transport, self._transport.call("DELETE", target, headers=headers))

    def remove(self, *, force: bool = False, progress: Progress | None = None) -> OperationInfo:
        """Remove the machine with its disks and logs. force: also while it runs."""
        try:
            return self.submit_remove(force=force).wait(progress)
        except InsulaError as error:
            if (
                error.code == "being-removed"
            ):  # by the daemon, as it does with an ephemeral machine, or somebody
                return self._find_removal().wait(progress)
            if error.code != "stale-generation":
                raise
        return self.submit_remove(force=force).wait(progress)  # it changed between looking and asking

    def _find_removal(self) -> Operation:
        for info in self._transport.call("GET", "/v1/operations"):
            if info["verb"] == "rm" and (info["name"], info["project"]) == (self.name, self.project):
                return Operation(self._transport, info)
        raise NotFound(f"Machine '{self.name}' is removed.")

    def wait(
        self, phase: str | tuple[str, ...] = ("stopped", "crashed"), *, timeout: float | None = None
    ) -> MachineInfo:
        """Wait until the machine is in (one of) the phase(s). Raises Unavailable 'wait-timeout' after
        `timeout` seconds, NotFound when it is removed meanwhile."""
        phases = phase if isinstance(phase, str) else ",".join(phase)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = (
                _WAIT_SLICE if deadline is None else max(0.0, min(_WAIT_SLICE, deadline - time.monotonic()))
            )
            target = f"{self.path}/wait?phase={phases}&timeout={left:.3f}"
            try:
                info: MachineInfo = self._transport.call("GET", target, timeout=left + ANSWER_TIMEOUT)
            except InsulaError as error:
                if error.code != "wait-timeout" or (deadline is not None and time.monotonic() >= deadline):
                    raise
            else:
                self.last_info = info
                return info

    # The guest

    def popen(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: bool = False,
        rows: int = 24,
        columns: int = 80,
        agent_timeout: float | None = None,
        attached: bool = False,
    ) -> ExecSession:
        """Start a command in the guest and stay in touch with it. agent_timeout: seconds for the agent to
        answer.

        attached: should this process die, the daemon removes the machine (if it is ephemeral).
        """
        path = f"{self.path}/exec?attached=true" if attached else f"{self.path}/exec"
        return open_exec(
            self._transport,
            path,
            argv,
            env=env,
            cwd=cwd,
            user=user,
            tty=tty,
            rows=rows,
            columns=columns,
            agent_timeout=agent_timeout,
        )

    def exec(
        self,
        *argv: str,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        check: bool = False,
        timeout: float | None = None,
        agent_timeout: float | None = None,
    ) -> ExecResult:
        """Run a command in the guest to its end.

        input: for its stdin (empty when None). check: raise GuestCommandFailed unless it exits with 0.
        timeout: seconds after which it is ended and GuestCommandTimeout raised. agent_timeout: see popen.
        """
        data = input.encode() if isinstance(input, str) else (input or b"")
        with self.popen(*argv, env=env, cwd=cwd, user=user, agent_timeout=agent_timeout) as session:
            stdout, stderr = _communicate(session, data, timeout, argv)
        result = ExecResult(argv, session.exit_code or 0, session.signal, stdout, stderr)
        if check and result.exit_code != 0:
            raise GuestCommandFailed(
                f"The command '{argv[0]}' in machine '{self.name}' exited with status {result.exit_code}.",
                evidence={
                    "command": shlex.join(argv),
                    "exit_status": result.exit_code,
                    "stderr": result.stderr[-4000:],
                },
            )
        return result

    def logs(self, *, follow: bool = False, tail: int | None = None) -> Iterator[bytes]:
        """The serial log from its start, or its last `tail` lines, in pieces; with follow, until the machine
        ends."""
        target = with_query(f"{self.path}/log", follow=follow, tail=tail)
        return self._transport.stream(target).pieces()

    def console(self) -> Console:
        """The serial console; Conflict when somebody else holds it."""
        return open_console(self._transport, f"{self.path}/console")


def _communicate(
    session: ExecSession, data: bytes, timeout: float | None, argv: tuple[str, ...]
) -> tuple[bytes, bytes]:
    """Feed stdin and gather stdout and stderr until the command ends."""
    gathered: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
    deadline = None if timeout is None else time.monotonic() + timeout
    position, open_input, late = 0, True, False
    while not session.ended:
        while open_input and not session.congested:
            session.write(data[position : position + 65536])
            position += 65536
            if position >= len(data):
                session.close_stdin()
                open_input = False
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            if late:
                break
            session.send_signal(15)
            late, deadline, left = True, time.monotonic() + _KILL_GRACE, _KILL_GRACE
        for channel, piece in session.exchange(timeout=left)[0]:
            gathered.setdefault(channel, []).append(piece)
    stdout, stderr = b"".join(gathered[STDOUT]), b"".join(gathered[STDERR])
    if late:
        raise GuestCommandTimeout(
            f"The command '{argv[0]}' had not ended after {timeout:g}s and was ended.",
            hint="Give it more time with timeout=SECONDS.",
            evidence={"command": shlex.join(argv), "stderr": stderr.decode(errors="replace")[-4000:]},
        )
    return stdout, stderr
