"""create: a new machine of an image, started at once when asked; the image is built first if it must be."""

from __future__ import annotations

import secrets
from typing import Any

from insula.control.desk import Conclusion, Desk, Intent
from insula.control.media import with_cdrom
from insula.control.request import VerbRequest
from insula.control.volumes import with_volumes
from insula.kit.clock import utc_now
from insula.kit.errors import Conflict, NotFound
from insula.model.base import new_uid, parse, require_name
from insula.model.image import Image
from insula.model.machine import Machine, MachineSpec, Power, resolve
from insula.model.operation import Operation
from insula.planner.admission import admit
from insula.storage.seed import check_cloud_init
from insula.store.protocol import Delete, Put


class MachineNameTaken(Conflict):
    """Another machine of the project has the name."""

    code = "machine-name-taken"


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises BadDocument, BadName, MachineNameTaken, ImageNotFound, MemoryExceedsHost, BadCloudInit,
    VolumeNotFound, VolumeInUse, VolumeBusy, NotAMedium, and what resolve() does.

    Where the image is not there but can be built, the operation waits (`awaiting`) and its machine is
    resolved and recorded by `resume_after_build` once the image is.
    """
    raw = request.parameters.get("spec") or {}
    if isinstance(raw.get("name"), str):
        require_name(raw["name"])
    spec = parse(MachineSpec, raw, "machine")
    name = spec.name or request.name or _choose_name(desk, spec.image, request.project)
    refuse_taken_name(desk, request.project, name)
    asked = {key: bool(request.parameters.get(key)) for key in ("start", "cold")}
    parameters: dict[str, Any] = {"spec": spec.model_dump(mode="json"), **asked}
    try:
        image = desk.node.images.get(spec.image)
    except NotFound:
        if spec.image not in {recipe.name for recipe in desk.node.images.recipes()}:
            raise
        return Intent(_awaiting(request, name, parameters))
    machine = await resolve_and_admit(desk, spec, image, new_uid(), name, request.project)
    if parameters["start"]:
        machine = machine.changed(power=Power.ON)
    machine, untouched = with_volumes(desk, machine, spec.volumes)
    machine = await with_cdrom(desk, machine, spec.cdrom)
    operation = desk.operation(VerbRequest("create", request.project, name, parameters), machine)
    changes = (Put(machine, expect=0), *untouched)
    return Intent(operation, changes, (desk.event("machine.created", machine),))


def _awaiting(request: VerbRequest, name: str, parameters: dict[str, object]) -> Operation:
    return Operation(
        uid=new_uid(),
        project=request.project,
        name=name,
        created=utc_now(),
        verb="create",
        target_kind="machine",
        target=new_uid(),
        parameters={**parameters, "awaiting": True},
    )


async def resolve_and_admit(
    desk: Desk, spec: MachineSpec, image: Image, uid: str, name: str, project: str
) -> Machine:
    """The document of a spec, checked against this host."""
    machine = resolve(spec, image, uid=uid, name=name, project=project, created=utc_now())
    if machine.cloud_init is not None:
        check_cloud_init(machine.cloud_init)
    admit(machine, await desk.node.host_facts())
    return machine


async def resume_after_build(desk: Desk, operation: Operation) -> Intent:
    """What to write once the image that an awaiting create needs is there. Raises like `intend`."""
    spec = parse(MachineSpec, operation.parameters["spec"], "machine")
    refuse_taken_name(desk, operation.project, operation.name)
    image = desk.node.images.get(spec.image)
    machine = await resolve_and_admit(desk, spec, image, operation.target, operation.name, operation.project)
    if operation.parameters["start"]:
        machine = machine.changed(power=Power.ON)
    machine, untouched = with_volumes(desk, machine, spec.volumes)
    machine = await with_cdrom(desk, machine, spec.cdrom)
    parameters = {key: value for key, value in operation.parameters.items() if key != "awaiting"}
    ready = operation.model_copy(update={"parameters": parameters, "progress": None})
    return Intent(ready, (Put(machine, expect=0), *untouched), (desk.event("machine.created", machine),))


def refuse_taken_name(desk: Desk, project: str, name: str) -> None:
    """Raises MachineNameTaken."""
    if desk.store.find(Machine, project, name) is not None:
        raise MachineNameTaken(
            f"The name '{name}' is taken by another machine.",
            hint=f"Choose another name, or remove that machine: insula rm {name}",
        )


def _choose_name(desk: Desk, image: str, project: str) -> str:
    while True:
        name = f"{image[:50]}-{secrets.token_hex(2)}"
        if desk.store.find(Machine, project, name) is None:
            return name


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    if succeeded:
        return Conclusion()
    stored = desk.store.get(Machine, operation.target)
    if stored is None:
        return Conclusion()
    gone = desk.event("machine.removed", stored.document, reason="creation failed")
    return Conclusion((Delete(Machine, operation.target),), (gone,))
