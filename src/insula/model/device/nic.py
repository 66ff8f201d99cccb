"""A network card and what it may reach."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from insula.model.base import Value
from insula.model.device.base import DeviceBase, register

_PUBLISH = re.compile(r"(?:(?P<address>[0-9.]+):)?(?P<host>\d+):(?P<guest>\d+)(?:/(?P<protocol>tcp|udp))?")


class NetworkMode(StrEnum):
    """What a machine's network reaches.

    none: no card at all. isolated: only the ports published to it. user: outgoing connections too, translated
    by QEMU's user-mode stack; through its gateway address the host's own loopback services are reachable, so
    it is for machines you trust.
    """

    NONE = "none"
    ISOLATED = "isolated"
    USER = "user"


class Publish(Value):
    """A port of the host that leads to a port of the guest: '2222:22', '127.0.0.1:5353:53/udp'."""

    host_port: int = Field(ge=1, le=65535)
    guest_port: int = Field(ge=1, le=65535)
    host_address: str = "127.0.0.1"
    protocol: Literal["tcp", "udp"] = "tcp"


def _parse_publish(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = _PUBLISH.fullmatch(value)
    if found is None:
        raise ValueError(f"'{value}' is not HOST:GUEST, for example 2222:22 or 127.0.0.1:5353:53/udp")
    return {
        "host_port": int(found["host"]),
        "guest_port": int(found["guest"]),
        "host_address": found["address"] or "127.0.0.1",
        "protocol": found["protocol"] or "tcp",
    }


PublishText = Annotated[Publish, BeforeValidator(_parse_publish)]


@register
class Nic(DeviceBase):
    """A virtio network card on QEMU's user-mode network. mac is locally administered (IEEE 802)."""

    device: Literal["nic"] = "nic"
    mac: str = Field(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
    mode: NetworkMode
    publish: tuple[PublishText, ...] = ()
