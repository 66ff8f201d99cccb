"""The verbs on a machine: start, stop, restart, reset, pause, resume, suspend, kill, rename, fork, attach,
detach, cdrom-insert, cdrom-eject."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import Field
from starlette.responses import Response

from insula.control.control import VerbRequest
from insula.model.base import Duration, Name, Value
from insula.model.device.cdrom import Insertion
from insula.model.volume import VolumeMount
from insula.server.answer import submit_and_answer, verb_responses
from insula.server.parameters import IfMatch, Wait, parse_if_match
from insula.server.problems import problems

router = APIRouter(prefix="/v1/projects/{project}/machines/{name}", tags=["machines"], responses=problems())


class NoParameters(Value):
    """Nothing can be said of this verb."""


class StartParameters(Value):
    """cold: boot a machine that is suspended, and lose the memory that was saved of it (default: false)."""

    cold: bool | None = None


class StopParameters(Value):
    """timeout: how long the guest is given to shut down, in seconds or as '1m30s'.

    force: end it hard when it has not (true, the default), or leave it running and fail (false).
    """

    timeout: Annotated[Duration | None, Field(ge=0, examples=[30])] = None
    force: bool | None = None


class RenameParameters(Value):
    """name: the new one, a DNS label."""

    name: Name


class DetachParameters(Value):
    """volume: its name."""

    volume: Name


class EjectParameters(Value):
    """force: also from a guest that has locked it."""

    force: bool = False


class ForkParameters(Value):
    """count: siblings. names: of one, or a pattern in which {n} is its number (default: NAME-{n}).

    paused: each is paused once it has an identity of its own.
    """

    count: Annotated[int, Field(ge=1, examples=[8])] = 1
    names: str | None = None
    paused: bool = False


def _said(body: Value | None) -> dict[str, Any]:
    """What the caller said; the verb fills in the rest."""
    return {} if body is None else body.model_dump(mode="json", exclude_none=True)


async def _submit(
    request: Request, verb: str, body: Value | None, wait: float, if_match: str | None
) -> Response:
    """Submit the verb that the path names, on the machine that it names."""
    project, name = request.path_params["project"], request.path_params["name"]
    return await submit_and_answer(
        request, VerbRequest(verb, project, name, _said(body), parse_if_match(if_match)), wait
    )


def _add_simple(verb: str, description: str) -> None:
    """A verb without parameters."""

    async def handle(
        request: Request,
        project: str,
        name: str,
        body: NoParameters | None = None,
        wait: Wait = 0,
        if_match: IfMatch = None,
    ) -> Response:
        return await _submit(request, verb, body, wait, if_match)

    router.add_api_route(
        f"/{verb}",
        handle,
        methods=["POST"],
        operation_id=f"{verb}_machine",
        summary=f"{verb.capitalize()} Machine",
        description=description,
        response_model=None,
        responses=verb_responses(412),
    )


_add_simple("reset", "Press the reset button: the guest starts again without being asked.")
_add_simple("pause", "Hold the guest's processors; its memory stays.")
_add_simple("resume", "Let the guest's processors go on.")
_add_simple("suspend", "Save the machine's memory and end it; `start` lets it go on from there.")
_add_simple("kill", "End the machine at once, like pulling the plug.")


@router.post("/start", operation_id="start_machine", response_model=None, responses=verb_responses(412))
async def start_machine(
    request: Request,
    project: str,
    name: str,
    body: Annotated[StartParameters | None, Body()] = None,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Start the machine; done once the guest's processors run. One that is suspended goes on where it was."""
    return await _submit(request, "start", body, wait, if_match)


@router.post("/stop", operation_id="stop_machine", response_model=None, responses=verb_responses(412))
async def stop_machine(
    request: Request,
    project: str,
    name: str,
    body: Annotated[StopParameters | None, Body()] = None,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Ask the guest to shut down (agent, then power button), wait, and end it hard if it does not."""
    return await _submit(request, "stop", body, wait, if_match)


@router.post("/restart", operation_id="restart_machine", response_model=None, responses=verb_responses(412))
async def restart_machine(
    request: Request,
    project: str,
    name: str,
    body: Annotated[StopParameters | None, Body()] = None,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Stop the machine as with `stop`, and start it again."""
    return await _submit(request, "restart", body, wait, if_match)


@router.post("/rename", operation_id="rename_machine", response_model=None, responses=verb_responses(412))
async def rename_machine(
    request: Request,
    project: str,
    name: str,
    body: RenameParameters,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Give the machine another name; uid, disks and addresses stay."""
    return await _submit(request, "rename", body, wait, if_match)


@router.post("/attach", operation_id="attach_volume", response_model=None, responses=verb_responses(412))
async def attach_volume(
    request: Request,
    project: str,
    name: str,
    body: VolumeMount,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Give the machine a volume, at once when it runs. One machine may write to it, or any number read it."""
    return await _submit(request, "attach", body, wait, if_match)


@router.post("/detach", operation_id="detach_volume", response_model=None, responses=verb_responses(412))
async def detach_volume(
    request: Request,
    project: str,
    name: str,
    body: DetachParameters,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Take a volume back; done once the guest has let go of it, refused (409) when it does not."""
    return await _submit(request, "detach", body, wait, if_match)


@router.post("/cdrom-insert", operation_id="insert_cdrom", response_model=None, responses=verb_responses(412))
async def insert_cdrom(
    request: Request,
    project: str,
    name: str,
    body: Insertion,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Put an image into the machine's CD drive, at once when it runs, in place of what is in it.

    A machine without a drive gets one; on the bus `ata` only while it is off.
    """
    return await _submit(request, "cdrom-insert", body, wait, if_match)


@router.post("/cdrom-eject", operation_id="eject_cdrom", response_model=None, responses=verb_responses(412))
async def eject_cdrom(
    request: Request,
    project: str,
    name: str,
    body: Annotated[EjectParameters | None, Body()] = None,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Empty the machine's CD drive; refused (409) where the guest has locked it, unless forced."""
    return await _submit(request, "cdrom-eject", body, wait, if_match)


@router.post("/fork", operation_id="fork_machine", response_model=None, responses=verb_responses(412))
async def fork_machine(
    request: Request,
    project: str,
    name: str,
    body: Annotated[ForkParameters | None, Body()] = None,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Make siblings of the machine as it is now, memory and disks; it goes on after a blink.

    The outcome names the siblings, each with the operation that makes it.
    """
    return await _submit(request, "fork", body or ForkParameters(), wait, if_match)
