"""What the API shows, and its JSON: the Machine object, operations with their kind. No web framework here."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, create_model

from insula.control.control import MachineState, VolumeState
from insula.kit.paths import VOLUME_DISK, Home
from insula.model.base import Value
from insula.model.device import DeviceBase
from insula.model.device.cdrom import Cdrom, CdromBus
from insula.model.device.disk import Bus, Disk
from insula.model.device.nic import NetworkMode, Nic, Publish
from insula.model.image import Firmware
from insula.model.machine import MachineBoot, Power, RunPolicy
from insula.model.observation import AcceleratorFact, AgentState, ExitEvidence, Phase
from insula.model.operation import Operation
from insula.server.info import DaemonInfo
from insula.storage.recipe import Recipe
from insula.storage.volumes import allocated_bytes


class AttachedVolumeView(Value):
    """A volume that a machine has. serial: by which its guest finds it, as in /dev/disk/by-id."""

    name: str
    read_only: bool
    bus: Bus
    serial: str


class CdromView(Value):
    """The CD drive of a machine. image, image_digest: of the medium in it, null where it is empty."""

    bus: CdromBus
    image: str | None
    image_digest: str | None


class MachineView(Value):
    """A machine as the API and `insula ls --json` show it: what is wanted and what is true, in one object.

    The shape is stable: members are added, never removed or changed. directory: its files on the host.
    """

    name: str
    project: str
    uid: str
    generation: int
    phase: Phase
    since: datetime
    reason: str
    image: str
    image_digest: str
    cpus: int
    memory_bytes: int
    pid: int | None
    addresses: tuple[str, ...]
    created: datetime
    power: Power
    run_policy: RunPolicy
    ephemeral: bool
    boot: MachineBoot
    firmware: Firmware
    network: NetworkMode
    publish: tuple[Publish, ...]
    volumes: tuple[AttachedVolumeView, ...]
    cdrom: CdromView | None
    accelerator: AcceleratorFact | None
    engine_version: str
    agent: AgentState
    restarts: int
    directory: str
    last_exit: ExitEvidence | None


def view_machine(state: MachineState, home: Home) -> MachineView:
    """Put a machine's document and observation together. All values are checked already, so none is again."""
    document, seen = state.document, state.observation
    nic = next((device for device in document.devices if isinstance(device, Nic)), None)
    return MachineView.model_construct(
        name=document.name,
        project=document.project,
        uid=document.uid,
        generation=document.generation,
        phase=seen.phase,
        since=seen.since,
        reason=seen.reason,
        image=document.image.name,
        image_digest=document.image.digest,
        cpus=document.cpus,
        memory_bytes=document.memory_bytes,
        pid=seen.process.pid if seen.process is not None else None,
        addresses=seen.addresses,
        created=document.created,
        power=document.power,
        run_policy=document.run_policy,
        ephemeral=document.ephemeral,
        boot=document.boot,
        firmware=document.firmware,
        network=nic.mode if nic is not None else NetworkMode.NONE,
        publish=nic.publish if nic is not None else (),
        volumes=tuple(_attached_volumes(document.devices)),
        cdrom=_cdrom(document.cdrom),
        accelerator=seen.accelerator,
        engine_version=seen.engine_version,
        agent=seen.agent,
        restarts=seen.restarts,
        directory=str(home.machine(document.uid)),
        last_exit=seen.last_exit,
    )


def _attached_volumes(devices: Iterable[DeviceBase]) -> Iterable[AttachedVolumeView]:
    for device in devices:
        if isinstance(device, Disk) and device.volume is not None and device.bus != "flash":
            yield AttachedVolumeView.model_construct(
                name=device.volume.name, read_only=device.read_only, bus=device.bus, serial=device.serial
            )


def _cdrom(drive: Cdrom | None) -> CdromView | None:
    if drive is None:
        return None
    medium = drive.medium
    return CdromView.model_construct(
        bus=drive.bus,
        image=medium.name if medium is not None else None,
        image_digest=medium.digest if medium is not None else None,
    )


class VolumeUserView(Value):
    machine: str
    read_only: bool


class VolumeView(Value):
    """A volume. size_bytes: what a guest sees; allocated_bytes: what it takes on the host now."""

    name: str
    project: str
    uid: str
    generation: int
    created: datetime
    size_bytes: int
    allocated_bytes: int
    format: str
    serial: str
    attached_to: tuple[VolumeUserView, ...]
    directory: str


def view_volume(state: VolumeState, home: Home) -> VolumeView:
    document = state.document
    directory = home.volume(document.uid)
    return VolumeView(
        name=document.name,
        project=document.project,
        uid=document.uid,
        generation=document.generation,
        created=document.created,
        size_bytes=document.size_bytes,
        allocated_bytes=allocated_bytes(directory / VOLUME_DISK),
        format=document.format,
        serial=document.uid,
        attached_to=tuple(VolumeUserView(machine=m, read_only=ro) for m, ro in state.attached_to),
        directory=str(directory),
    )


# The document's fields as they are, and its kind, which within Insula is the class and not a field.
_FIELDS: dict[str, Any] = {
    "kind": (Literal["operation"], "operation"),
    **{name: (field.annotation, field) for name, field in Operation.model_fields.items()},
}
OperationView: type[BaseModel] = create_model(
    "Operation",
    __base__=Value,
    __doc__=Operation.__doc__,
    **_FIELDS,
)


def render_operation(operation: Operation) -> bytes:
    """The operation as JSON with its kind."""
    return b'{"kind":"operation",' + operation.model_dump_json().encode()[1:]


class RecipeView(Value):
    """What can be built here. built: an image of this name is in the store."""

    name: str
    summary: str
    kind: str
    built: bool


def view_recipe(recipe: Recipe, built: bool) -> RecipeView:
    return RecipeView(name=recipe.name, summary=recipe.summary, kind=recipe.kind, built=built)


class VersionView(Value):
    version: str
    api: Literal["v1"] = "v1"


class MachineCount(Value):
    """running: with a process, paused ones too."""

    running: int
    total: int


class DaemonView(Value):
    """recovered: what the daemon adopted, finished and undid when it started."""

    pid: int
    version: str
    started: datetime
    home: str
    socket: str
    resident_bytes: int
    machines: MachineCount
    recovered: tuple[str, ...]


def view_daemon(daemon: DaemonInfo, states: Iterable[MachineState]) -> DaemonView:
    phases = [state.observation.phase for state in states]
    return DaemonView(
        pid=daemon.pid,
        version=daemon.version,
        started=daemon.started,
        home=str(daemon.home.root),
        socket=str(daemon.socket),
        resident_bytes=daemon.resident_bytes(),
        machines=MachineCount(running=sum(phase.has_process for phase in phases), total=len(phases)),
        recovered=tuple(daemon.recovered),
    )


def render(value: BaseModel) -> bytes:
    """A value as JSON."""
    return value.model_dump_json().encode()


def render_array(values: Iterable[BaseModel]) -> bytes:
    """Values as a JSON array."""
    return b"[" + b",".join(map(render, values)) + b"]"
