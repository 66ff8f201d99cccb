"""Machines: as written by a user, resolved into a document, and what may be changed later.

MachineSpec --resolve(image, names, host)--> Machine --changed()--> Machine, generation + 1
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from insula.kit.errors import Invalid
from insula.kit.paths import SEED_ISO
from insula.model.base import Document, Name, Size, Value, format_size
from insula.model.cloudinit import CloudInit
from insula.model.device import Device
from insula.model.device.agent import AgentPort
from insula.model.device.cdrom import Cdrom, CdromText
from insula.model.device.disk import Disk, variables_disk
from insula.model.device.nic import NetworkMode, Nic, PublishText
from insula.model.device.rng import Rng
from insula.model.device.serial import Serial
from insula.model.image import BootMode, Firmware, Image, ImageRef, MachineType
from insula.model.volume import VolumeMountText

LOWEST_MEMORY = 32 * 2**20  # below this no kernel we know gets as far as a message
MAXIMUM_CPUS = 255  # QEMU's limit for the pc machine types without x2APIC

AcceleratorChoice = Literal["auto", "kvm", "tcg"]
MachineBoot = BootMode | Literal["cdrom"]


class RunPolicy(StrEnum):
    """What happens when a machine ends though nobody asked for it.

    always: started again after a crash (with a growing delay) and when the host comes back.
    keep: started again when the host comes back; a crash is left for you to look at.
    once: never started again.
    A guest that powers itself off has spoken: no policy starts it against its will.
    """

    ALWAYS = "always"
    KEEP = "keep"
    ONCE = "once"


class Power(StrEnum):
    """What somebody wants of the machine."""

    ON = "on"
    OFF = "off"


class UnsupportedByImage(Invalid):
    """The image cannot do what was asked of it."""

    code = "unsupported-by-image"


class TooLittleMemory(Invalid):
    """Less memory than the image needs to boot."""

    code = "too-little-memory"


class MachineSpec(Value):
    """A machine as a user writes it; everything but the image may be left out.

    memory: bytes, or text such as '1GiB'. boot: 'cdrom' is from the medium in its drive. firmware: what it
    boots by. volumes: 'data', 'data:ro', 'data:scsi'. cdrom: a drive, with an image in it ('tools',
    'tools:scsi') or without ('none'). ephemeral: removed by itself once it has ended.
    """

    image: Name
    name: Name | None = None
    cpus: int | None = Field(default=None, ge=1, le=MAXIMUM_CPUS)
    memory: Size | None = Field(default=None, ge=LOWEST_MEMORY)
    disk_size: Size | None = None
    boot: MachineBoot | None = None
    firmware: Firmware | None = None
    accelerator: AcceleratorChoice = "auto"
    cpu_model: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+,=-]{0,200}$")
    agent: Literal["insula", "qemu", "none"] | None = None
    network: NetworkMode | None = None
    publish: tuple[PublishText, ...] = ()
    volumes: tuple[VolumeMountText, ...] = ()
    cdrom: CdromText | None = None
    cloud_init: CloudInit | None = None
    run_policy: RunPolicy = RunPolicy.KEEP
    ephemeral: bool = False

    @model_validator(mode="after")
    def _boots_from_what_it_has(self) -> MachineSpec:
        if self.boot == "cdrom" and self.cdrom is None:
            raise ValueError("boot from 'cdrom' needs a drive: say cdrom, too (--cdrom IMAGE)")
        return self


class Machine(Document):
    """A machine as it is wanted, every default filled in once. cpus: count. memory_bytes: what the guest has.

    mac addresses, uid and the image's digest never change; `power` is the intent that repair holds up.
    `removing`: an operation with consent is taking it away. snapshot: uid of the one that it stands on.
    unmerged: its disks stand on layers that nobody needs for themselves any more, to be merged.
    """

    kind: ClassVar[str] = "machine"
    names_are_unique: ClassVar[bool] = True

    image: ImageRef
    cpus: int
    memory_bytes: int
    boot: MachineBoot
    firmware: Firmware = "bios"
    machine_type: MachineType
    accelerator: AcceleratorChoice = "auto"
    cpu_model: str | None = None
    devices: tuple[Device, ...] = ()
    cloud_init: CloudInit | None = None
    run_policy: RunPolicy = RunPolicy.KEEP
    ephemeral: bool = False
    power: Power = Power.OFF
    removing: bool = False
    snapshot: str | None = None
    unmerged: bool = False

    @field_validator("devices")
    @classmethod
    def _ids_are_unique(cls, devices: tuple[Any, ...]) -> tuple[Any, ...]:
        ids = [device.id for device in devices]
        if len(ids) != len(set(ids)):
            raise ValueError("two devices share an id")
        return devices

    def next_generation(self, **fields: Any) -> Machine:
        """The document after a change."""
        return self.changed(generation=self.generation + 1, **fields)

    @property
    def cdrom(self) -> Cdrom | None:
        """Its drive, if it has one."""
        return next((device for device in self.devices if isinstance(device, Cdrom)), None)

    def with_cdrom(self, drive: Cdrom) -> tuple[Device, ...]:
        """Its devices with this drive in place of the one it has, if any."""
        if self.cdrom is None:
            return (*self.devices, drive)
        return tuple(drive if isinstance(device, Cdrom) else device for device in self.devices)

    @property
    def digests(self) -> frozenset[str]:
        """Of the images whose files it stands on: the one it was made from, and the medium in its drive."""
        medium = self.cdrom.medium if self.cdrom is not None else None
        return frozenset({self.image.digest} | ({medium.digest} if medium is not None else set()))


def mac_address(uid: str, index: int) -> str:
    """A stable, locally administered unicast MAC (IEEE 802: bit 1 of octet 0) from the machine's uid."""
    tail = uid[:8]
    return ":".join(["02", f"{index:02x}", tail[0:2], tail[2:4], tail[4:6], tail[6:8]])


