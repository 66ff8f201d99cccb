"""HTTP and websockets on a unix socket, for its owner and root only.

The socket lies in a directory that only its owner may enter. As a second lock each accepted connection is
asked for its peer's credentials (SO_PEERCRED, unix(7)); anybody else's is closed before a byte is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from asyncio.transports import BaseTransport, Transport
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from insula.kit.aio import cancel_and_wait
from insula.server.hangup import HANG_UP, HangUp

GRACE = 2.0  # seconds that requests have to end once the daemon is closing
LARGEST_MESSAGE = 2**20  # bytes of one websocket message from a client
IDLE_CONNECTION = 75  # seconds a connection without requests is kept for the next one

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid_t, uid_t, gid_t
log = logging.getLogger(__name__)


def peer_of(transport: BaseTransport) -> tuple[int, int]:
    """(pid, uid) of the process at the other end when it connected."""
    raw = transport.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


class PeerHttp(HttpToolsProtocol):
    """uvicorn's HTTP protocol behind the peer check."""

    allowed: frozenset[int] = frozenset()
    _refused = False

    def connection_made(self, transport: BaseTransport) -> None:
        pid, uid = peer_of(transport)
        if uid in self.allowed:
            super().connection_made(cast(Transport, transport))
            return
        self._refused = True
        log.warning("Closed a connection of user %d (process %d): it is neither ours nor root's.", uid, pid)
        cast(Transport, transport).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._refused:
            super().connection_lost(exc)


class PeerWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's websocket protocol that tells the application at once when the client's end is closed."""

    _hang_up: HangUp | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self._hang_up = HangUp(transport.get_extra_info("socket"))

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope") and self._hang_up is not None:
            extensions = cast(dict[str, Any], self.scope["extensions"])
            extensions[HANG_UP] = self._hang_up.event

    def connection_lost(self, exc: Exception | None) -> None:
        if self._hang_up is not None:
            self._hang_up.end()
        super().connection_lost(exc)


class UnixServer(uvicorn.Server):
    """Serves an application on a listening unix socket until `closing` is set, then ends in order.

    allowed: uids that may speak (default: our own and root). It takes no signals, writes nothing but the
    log, and wakes up for requests only. on_ready is called once connections are accepted.
    """

    def __init__(
        self,
        app: ASGIApp,
        closing: asyncio.Event,
        *,
        allowed: frozenset[int] | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        uids = frozenset({os.geteuid(), 0}) if allowed is None else allowed
        protocol = type("PeerHttp", (PeerHttp,), {"allowed": uids})
        super().__init__(
            uvicorn.Config(
                cast(Any, app),
                http=protocol,
                ws=PeerWebSocket,
                ws_max_size=LARGEST_MESSAGE,
                ws_per_message_deflate=False,  # costs more than a unix socket's bytes
                ws_ping_interval=None,  # HangUp sees who goes; who was only stopped (Ctrl-Z) may come back
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=IDLE_CONNECTION,
            )
        )
        self._closing = closing
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the daemon's."""
        yield

    async def main_loop(self) -> None:
        """In place of uvicorn's ten ticks a second, which keep a Date header that we do not send."""
        self._on_ready()
        await self._closing.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, let requests that run end, cut off what has not ended after GRACE."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=GRACE)
        await cancel_and_wait(*self.server_state.tasks)
        for connection in list(self.server_state.connections):
            connection.transport.close()
