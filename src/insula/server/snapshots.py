"""Snapshots of a machine: see them, make one, go back to one, remove one."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from insula.control.control import VerbRequest
from insula.control.snapshots import SnapshotState
from insula.model.base import Value
from insula.model.snapshot import SnapshotSpec
from insula.server.answer import submit_and_answer, verb_responses
from insula.server.desk import desk_of
from insula.server.parameters import IfMatch, Wait, parse_if_match
from insula.server.problems import problems
from insula.server.respond import json_answer, json_array

router = APIRouter(
    prefix="/v1/projects/{project}/machines/{name}/snapshots", tags=["snapshots"], responses=problems()
)

_EXAMPLES: Any = {
    "disks": {"summary": "Disks, with file systems at rest", "value": {"name": "before", "quiesce": True}},
    "memory": {"summary": "Disks and memory", "value": {"name": "before", "memory": True}},
}


class RestoreParameters(Value):
    """start: let it run even where no memory was kept. disks_only: leave the memory that was kept."""

    start: bool = False
    disks_only: bool = False


class SnapshotDiskView(Value):
    """A disk in a snapshot. size_bytes: what the guest saw. volume: its name, if it is one."""

    id: str
    size_bytes: int
    volume: str | None


class SnapshotView(Value):
    """A snapshot. parent: its name. depth: in the tree. current: the machine stands on it.

    phase: what the machine did. memory_bytes: of its memory on the host's disk, null where none was kept.
    exclusive_bytes: what its removal would free at once.
    """

    name: str
    uid: str
    project: str
    machine: str
    parent: str | None
    depth: int
    current: bool
    whole: bool
    taken: datetime | None
    description: str
    phase: Literal["running", "paused", "off"]
    memory_bytes: int | None
    quiesced: bool
    stood_seconds: float
    exclusive_bytes: int
    disks: tuple[SnapshotDiskView, ...]


class LossesView(Value):
    """What a restore would lose. memory: what the machine has in memory. written_bytes: by disk, at most.

    detached: volumes that the machine has and had not. since: when the snapshot was taken.
    """

    since: datetime | None
    memory: bool
    written_bytes: dict[str, int]
    detached: tuple[str, ...]


def view_snapshot(state: SnapshotState) -> SnapshotView:
    document = state.document
    volumes = {
        device.id: volume.name
        for device in document.machine.devices
        if (volume := getattr(device, "volume", None)) is not None
    }
    return SnapshotView(
        name=document.name,
        uid=document.uid,
        project=document.project,
        machine=state.machine,
        parent=state.parent,
        depth=state.depth,
        current=state.current,
        whole=document.whole,
        taken=document.taken,
        description=document.description,
        phase=document.phase,
        memory_bytes=document.memory.size_bytes if document.memory is not None else None,
        quiesced=document.quiesced,
        stood_seconds=document.stood_seconds,
        exclusive_bytes=state.exclusive_bytes,
        disks=tuple(
            SnapshotDiskView(id=disk.id, size_bytes=disk.size_bytes, volume=volumes.get(disk.id))
            for disk in document.disks
        ),
    )


@router.get("", operation_id="list_snapshots", response_model=list[SnapshotView], responses=problems(404))
async def list_snapshots(request: Request, project: str, name: str) -> Response:
    """The machine's snapshots as a tree: parents before their children, oldest first."""
    states = desk_of(request).control.snapshots.all(project, name)
    return json_array(map(view_snapshot, states))


@router.post(
    "", operation_id="create_snapshot", response_model=None, responses=verb_responses(412, finished=201)
)
async def create_snapshot(
    request: Request,
    project: str,
    name: str,
    spec: Annotated[SnapshotSpec | None, Body(openapi_examples=_EXAMPLES)] = None,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Keep the machine's disks, or disks and memory, as they are now; it goes on after a blink."""
    said = (spec or SnapshotSpec()).model_dump(mode="json", exclude_none=True)
    verb = VerbRequest("snapshot-create", project, name, said, parse_if_match(if_match))
    return await submit_and_answer(request, verb, wait, finished=201)


@router.get("/{snapshot}", operation_id="get_snapshot", response_model=SnapshotView, responses=problems(404))
async def get_snapshot(request: Request, project: str, name: str, snapshot: str) -> Response:
    """One snapshot."""
    return json_answer(view_snapshot(desk_of(request).control.snapshots.find(project, name, snapshot)))


@router.get(
    "/{snapshot}/losses", operation_id="get_losses", response_model=LossesView, responses=problems(404, 409)
)
async def get_losses(request: Request, project: str, name: str, snapshot: str) -> Response:
    """What would be lost if the machine were restored to this snapshot now."""
    losses = desk_of(request).control.snapshots.losses(project, name, snapshot)
    return json_answer(LossesView(**vars(losses)))


@router.post(
    "/{snapshot}/restore",
    operation_id="restore_snapshot",
    response_model=None,
    responses=verb_responses(412),
)
async def restore_snapshot(
    request: Request,
    project: str,
    name: str,
    snapshot: str,
    body: Annotated[RestoreParameters | None, Body()] = None,
    wait: Wait = 0,
    if_match: IfMatch = None,
) -> Response:
    """Make the machine what it was; what it is now is lost (see `losses`). With memory it goes on there."""
    said = {"name": snapshot, **(body or RestoreParameters()).model_dump(mode="json")}
    verb = VerbRequest("snapshot-restore", project, name, said, parse_if_match(if_match))
    return await submit_and_answer(request, verb, wait)


@router.delete(
    "/{snapshot}", operation_id="remove_snapshot", response_model=None, responses=verb_responses(412)
)
async def remove_snapshot(
    request: Request, project: str, name: str, snapshot: str, wait: Wait = 0, if_match: IfMatch = None
) -> Response:
    """Remove a snapshot. The outcome names the operation that merges the layers it leaves, while the machine
    runs."""
    verb = VerbRequest("snapshot-rm", project, name, {"name": snapshot}, parse_if_match(if_match))
    return await submit_and_answer(request, verb, wait)
