"""The two websockets of the API: a machine's serial console, and commands in its guest.

OpenAPI cannot describe them, so they need nothing of the web framework but Starlette, which is there long
before it: after a crash of the daemon a guest answers as soon as its machine is adopted.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp

from insula.server.console import attach_console
from insula.server.desk import Desk
from insula.server.exec import exec_command
from insula.server.gate import Gate

_MACHINE = "/v1/projects/{project}/machines/{name}"
ROUTES = (
    WebSocketRoute(f"{_MACHINE}/console", attach_console),
    WebSocketRoute(f"{_MACHINE}/exec", exec_command),
)


def create_sockets(desk: Desk) -> ASGIApp:
    """The websockets alone, behind the gate."""
    app = Starlette(routes=ROUTES)
    app.state.desk = desk
    return Gate(app, desk.daemon)
