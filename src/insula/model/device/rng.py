"""Entropy from the host."""

from __future__ import annotations

from typing import Literal

from insula.model.device.base import DeviceBase, register


@register
class Rng(DeviceBase):
    """A virtio entropy device fed by the host's getrandom."""

    device: Literal["rng"] = "rng"
