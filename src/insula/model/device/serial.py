"""The serial console: its log is kept, and one person at a time may type."""

from __future__ import annotations

from typing import Literal

from insula.model.device.base import DeviceBase, register


@register
class Serial(DeviceBase):
    """A 16550A serial port with a log file and a socket."""

    device: Literal["serial"] = "serial"
