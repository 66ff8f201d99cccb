"""Machines: see them, make one, remove one, wait for one, read its serial log."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from starlette.responses import Response

from insula.control.control import MachineState, VerbRequest
from insula.kit.units import format_duration
from insula.model.base import BadDocument
from insula.model.machine import MachineSpec
from insula.model.observation import Phase
from insula.server.answer import submit_and_answer, verb_responses
from insula.server.desk import Desk, desk_of
from insula.server.live import LiveResponse, while_wanted
from insula.server.parameters import IfMatch, Wait, parse_if_match
from insula.server.problems import DaemonStopping, WaitTimeout, problems
from insula.server.respond import json_answer, json_array
from insula.server.views import MachineView, view_machine

router = APIRouter(tags=["machines"], responses=problems())

_ETAG: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"ETag": {"description": 'The generation: "3".', "schema": {"type": "string"}}}}
}
_EXAMPLES: Any = {
    "smallest": {"summary": "The image's own defaults", "value": {"image": "micro"}},
    "server": {
        "summary": "A server with a published port",
        "value": {
            "image": "debian-12",
            "name": "web",
            "cpus": 2,
            "memory": "1GiB",
            "network": "isolated",
            "publish": ["2222:22"],
            "cloud_init": {"user": "ada", "ssh_keys": ["ssh-ed25519 AAAA... ada@example"]},
            "run_policy": "always",
        },
    },
}


def _machine_answer(desk: Desk, state: MachineState) -> Response:
    etag = {"ETag": f'"{state.document.generation}"'}
    return json_answer(view_machine(state, desk.daemon.home), headers=etag)


async def _list(request: Request, project: str | None) -> Response:
    desk = desk_of(request)
    states = await desk.control.list_machines(project)
    return json_array(view_machine(state, desk.daemon.home) for state in states)


@router.get("/v1/machines", operation_id="list_all_machines", response_model=list[MachineView])
async def list_all_machines(request: Request) -> Response:
    """The machines of all projects."""
    return await _list(request, None)


@router.get("/v1/projects/{project}/machines", operation_id="list_machines", response_model=list[MachineView])
async def list_machines(request: Request, project: str) -> Response:
    """The machines of a project."""
    return await _list(request, project)


@router.post(
    "/v1/projects/{project}/machines",
    operation_id="create_machine",
    response_model=None,
    responses=verb_responses(finished=201),
)
async def create_machine(
    request: Request,
    project: str,
    spec: Annotated[MachineSpec, Body(openapi_examples=_EXAMPLES)],
    start: Annotated[bool, Query(description="Start it, too.")] = False,
    cold: Annotated[bool, Query(description="Boot it, even if it could be forked from a template.")] = False,
    wait: Wait = 0,
) -> Response:
    """Make a machine. An image that is not built yet is built first; `progress` then tells of that."""
    document = spec.model_dump(mode="json", exclude_unset=True)
    verb = VerbRequest("create", project, spec.name or "", {"spec": document, "start": start, "cold": cold})
    return await submit_and_answer(request, verb, wait, finished=201)


@router.get(
    "/v1/projects/{project}/machines/{name}",
    operation_id="get_machine",
    response_model=MachineView,
    responses={**_ETAG, **problems(404)},
)
async def get_machine(request: Request, project: str, name: str) -> Response:
    """One machine: what is wanted and what is true. The ETag is its generation, for `If-Match`."""
    desk = desk_of(request)
    return _machine_answer(desk, await desk.control.find_machine(project, name))


@router.delete(
    "/v1/projects/{project}/machines/{name}",
    operation_id="remove_machine",
    response_model=None,
    responses=verb_responses(412),
)
async def remove_machine(
    request: Request,
    project: str,
    name: str,
    force: Annotated[bool, Query(description="Even if it runs: it is killed first.")] = False,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Remove a machine with its disks and logs, for good."""
    verb = VerbRequest("rm", project, name, {"force": force}, parse_if_match(if_match))
    return await submit_and_answer(request, verb, wait)


@router.get(
    "/v1/projects/{project}/machines/{name}/wait",
    operation_id="wait_machine",
    response_model=MachineView,
    responses={**_ETAG, **problems(404, 408)},
)
async def wait_machine(
    request: Request,
    project: str,
    name: str,
    phase: Annotated[
        str,
        Query(
            description=f"One or more of {', '.join(Phase)}, with commas between.",
            examples=["stopped,crashed"],
        ),
    ],
    timeout: Annotated[
        float | None, Query(ge=0, allow_inf_nan=False, description="Seconds; absent: as long as it takes.")
    ] = None,
) -> Response:
    """The machine once it is in one of the phases; 408 `wait-timeout` when it is not in time."""
    desk = desk_of(request)
    phases = _parse_phases(phase)
    waiting = desk.control.wait_machine(project, name, phases, timeout)
    state = await while_wanted(request, desk.daemon, waiting)
    if state is None:
        raise DaemonStopping(
            f"The daemon ends, so machine '{name}' is not waited for.", hint="Try again.", retry_after=1.0
        )
    if state.observation.phase not in phases:
        waited = f" within {format_duration(timeout)}" if timeout is not None else ""
        raise WaitTimeout(
            f"Machine '{name}' did not become {' or '.join(sorted(phases))}{waited}: "
            f"it is {state.observation.phase}.",
            hint="Wait longer, or see what it does: insula logs " + name,
            evidence={"phase": state.observation.phase.value},
        )
    return _machine_answer(desk, state)


def _parse_phases(text: str) -> frozenset[Phase]:
    names = [part.strip() for part in text.split(",")]
    unknown = [name for name in names if name not in set(Phase)]
    if unknown:
        rule = f"must be one or more of {', '.join(Phase)}"
        raise BadDocument(
            f"The request is not valid: query.phase: {rule}.",
            hint="Write several with commas between: stopped,crashed.",
            fields=[{"path": "query.phase", "rule": rule, "value": name} for name in unknown],
        )
    return frozenset(map(Phase, names))


@router.get(
    "/v1/projects/{project}/machines/{name}/log",
    operation_id="read_log",
    response_model=None,
    responses={
        200: {
            "description": "What the guest printed, byte for byte; chunked as it comes with `follow`.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **problems(404),
    },
)
async def read_log(
    request: Request,
    project: str,
    name: str,
    follow: Annotated[bool, Query(description="Go on with what the guest prints.")] = False,
    tail: Annotated[int | None, Query(ge=0, lt=2**31, description="Only the last lines.")] = None,
) -> Response:
    """The serial log of the machine."""
    desk = desk_of(request)
    state = await desk.control.find_machine(project, name)
    pieces = desk.control.node.read_log(state.document.uid, follow=follow, tail=tail)
    return LiveResponse(pieces, desk.daemon, "text/plain")
