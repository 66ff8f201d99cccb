"""How device kinds meet the launch plan: each turns its document into arguments of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from insula.engine.errors import UnsupportedDevice
from insula.model.device import DeviceBase


@dataclass(frozen=True)
class Surroundings:
    """What a device may depend on besides its own document.

    features: of EngineFacts. vessel: the machine never runs, and has no disks. forked: it wakes up with the
    state of a template's devices. boots_from_cdrom: before its disks. variables_bytes: of its UEFI, if it has
    one.
    """

    machine_type: str
    features: frozenset[str]
    vessel: bool = False
    forked: bool = False
    boots_from_cdrom: bool = False
    variables_bytes: int = 0


Fragment = tuple[str, ...]
Renderer = Callable[[Any, Surroundings], Fragment]
R = TypeVar("R", bound=Callable[..., Fragment])

_RENDERERS: dict[str, Renderer] = {}


def launches(kind: str) -> Callable[[R], R]:
    """Decorator: the function gives the launch arguments of devices of this kind."""

    def register(renderer: R) -> R:
        _RENDERERS[kind] = cast(Renderer, renderer)
        return renderer

    return register


def render_device(device: DeviceBase, surroundings: Surroundings) -> Fragment:
    """The launch arguments of one device. Raises UnsupportedDevice."""
    renderer = _RENDERERS.get(device.device)
    if renderer is None:
        raise UnsupportedDevice(f"This engine has no devices of kind '{device.device}'.")
    return renderer(device, surroundings)


def rendered_kinds() -> frozenset[str]:
    """The kinds that have a renderer."""
    return frozenset(_RENDERERS)


def escape(value: object) -> str:
    """A value within a comma-separated option (QEMU's keyval syntax: a comma is doubled)."""
    return str(value).replace(",", ",,")


def option(*words: str, **pairs: object) -> str:
    """'driver,key=value,...' with every value escaped; '__' in a key stands for '.', '_' for '-'."""
    keys = ((key.replace("__", ".").replace("_", "-"), value) for key, value in pairs.items())
    return ",".join([*words, *(f"{key}={escape(value)}" for key, value in keys)])
