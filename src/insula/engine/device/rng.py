"""Entropy for the guest from the host's getrandom(2)."""

from __future__ import annotations

from insula.engine.device.base import Fragment, Surroundings, launches, option
from insula.model.device.rng import Rng


@launches("rng")
def launch(rng: Rng, surroundings: Surroundings) -> Fragment:
    source = option("rng-builtin", id=f"{rng.id}-source")
    return ("-object", source, "-device", option("virtio-rng-pci", id=rng.id, rng=f"{rng.id}-source"))
