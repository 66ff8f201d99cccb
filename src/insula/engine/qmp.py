"""The monitor's protocol: `qemu.qmp` with our errors, deadlines and an end that can be waited for.

A session ends when QEMU does; then every request that waits, and every later one, raises EngineLost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import Message, QMPClient
from qemu.qmp.error import QMPError
from qemu.qmp.models import ErrorResponse
from qemu.qmp.protocol import ConnectError, Runstate
from qemu.qmp.qmp_client import ExecuteError, GreetingError, NegotiationError

from insula.engine.errors import EngineLost, EngineRefused
from insula.kit.aio import cancel_and_wait
from insula.kit.paths import socket_address
from insula.kit.units import format_duration

REQUEST_TIMEOUT = 30.0  # seconds: QEMU answers in under 1 ms unless the host's disk stands still

# It logs each end of a connection as an error; we raise, and whoever catches knows what it means.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

Event = Mapping[str, Any]


def connect_socket(path: Path) -> socket.socket:
    """A connection to a unix socket of a machine, however long its path. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    address, descriptor = socket_address(path)
    try:
        connection.connect(address)  # local and with room in the backlog: it never waits
    except BaseException:
        connection.close()
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return connection


class _Client(QMPClient):
    """Logs no message: the library lays out each one to be read before it asks whether anybody reads.

    QEMU gives the answer to a request whose session has ended to the next session. So no two sessions give
    their requests the same ids, as the library's do: an answer to none of ours is dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self._session = secrets.token_hex(8)

    def _get_exec_id(self) -> str:
        return f"{super()._get_exec_id()}-{self._session}"

    async def _negotiate(self) -> None:
        """Hears out what is said before the answer: the library takes whatever comes first for it."""
        wanted = {"enable": ["oob"]} if "oob" in self._offered() else {}
        request = self.make_execute_msg("qmp_capabilities", arguments=wanted)
        request["id"] = self._get_exec_id()
        await self._send(request)
        while (answer := await self._recv()).get("id") != request["id"]:
            pass
        if "return" not in answer:
            refused = ExecuteError(ErrorResponse(answer), request, answer)
            raise NegotiationError("The monitor refused to negotiate.", refused)

    def _offered(self) -> list[object]:
        return list(self._greeting.QMP.capabilities) if self._greeting is not None else []

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class Monitor:
    """A session with one monitor. name: of the machine, for messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._client = _Client()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        # The client's own listener remembers every event for good, and a guest can cause any number of them.
        self._client.events.event_filter = self._take

    def _take(self, event: Event) -> bool:
        self._events.put_nowait(event)
        return False  # taken here, so nothing is left to be remembered

    @classmethod
    async def connect(cls, path: Path, name: str, timeout: float) -> Monitor:
        """Open the session. Raises EngineLost, and TimeoutError while another client has the monitor."""
        monitor = cls(name)
        try:
            async with asyncio.timeout(timeout):
                while not await monitor._is_greeted(path):
                    pass
        except TimeoutError:
            raise
        except (OSError, EOFError, QMPError) as error:
            raise EngineLost(f"The monitor of machine '{name}' cannot be reached.") from error
        return monitor

    async def _is_greeted(self, path: Path) -> bool:
        try:
            await self._client.connect(connect_socket(path))
        except ConnectError as error:
            if not isinstance(error.__cause__, GreetingError):
                raise
            return False  # it began with what the session before us was to hear
        return True

    @property
    def is_open(self) -> bool:
        return self._client.runstate is Runstate.RUNNING

    async def execute(self, command: str, **arguments: Any) -> Any:
        """The answer to a request. Raises EngineLost and EngineRefused."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                return await self._client.execute(command, named)
        except ExecuteError as error:
            raise EngineRefused(
                f"The monitor of machine '{self._name}' refused '{command}'.",
                evidence={"request": {"execute": command, "arguments": named}, "answer": str(error)},
            ) from error
        except TimeoutError as error:
            waited = format_duration(REQUEST_TIMEOUT)
            raise EngineLost(
                f"The monitor of machine '{self._name}' did not answer '{command}' in {waited}.",
                hint="The host's disk or network storage may stand still.",
            ) from error
        except (OSError, EOFError, QMPError) as error:
            raise EngineLost(
                f"The monitor of machine '{self._name}' ended before it answered '{command}'."
            ) from error

    async def give_descriptor(self, name: str, descriptor: int) -> None:
        """Hand the monitor a copy of an open file, which it then knows as 'fd:NAME'. Raises as execute."""
        self._send_descriptor(descriptor)
        await self.execute("getfd", fdname=name)

    @contextlib.asynccontextmanager
    async def lent_descriptor(self, descriptor: int) -> AsyncIterator[str]:
        """Meanwhile the monitor has a copy of an open file, by this path. Raises as execute.

        What it opens the path for, reading or writing or both, must be what the file is open for.
        """
        self._send_descriptor(descriptor)
        number = (await self.execute("add-fd"))["fdset-id"]
        try:
            yield f"/dev/fdset/{number}"
        finally:
            with contextlib.suppress(EngineLost):
                await self.execute("remove-fd", fdset_id=number)

    def _send_descriptor(self, descriptor: int) -> None:
        try:
            self._client.send_fd_scm(descriptor)
        except (OSError, QMPError) as error:
            raise EngineLost(f"The monitor of machine '{self._name}' takes no file.") from error

    async def events(self) -> AsyncIterator[Event]:
        """What the monitor tells, in order, to one reader; ends when the session does."""
        ended = asyncio.create_task(self._wait_ended(), name="monitor-end")
        try:
            while (event := await self._events.get()) is not None:
                yield event
        finally:
            await cancel_and_wait(ended)

    async def _wait_ended(self) -> None:
        while self.is_open:
            await self._client.runstate_changed()
        self._events.put_nowait(None)

    async def close(self) -> None:
        """End the session; the monitor lives on."""
        with contextlib.suppress(OSError, EOFError, QMPError):
            await self._client.disconnect()
