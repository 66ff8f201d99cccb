"""What every route has at hand: control, and the daemon it runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from insula.control.control import Control
from insula.server.info import DaemonInfo

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection


@dataclass(frozen=True)
class Desk:
    control: Control
    daemon: DaemonInfo


def desk_of(connection: HTTPConnection) -> Desk:
    """The desk of the application that received this request or websocket."""
    desk: Desk = connection.app.state.desk
    return desk