def resolve(
    spec: MachineSpec, image: Image, *, uid: str, name: str, project: str, created: datetime
) -> Machine:
    """The document a spec stands for on this image.

    Raises UnsupportedByImage (boot mode, agent, cloud-init it does not have) and TooLittleMemory.
    """
    defaults = image.defaults
    boot = spec.boot or defaults.boot
    if boot != "cdrom" and boot not in image.boots:
        raise UnsupportedByImage(
            f"Image '{image.name}' cannot boot '{boot}'.", hint=f"It boots: {', '.join(image.boots)}."
        )
    memory = spec.memory or defaults.memory_bytes
    if memory < image.minimum_memory_bytes:
        raise TooLittleMemory(
            f"Image '{image.name}' needs at least {format_size(image.minimum_memory_bytes)} of memory; "
            f"{format_size(memory)} was asked for.",
            hint=f"Use --memory {format_size(image.minimum_memory_bytes)} or more.",
        )
    if spec.cloud_init is not None and not image.cloud_init:
        raise UnsupportedByImage(
            f"Image '{image.name}' has no cloud-init, so users, SSH keys and user-data cannot be set.",
            hint="Leave them out, or use an image with cloud-init such as debian-12.",
        )
    cloud_init = (spec.cloud_init or CloudInit()) if image.cloud_init else None
    return Machine(
        uid=uid,
        project=project,
        name=name,
        created=created,
        image=ImageRef(name=image.name, digest=image.digest),
        cpus=spec.cpus or defaults.cpus,
        memory_bytes=memory,
        boot=boot,
        firmware=spec.firmware or defaults.firmware,
        machine_type=defaults.machine_type,
        accelerator=spec.accelerator,
        cpu_model=spec.cpu_model,
        devices=_resolve_devices(spec, image, uid),
        cloud_init=cloud_init,
        run_policy=spec.run_policy,
        ephemeral=spec.ephemeral,
    )


def _resolve_devices(spec: MachineSpec, image: Image, uid: str) -> tuple[Device, ...]:
    devices: list[Device] = []
    if image.disk is not None:
        size = image.disk.virtual_size_bytes
        if spec.disk_size is not None and spec.disk_size < size:
            raise UnsupportedByImage(
                f"The disk of image '{image.name}' is {format_size(size)}; it cannot shrink to "
                f"{format_size(spec.disk_size)}.",
                hint=f"Use --disk-size {format_size(size)} or more.",
            )
        size = spec.disk_size or size
        devices.append(Disk(id="disk0", source="image", file="disk0.qcow2", format="qcow2", size_bytes=size))
    elif spec.disk_size is not None:
        raise UnsupportedByImage(f"Image '{image.name}' has no disk.", hint="Leave out --disk-size.")
    if image.cloud_init:
        devices.append(Disk(id="seed", source="seed", file=SEED_ISO, format="raw", read_only=True))
    if (spec.firmware or image.defaults.firmware) == "uefi":
        devices.append(variables_disk())
    network = spec.network or image.defaults.network
    if spec.publish and network is NetworkMode.NONE:
        if spec.network is NetworkMode.NONE:
            raise UnsupportedByImage(
                "Ports cannot be published: the machine has no network.", hint="Use --network isolated."
            )
        network = NetworkMode.ISOLATED
    if network is not NetworkMode.NONE:
        devices.append(Nic(id="nic0", mac=mac_address(uid, 0), mode=network, publish=spec.publish))
    if image.defaults.serial:
        devices.append(Serial(id="serial0"))
    agent = spec.agent or image.defaults.agent
    if agent is not None and agent != "none":
        if agent not in image.agents:
            raise UnsupportedByImage(
                f"Image '{image.name}' has no {agent} guest agent.",
                hint=f"It has: {', '.join(image.agents) or 'none'}.",
            )
        devices.append(AgentPort(id="agent0", protocol=agent))
    if image.defaults.rng:
        devices.append(Rng(id="rng0"))
    return tuple(devices)
