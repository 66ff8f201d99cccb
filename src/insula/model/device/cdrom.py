"""A drive for CDs and DVDs, and the medium in it: an image of the store, which never changes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from insula.model.base import Name, Value
from insula.model.device.base import DeviceBase, register

CDROM = "cdrom0"  # the id of a machine's drive; it has one at most
EMPTY = "none"  # what is said in place of an image for a drive without a medium

CdromBus = Literal["ata", "scsi"]

_TEXT = re.compile(r"(?P<image>[^:]*)(?::(?P<bus>ata|scsi))?")


class Medium(Value):
    """What is in a drive. uid: of this insertion; the same image inserted again is another one.

    name and digest: of the image; the name may move on, the digest does not. file: in the image's directory,
    or where that is on this host.
    """

    uid: str
    name: str
    digest: str
    file: str


@register
class Cdrom(DeviceBase):
    """A drive with a tray. bus: 'ata' is IDE on a `pc` and SATA on a `q35`, which every system has drivers
    for, and cannot be given while a machine runs; 'scsi' is on a virtio-scsi controller, and can.
    """

    device: Literal["cdrom"] = "cdrom"
    bus: CdromBus
    medium: Medium | None = None


def _no_file(value: Any) -> Any:
    """A host's file is none of a tenant's business: media come from the store."""
    if isinstance(value, str) and ("/" in value or value.lower().endswith((".iso", ".img"))):
        stem = re.sub(r"[^a-z0-9]+", "-", value.rsplit("/", 1)[-1].rsplit(".", 1)[0].lower()).strip("-")
        name = stem or "tools"
        raise ValueError(
            f"'{value}' is a file, and a drive takes an image; import it first: "
            f"insula image import {value} --name {name}, then say '{name}'"
        )
    return value


MediumName = Annotated[Name, BeforeValidator(_no_file)]


class Insertion(Value):
    """What is put into a drive. image: by its name. bus: of the drive, for a machine that has none yet."""

    image: MediumName
    bus: CdromBus | None = None


class CdromSpec(Value):
    """A drive for a machine that is being made: 'tools', 'tools:scsi', 'none' (no medium yet), 'none:scsi'.

    image: that is in it. bus: None is what the machine's system surely has a driver for.
    """

    image: MediumName | None = None
    bus: CdromBus | None = None


def _parse_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = _TEXT.fullmatch(_no_file(value))
    if found is None or not found["image"]:
        raise ValueError(f"'{value}' is not IMAGE[:ata|:scsi], for example tools, tools:scsi or none")
    return {"image": None if found["image"] == EMPTY else found["image"], "bus": found["bus"]}


CdromText = Annotated[CdromSpec, BeforeValidator(_parse_text)]
