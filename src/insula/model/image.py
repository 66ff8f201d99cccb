"""Images: what a machine starts from. Immutable; named by people, identified by digest."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from insula.model.base import Name, Size, Value
from insula.model.device.nic import NetworkMode

BootMode = Literal["direct", "disk"]
AgentProtocol = Literal["insula", "qemu"]
Firmware = Literal["bios", "uefi"]
MachineType = Literal["pc", "q35"]
MACHINE_TYPES: tuple[MachineType, ...] = ("pc", "q35")


class ImageDefaults(Value):
    """What a machine of this image gets when nothing is said."""

    cpus: int = Field(default=1, ge=1)
    memory_bytes: Size = 512 * 2**20
    network: NetworkMode = NetworkMode.NONE
    boot: BootMode = "direct"
    firmware: Firmware = "bios"
    machine_type: MachineType = "pc"
    agent: AgentProtocol | None = "insula"
    rng: bool = False
    serial: bool = True


class Kernel(Value):
    """Files (names within the image's directory) for direct kernel boot, and the kernel's arguments.

    '{hostname}' in the arguments stands for the machine's host name.
    """

    file: str
    initrd: str | None = None
    arguments: str = ""


class ImageDisk(Value):
    """The disk of an image: a file within the image's directory that machines overlay, never write."""

    file: str
    format: Literal["qcow2", "raw"]
    virtual_size_bytes: int


class Image(Value):
    """An image as it stands in the store; `manifest.json` of its directory.

    digest: sha256 over the manifest's files and what it says of them. origin: where an image came from that
    was not built here. boots: the ways it can boot. agents: the guest agents inside.
    minimum_memory_bytes: below this the guest would not boot, so it is refused.
    """

    name: Name
    digest: str
    summary: str = ""
    os: str
    architecture: str = "x86_64"
    created: datetime
    size_bytes: int
    kernel: Kernel | None = None
    disk: ImageDisk | None = None
    boots: tuple[BootMode, ...]
    agents: tuple[AgentProtocol, ...]
    cloud_init: bool = False
    default_user: str = "root"
    minimum_memory_bytes: Size = 64 * 2**20
    defaults: ImageDefaults = ImageDefaults()
    origin: str = ""


class ImageProperties(Value):
    """What the file of a disk does not tell about the system on it; said by whoever imports it, or by a
    catalogue.

    cloud_init: whether it is inside, so that users and keys can be set. agent: the guest agent inside.
    memory, firmware: what a machine gets when nothing is said.
    """

    summary: str = Field(default="", max_length=200)
    os: str = Field(default="unknown", max_length=100)
    default_user: str = Field(default="root", pattern=r"^[a-z_][a-z0-9_-]{0,31}$")
    cloud_init: bool = False
    agent: Literal["qemu", "none"] = "none"
    memory: Size = Field(default=2**30, ge=64 * 2**20)
    firmware: Firmware = "bios"


class ImportSpec(ImageProperties):
    """A file that is to become an image.

    path: absolute, on the daemon's host. format: as in docs/reference/images.md, None to go by the file's
    header. replace: put it in the place of an image that has the name.
    """

    path: str = Field(max_length=4096)
    format: str | None = None
    replace: bool = False


class PullSpec(Value):
    """Which image of the catalogues is wanted, where it is to have another name than there."""

    source: Name | None = None


class ExportSpec(Value):
    """Where an image's disk is to be written. path: absolute, on the daemon's host. replace: a file that is
    there."""

    path: str = Field(max_length=4096)
    format: str = "qcow2"
    replace: bool = False


class ImageRef(Value):
    """Which image a machine was made from, for good: the name may move on, the digest does not."""

    name: Name
    digest: str
