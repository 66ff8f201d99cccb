"""The store: what everything in a home takes, what is wrong with it, and removing what nobody needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from insula.control.control import VerbRequest
from insula.model.housekeeping import CheckSpec, PruneSpec, StoreCheck, Usage
from insula.server.answer import submit_and_answer, verb_responses
from insula.server.desk import desk_of
from insula.server.parameters import Wait
from insula.server.problems import problems
from insula.server.respond import json_answer

router = APIRouter(prefix="/v1/system", tags=["system"], responses=problems())


@router.get("/usage", operation_id="get_usage", response_model=Usage)
async def get_usage(
    request: Request,
    parts: Annotated[bool, Query(description="Each machine, volume, image ... too.")] = False,
) -> Response:
    """What everything takes, by kind: on the disk, of its own and shared, and of the host's memory."""
    usage = await desk_of(request).control.node.housekeeping.usage()
    return json_answer(usage if parts else usage.model_copy(update={"parts": ()}))


@router.get("/check", operation_id="check_store", response_model=StoreCheck)
async def check_store(request: Request) -> Response:
    """What is not as it should be, and the command that mends it. Disks are not looked into."""
    return json_answer(await desk_of(request).control.node.housekeeping.check())


@router.post("/check", operation_id="check_disks", response_model=None, responses=verb_responses())
async def check_disks(request: Request, body: CheckSpec | None = None, wait: Wait = 0) -> Response:
    """Look likewise, and with `disks` into each disk that no running machine has open: an operation with
    progress, whose outcome is what a GET answers."""
    said = (body or CheckSpec()).model_dump(mode="json")
    return await submit_and_answer(request, VerbRequest("system-check", parameters=said), wait)


@router.post("/prune", operation_id="prune_store", response_model=None, responses=verb_responses())
async def prune_store(request: Request, body: PruneSpec | None = None, wait: Wait = 0) -> Response:
    """Remove what a check calls `remedy: prune`, and of what is `lost` that which is named."""
    said = (body or PruneSpec()).model_dump(mode="json")
    return await submit_and_answer(request, VerbRequest("system-prune", parameters=said), wait)
