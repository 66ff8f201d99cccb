"""Device kinds as QEMU sees them; `model/device` has a module of the same name for each.

A kind registers itself with @launches("kind"); a new module in this package is found and joins. There is no
central list.
"""

from __future__ import annotations

import importlib
import pkgutil

from insula.engine.device.base import Surroundings, escape, option, render_device, rendered_kinds

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Surroundings", "escape", "option", "render_device", "rendered_kinds"]
