"""The rooms of the host that a node composes, handed to every actor."""

from __future__ import annotations

from dataclasses import dataclass, field

from insula.engine.protocol import Engine
from insula.kit.paths import Home
from insula.node.captures import Captures
from insula.node.procedure import Faults
from insula.node.snapshots import Snapshots
from insula.node.templates import Templates
from insula.storage.images import ImageStore
from insula.store.protocol import Store


@dataclass(frozen=True)
class Rooms:
    """home: where machines live. faults: what tests make go wrong."""

    home: Home
    store: Store
    engine: Engine
    images: ImageStore
    templates: Templates
    captures: Captures
    snapshots: Snapshots
    faults: Faults = field(default_factory=Faults)
