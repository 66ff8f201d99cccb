"""Operations: what was asked for, how far it is, and how to call it off."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from insula.server.desk import desk_of
from insula.server.live import while_wanted
from insula.server.parameters import Wait
from insula.server.problems import problems
from insula.server.respond import raw_json
from insula.server.views import OperationView, render_operation

router = APIRouter(tags=["operations"], responses=problems())


@router.get("/v1/operations", operation_id="list_operations", response_model=list[OperationView])
async def list_operations(
    request: Request,
    all: Annotated[bool, Query(description="Finished ones, too.")] = False,
) -> Response:
    """The operations that are not finished; with `all`, every one that is remembered."""
    operations = await desk_of(request).control.list_operations(active=not all)
    return raw_json(b"[" + b",".join(render_operation(operation) for operation in operations) + b"]")


@router.get(
    "/v1/operations/{uid}",
    operation_id="get_operation",
    response_model=OperationView,
    responses=problems(404),
)
async def get_operation(request: Request, uid: str, wait: Wait = 0) -> Response:
    """The operation: final, or as it is when `wait` seconds have passed."""
    desk = desk_of(request)
    operation = await desk.control.find_operation(uid)
    if wait > 0 and not operation.state.is_final:
        waiting = desk.control.wait_operation(uid, wait)
        operation = await while_wanted(request, desk.daemon, waiting) or operation
    return raw_json(render_operation(operation))


@router.post(
    "/v1/operations/{uid}/cancel",
    operation_id="cancel_operation",
    status_code=202,
    response_model=OperationView,
    responses=problems(404),
)
async def cancel_operation(request: Request, uid: str) -> Response:
    """Ask for the operation's end; what it did so far is undone. Wait for it to see when it has ended."""
    operation = await desk_of(request).control.cancel_operation(uid)
    headers = {"Location": f"/v1/operations/{operation.uid}"}
    return raw_json(render_operation(operation), 202, headers)
