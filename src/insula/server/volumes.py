"""Volumes: see them, make one, copy one, let one grow, remove one. Attaching is a verb on a machine."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from insula.control.control import VerbRequest
from insula.model.base import Name, Value
from insula.model.volume import VolumeSize, VolumeSpec
from insula.server.answer import submit_and_answer, verb_responses
from insula.server.desk import desk_of
from insula.server.parameters import Wait
from insula.server.problems import problems
from insula.server.respond import json_answer, json_array
from insula.server.views import VolumeView, view_volume

router = APIRouter(tags=["volumes"], responses=problems())

_VOLUMES = "/v1/projects/{project}/volumes"
_EXAMPLES: Any = {"data": {"summary": "A volume of 10 GiB", "value": {"name": "data", "size": "10GiB"}}}


class ResizeParameters(Value):
    """size: the new one, not below the present one."""

    size: VolumeSize


class CloneParameters(Value):
    """name: of the new volume, a DNS label."""

    name: Name


async def _list(request: Request, project: str | None) -> Response:
    desk = desk_of(request)
    states = await desk.control.list_volumes(project)
    return json_array(view_volume(state, desk.daemon.home) for state in states)


@router.get("/v1/volumes", operation_id="list_all_volumes", response_model=list[VolumeView])
async def list_all_volumes(request: Request) -> Response:
    """The volumes of all projects."""
    return await _list(request, None)


@router.get(_VOLUMES, operation_id="list_volumes", response_model=list[VolumeView])
async def list_volumes(request: Request, project: str) -> Response:
    """The volumes of a project."""
    return await _list(request, project)


@router.post(
    _VOLUMES, operation_id="create_volume", response_model=None, responses=verb_responses(finished=201)
)
async def create_volume(
    request: Request,
    project: str,
    spec: Annotated[VolumeSpec, Body(openapi_examples=_EXAMPLES)],
    wait: Wait = 0,
) -> Response:
    """Make an empty volume; it takes no space until something is written."""
    verb = VerbRequest("volume-create", project, spec.name, {"size": spec.size})
    return await submit_and_answer(request, verb, wait, finished=201)


@router.get(
    _VOLUMES + "/{name}", operation_id="get_volume", response_model=VolumeView, responses=problems(404)
)
async def get_volume(request: Request, project: str, name: str) -> Response:
    """One volume, and which machines have it."""
    desk = desk_of(request)
    return json_answer(view_volume(await desk.control.find_volume(project, name), desk.daemon.home))


@router.post(
    _VOLUMES + "/{name}/resize",
    operation_id="resize_volume",
    response_model=None,
    responses=verb_responses(),
)
async def resize_volume(
    request: Request, project: str, name: str, body: ResizeParameters, wait: Wait = 0
) -> Response:
    """Let the volume grow, also while a machine that has it runs. It never shrinks."""
    verb = VerbRequest("volume-resize", project, name, {"size": body.size})
    return await submit_and_answer(request, verb, wait)


@router.post(
    _VOLUMES + "/{name}/clone",
    operation_id="clone_volume",
    response_model=None,
    responses=verb_responses(finished=201),
)
async def clone_volume(
    request: Request, project: str, name: str, body: CloneParameters, wait: Wait = 0
) -> Response:
    """Make a whole, independent copy. Refused while a machine may be writing to the volume."""
    verb = VerbRequest("volume-clone", project, name, {"name": body.name})
    return await submit_and_answer(request, verb, wait, finished=201)


@router.delete(
    _VOLUMES + "/{name}", operation_id="remove_volume", response_model=None, responses=verb_responses()
)
async def remove_volume(request: Request, project: str, name: str, wait: Wait = 0) -> Response:
    """Remove the volume and all that is on it, for good. Refused as long as a machine has it."""
    return await submit_and_answer(request, VerbRequest("volume-rm", project, name), wait)
