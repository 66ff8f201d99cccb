"""The channel to a guest agent."""

from __future__ import annotations

from typing import Literal

from insula.model.device.base import DeviceBase, register

AGENT_PORTS = {"insula": "dev.insula.agent.0", "qemu": "org.qemu.guest_agent.0"}


@register
class AgentPort(DeviceBase):
    """A virtio-serial port. protocol: 'insula' (streams) or 'qemu' (the QEMU guest agent protocol)."""

    device: Literal["agent"] = "agent"
    protocol: Literal["insula", "qemu"]
