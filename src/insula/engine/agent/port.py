"""A guest agent's port as QEMU offers it on the host: a unix socket that takes one client at a time."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
from pathlib import Path

from insula.engine.agent.protocol import AgentSilent
from insula.kit.paths import socket_address

_BACKLOG_PAUSE = 0.05  # seconds


class Port:
    """A connected port: reads in chunks, writes with flow control, and knows whether the guest listens."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """What has come; empty at the end. Raises OSError."""
        return await self._reader.read(256 * 1024)

    def post(self, data: bytes) -> None:
        """Write without waiting: for what is small."""
        if not self._writer.is_closing():
            self._writer.write(data)

    async def send(self, data: bytes) -> None:
        """Write and wait until most of it has left. Raises OSError."""
        self._writer.write(data)
        await self._writer.drain()

    def all_taken(self) -> bool:
        """Whether the other side has read everything we wrote: QEMU reads only what the guest can take.

        A guest that has not opened its port yet leaves our bytes here, and saying them again would only
        pile them up (SIOCOUTQ, unix(7); for unix sockets the count falls when the peer reads).
        """
        transport = self._writer.transport
        if transport.get_write_buffer_size() > 0:
            return False
        endpoint = self._writer.get_extra_info("socket")
        unread = fcntl.ioctl(endpoint.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
        return int(struct.unpack("i", unread)[0]) == 0

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):  # the other side was gone before us
            await self._writer.wait_closed()


async def open_port(path: Path) -> Port:
    """Connect to the socket, waiting while others stand in line for it (give it a timeout).

    Raises AgentSilent when nobody listens. asyncio's own connect takes a full backlog (EAGAIN, unix(7)) for a
    connection, and QEMU's backlog is one; nothing tells when there is room, hence the pause.
    """
    address, descriptor = socket_address(path)
    endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                endpoint.connect(address)
                break
            except BlockingIOError:
                await asyncio.sleep(_BACKLOG_PAUSE)
        return Port(*await asyncio.open_unix_connection(sock=endpoint))
    except OSError as error:
        endpoint.close()
        raise AgentSilent(
            f"Nobody listens on the agent socket '{path}'.",
            hint="The machine does not run, or was started without this agent's port: insula ls.",
            evidence={"socket": str(path), "waited_seconds": 0},
        ) from error
    except BaseException:
        endpoint.close()
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)
