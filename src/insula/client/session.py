"""A guest command while it runs, and a serial console while it is held.

    ExecSession:  opened ──{"type":"started"}──> started ──{"type":"exit"}──> ended
                     └────────{"type":"error"} or a lost daemon: raises───────┘

Leaving an ExecSession before its command has ended hangs the command up (the daemon sees the channel close).
"""

from __future__ import annotations

import json

from insula.client.errors import DaemonLost
from insula.client.websocket import WebSocket, open_websocket
from insula.kit.errors import error_from_problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Self

    from insula.client.transport import Transport

STDIN, STDOUT, STDERR = 0, 1, 2


class ExecSession:
    """A command in a guest. `exit_code` (as a shell sees it: 128+N for signal N) and `signal` are None while
    it runs.

    Iterating yields (channel, data) as it comes, channel being STDOUT (1) or STDERR (2), until the command
    ends.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self.started = False
        self.exit_code: int | None = None
        self.signal: int | None = None

    @property
    def ended(self) -> bool:
        return self.exit_code is not None

    @property
    def congested(self) -> bool:
        """Whether the guest is slower in reading its stdin than we are in writing it."""
        return self._websocket.congested

    def write(self, data: bytes) -> None:
        """Queue bytes for the command's stdin; they go out while the session is iterated or exchanged."""
        for start in range(0, len(data), 65536):
            self._websocket.send(bytes((STDIN,)) + data[start : start + 65536])

    def close_stdin(self) -> None:
        self._send(type="stdin-eof")

    def send_signal(self, number: int) -> None:
        """Send the command a signal (Linux numbers: 2 is SIGINT, 15 SIGTERM)."""
        self._send(type="signal", number=int(number))

    def resize(self, rows: int, columns: int) -> None:
        """Tell a command with a terminal (tty=True) the size of its window."""
        self._send(type="resize", rows=rows, columns=columns)

    def exchange(
        self, inputs: Sequence[int] = (), timeout: float | None = None
    ) -> tuple[list[tuple[int, bytes]], list[int]]:
        """Wait until something happens: ([(channel, data)], those of the descriptors `inputs` that are
        readable).

        Raises the error the daemon tells (the agent is silent, no such command) and DaemonLost.
        """
        messages, ready = self._websocket.exchange(inputs, timeout)
        output = []
        for message in messages:
            if isinstance(message, bytes):
                if message:
                    output.append((message[0], message[1:]))
            else:
                self._hear(json.loads(message))
        if self._websocket.closed and not self.ended and not output:
            raise DaemonLost(
                "The connection to the guest command was lost; the command was hung up.",
                hint="Was the daemon or the machine stopped? insula ls --all",
                evidence={"close_code": self._websocket.close_code, "reason": self._websocket.close_reason},
            )
        return output, ready

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        while not self.ended:
            yield from self.exchange()[0]

    def wait(self) -> int:
        """Let the command end, dropping what it prints; its exit code."""
        for _ in self:
            pass
        return self.exit_code if self.exit_code is not None else 255

    def close(self) -> None:
        """Hang up."""
        self._websocket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, **message: object) -> None:
        self._websocket.send(json.dumps(message))

    def _hear(self, message: dict[str, Any]) -> None:
        match message.get("type"):
            case "started":
                self.started = True
            case "exit":
                self.signal = message.get("signal")
                status = message.get("status", message.get("code"))
                self.exit_code = 255 if status is None else int(status)
            case "error":
                self.close()
                raise error_from_problem(message.get("problem") or {})


class Console:
    """A machine's serial console, held by one person at a time. Bytes both ways, as a terminal has them."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    @property
    def closed(self) -> bool:
        """Whether the machine has ended, or the daemon is gone."""
        return self._websocket.closed

    def write(self, data: bytes) -> None:
        """Queue keystrokes; they go out while the console is read or exchanged."""
        self._websocket.send(data)

    def exchange(self, inputs: Sequence[int] = (), timeout: float | None = None) -> tuple[bytes, list[int]]:
        """Wait until something happens: (what was printed, those of the descriptors `inputs` that are
        readable).

        Raises the error the daemon tells (somebody else holds the console).
        """
        messages, ready = self._websocket.exchange(inputs, timeout)
        data = b""
        for message in messages:
            if isinstance(message, bytes):
                data += message
            elif (told := json.loads(message)).get("type") == "error":
                self.close()
                raise error_from_problem(told.get("problem") or {})
        return data, ready

    def read(self, timeout: float | None = None) -> bytes:
        """What was printed since; b"" once the console is closed, or after `timeout` seconds of silence."""
        while True:
            data, _ = self.exchange(timeout=timeout)
            if data or self.closed or timeout is not None:
                return data

    def close(self) -> None:
        self._websocket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_exec(
    transport: Transport,
    path: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str | None,
    tty: bool,
    rows: int,
    columns: int,
    agent_timeout: float | None,
) -> ExecSession:
    """Ask for a command at the machine's `.../exec`; whether it could be started is heard by exchanging."""
    websocket = open_websocket(transport, path)
    request = {
        "argv": list(argv),
        "environment": dict(env or {}),
        "working_directory": cwd,
        "user": user,
        "tty": tty,
        "rows": rows,
        "columns": columns,
        "timeout": agent_timeout,
    }
    websocket.send(json.dumps(request))
    return ExecSession(websocket)


def open_console(transport: Transport, path: str) -> Console:
    return Console(open_websocket(transport, path))
