"""Commands in a guest as a websocket: streams apart, input, signals, and how it ended.

  client: {"argv": [...], ...}                                            (text, first)
  server: {"type": "started"}
          0x01 DATA | 0x02 DATA  ...                                    (binary: stdout, stderr)
  client: 0x00 DATA ...                                                 (binary: stdin)
          {"type": "stdin-eof"} | {"type": "signal", "number": N}
          {"type": "resize", "rows": N, "columns": N}
  server: {"type": "exit", "code": N|null, "signal": N|null, "status": N}   close 1000
       or {"type": "error", "problem": {...}}                               close 1011

Nothing is buffered here: output waits in the guest until the client has taken what came before, input waits
in the client until the command has. Whoever of command, client and daemon ends first ends the rest.
"""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from insula.control.control import MachineState, VerbRequest
from insula.control.port import ExecRequest
from insula.engine.agent.protocol import ExecSession, ExitStatus
from insula.kit.errors import InsulaError
from insula.model.base import BadDocument, Duration, Value, bad_document
from insula.server.bridge import close_politely, close_with_error, hung_up
from insula.server.desk import Desk, desk_of
from insula.server.problems import as_insula_error
from insula.server.race import first_of

log = logging.getLogger(__name__)

STDIN, STDOUT, STDERR = 0, 1, 2
_CHANNEL = {"stdout": bytes([STDOUT]), "stderr": bytes([STDERR])}
Size16 = Annotated[int, Field(ge=1, le=65535)]  # struct winsize has unsigned shorts (ioctl_tty(2))


class ExecStart(Value):
    """The first message. timeout: seconds to wait for the guest's agent (None: the node decides)."""

    argv: Annotated[tuple[str, ...], Field(min_length=1)]
    environment: dict[str, str] = Field(default_factory=dict)
    working_directory: str | None = None
    user: str | None = None
    tty: bool = False
    rows: Size16 = 24
    columns: Size16 = 80
    timeout: Annotated[Duration, Field(ge=0)] | None = None


class StdinEof(Value):
    type: Literal["stdin-eof"]


class SendSignal(Value):
    type: Literal["signal"]
    number: Annotated[int, Field(ge=1, le=64)]


class Resize(Value):
    type: Literal["resize"]
    rows: Size16
    columns: Size16


Order = StdinEof | SendSignal | Resize
_ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="type")])
_START = TypeAdapter(ExecStart)


async def exec_command(websocket: WebSocket) -> None:
    """attached=true in the query: an ephemeral machine is removed when the client goes away before the
    command has ended."""
    project, name = websocket.path_params["project"], websocket.path_params["name"]
    attached = websocket.query_params.get("attached", "") in ("true", "1")
    desk = desk_of(websocket)
    await websocket.accept()
    state: MachineState | None = None
    ended: ExitStatus | None = None
    told = False
    try:
        state = await desk.control.find_machine(project, name)
        ended = await _run(desk, websocket, state)
        if ended is not None:
            await _send_json(websocket, _exit_message(ended))
            told = True
    except (WebSocketDisconnect, ConnectionError):
        pass
    except Exception as error:
        told = await close_with_error(websocket, as_insula_error(error, f"a command in machine '{name}'"))
    else:
        await close_politely(websocket)
    finally:
        if attached and not told and state is not None:
            await _remove_ephemeral(desk, state)


async def _run(desk: Desk, websocket: WebSocket, state: MachineState) -> ExitStatus | None:
    """Run the command the client asks for; how it ended, or None when the client went away before."""
    first = await websocket.receive()
    if first["type"] == "websocket.disconnect":
        return None
    start = _parse(_START, first.get("text"), "command")
    opened = await first_of(
        session=desk.control.node.open_exec(state.document.uid, _exec_request(start)),
        hung_up=hung_up(websocket),
    )
    session: ExecSession | None = opened.get("session")
    if session is None:
        return None
    try:
        if "hung_up" in opened:
            return None
        await _send_json(websocket, {"type": "started"})
        ended = await first_of(
            exit=_command_to_client(session, websocket),
            gone=_client_to_command(session, websocket),
            hung_up=hung_up(websocket),
        )
        status: ExitStatus | None = ended.get("exit")
        return status
    finally:
        await session.close()


async def _command_to_client(session: ExecSession, websocket: WebSocket) -> ExitStatus:
    async for stream, data in session.output():
        await websocket.send_bytes(_CHANNEL[stream] + data)
    return await session.wait()


async def _client_to_command(session: ExecSession, websocket: WebSocket) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        data = message.get("bytes")
        if data is None:
            await _obey(session, _parse(_ORDER, message.get("text"), "message"))
        elif data[:1] == bytes([STDIN]):
            await session.write_stdin(data[1:])
        else:
            raise BadDocument(
                "The message is not valid: a client's bytes begin with 0x00, the channel of stdin."
            )


async def _obey(session: ExecSession, order: Order) -> None:
    if isinstance(order, StdinEof):
        await session.close_stdin()
    elif isinstance(order, SendSignal):
        await session.send_signal(order.number)
    else:
        await session.resize(order.rows, order.columns)


async def _remove_ephemeral(desk: Desk, state: MachineState) -> None:
    """Nobody is there any more to remove the machine that was made for this command only."""
    machine = state.document
    if not machine.ephemeral or desk.daemon.closing.is_set():
        return
    try:
        await desk.control.submit(VerbRequest("rm", machine.project, machine.name, {"force": True}))
    except InsulaError as error:
        log.info("Ephemeral machine '%s' is not removed: %s", machine.name, error)


def _exec_request(start: ExecStart) -> ExecRequest:
    return ExecRequest(
        argv=start.argv,
        environment=tuple(start.environment.items()),
        working_directory=start.working_directory,
        user=start.user,
        tty=start.tty,
        rows=start.rows,
        columns=start.columns,
        timeout=start.timeout,
    )


def _exit_message(ended: ExitStatus) -> dict[str, Any]:
    return {"type": "exit", "code": ended.code, "signal": ended.signal, "status": ended.shell_status}


async def _send_json(websocket: WebSocket, message: dict[str, Any]) -> None:
    await websocket.send_text(json.dumps(message))


def _parse(kind: TypeAdapter[Any], text: str | None, what: str) -> Any:
    if text is None:
        raise BadDocument(f"The {what} is not valid: it must be a text message with JSON.")
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        raise bad_document(error.errors(include_url=False), what) from None
