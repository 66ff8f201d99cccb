"""The host: what it has, and what it lacks."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from insula.model.host import Finding, HostFacts
from insula.server.desk import desk_of
from insula.server.problems import problems
from insula.server.respond import json_answer, json_array

router = APIRouter(tags=["host"], responses=problems())


@router.get("/v1/host", operation_id="get_host", response_model=HostFacts)
async def get_host(request: Request) -> Response:
    """Processors, memory, and the accelerator that 'auto' means here, with the reason."""
    return json_answer(await desk_of(request).control.node.host_facts())


@router.get("/v1/host/findings", operation_id="examine_host", response_model=list[Finding])
async def examine_host(request: Request) -> Response:
    """What `insula doctor` prints: each thing Insula can use, its state, and the command that mends it."""
    return json_array(await desk_of(request).control.node.examine_host())
