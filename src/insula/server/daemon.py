"""The daemon itself: which version, how it is, and how to end it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from insula.server.desk import desk_of
from insula.server.problems import problems
from insula.server.respond import json_answer, raw_json
from insula.server.views import DaemonView, VersionView, view_daemon

router = APIRouter(tags=["daemon"], responses=problems())


@router.get("/v1/version", operation_id="get_version", response_model=VersionView)
async def get_version(request: Request) -> Response:
    """The version of the daemon and of its API. Answered to clients of any version."""
    return json_answer(VersionView(version=desk_of(request).daemon.version))


@router.get("/v1/daemon", operation_id="get_daemon", response_model=DaemonView)
async def get_daemon(request: Request) -> Response:
    """The daemon's process, home and memory, and what it recovered when it started."""
    desk = desk_of(request)
    states = await desk.control.list_machines(None)
    return json_answer(view_daemon(desk.daemon, states))


@router.post(
    "/v1/daemon/stop",
    operation_id="stop_daemon",
    status_code=202,
    responses={202: {"description": "It ends now.", "content": {"application/json": {"example": {}}}}},
)
async def stop_daemon(request: Request) -> Response:
    """End the daemon after this answer. Machines go on; the next command starts a daemon that adopts them."""
    desk_of(request).daemon.stop()
    return raw_json(b"{}", 202)
