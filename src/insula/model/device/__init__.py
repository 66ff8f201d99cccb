"""Device kinds: what a user says of each, one module a kind; the engine's face has a module of the same name.

A kind registers itself with @device("name"). `Device` is the union of all that are registered, told apart by
the field `device`. There is no central list: a new module in this package is found and joins the union.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from insula.model.device.base import REGISTRY, DeviceBase

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

if TYPE_CHECKING:
    Device = DeviceBase
else:
    Device = Annotated[reduce(or_, REGISTRY.values()), Field(discriminator="device")]


def device_kinds() -> dict[str, type[DeviceBase]]:
    """Every registered kind by its name."""
    return dict(REGISTRY)


__all__ = ["Device", "DeviceBase", "device_kinds"]
