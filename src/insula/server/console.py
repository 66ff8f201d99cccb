"""The serial console as a websocket: bytes both ways, for one person at a time."""

from __future__ import annotations

from starlette.websockets import WebSocket, WebSocketDisconnect

from insula.engine.protocol import Console
from insula.kit.errors import InsulaError
from insula.server.bridge import close_politely, close_with_error, hung_up
from insula.server.desk import desk_of
from insula.server.problems import as_insula_error
from insula.server.race import first_of


async def attach_console(websocket: WebSocket) -> None:
    """Closes with 1000 when the machine ends; an error is a last text message and 1011."""
    project, name = websocket.path_params["project"], websocket.path_params["name"]
    desk = desk_of(websocket)
    await websocket.accept()
    try:
        state = await desk.control.find_machine(project, name)
        console = await desk.control.node.open_console(state.document.uid)
        try:
            await first_of(
                ended=_guest_to_client(console, websocket),
                gone=_client_to_guest(console, websocket),
                hung_up=hung_up(websocket),
            )
        finally:
            await console.close()
    except (WebSocketDisconnect, ConnectionError):
        return
    except Exception as error:
        await close_with_error(websocket, as_insula_error(error, f"the console of machine '{name}'"))
    else:
        await close_politely(websocket)


async def _guest_to_client(console: Console, websocket: WebSocket) -> None:
    """Read on only when the client's side has taken what was read before."""
    while data := await console.read():
        await websocket.send_bytes(data)


async def _client_to_guest(console: Console, websocket: WebSocket) -> None:
    """Receive on only when the guest's side has taken what was received before."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        data = message.get("bytes")
        if data is None:
            data = (message.get("text") or "").encode()
        try:
            await console.write(data)
        except InsulaError:
            # The machine has ended; what it printed last is still on its way to the client.
            await hung_up(websocket)
            return
