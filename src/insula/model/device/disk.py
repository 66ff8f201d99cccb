"""A disk: a volume of the machine's own, or a read-only medium such as the cloud-init seed."""

from __future__ import annotations

from typing import Literal

from insula.model.base import Size
from insula.model.device.base import DeviceBase, register


@register
class Disk(DeviceBase):
    """A virtio block device.

    source: 'image' (a copy-on-write overlay of the machine's image, made at creation) or 'seed' (the
    cloud-init seed, read-only). file: its name in the machine's directory. size_bytes: what the guest sees.
    """

    device: Literal["disk"] = "disk"
    source: Literal["image", "seed"]
    file: str
    format: Literal["qcow2", "raw"]
    size_bytes: Size | None = None
    read_only: bool = False
    serial: str = ""
