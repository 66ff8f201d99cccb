"""What console and exec share: how a websocket ends, and how the client's end is seen at once."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from insula.kit.errors import InsulaError
from insula.server.gate import error_message
from insula.server.hangup import HANG_UP


async def hung_up(websocket: WebSocket) -> None:
    """Wait until the client's end is closed, even while nobody receives; for ever where that is not seen."""
    event = websocket.scope.get("extensions", {}).get(HANG_UP)
    await (event if event is not None else asyncio.Event()).wait()


async def close_with_error(websocket: WebSocket, error: InsulaError) -> bool:
    """Tell the error as the last message, and close with 1011; whether the client was there to be told."""
    if websocket.application_state is WebSocketState.CONNECTED:
        with contextlib.suppress(WebSocketDisconnect, ConnectionError, RuntimeError):
            await websocket.send_text(error_message(error))
            await websocket.close(1011, error.code)
            return True
    return False


async def close_politely(websocket: WebSocket) -> None:
    """Close with 1000, unless the client has closed already."""
    if websocket.client_state is WebSocketState.CONNECTED:
        with contextlib.suppress(WebSocketDisconnect, ConnectionError, RuntimeError):
            await websocket.close(1000)
