"""What is asked of control, and what it shows of a machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from insula.model.machine import Machine
from insula.model.observation import Observation
from insula.model.volume import Volume


@dataclass(frozen=True)
class VerbRequest:
    """Somebody asks for a verb.

    verb: create start stop restart reset pause resume kill rm rename fork attach detach (machines),
    image-build image-import image-pull image-export image-rm image-prune, template-rm template-prune,
    volume-create volume-clone volume-resize volume-rm, system-check system-prune. name: of the machine
    ('' lets create choose one), image, template or volume. parameters: the verb's own, checked by it:
    create {spec: MachineSpec as JSON, start: bool, cold: bool}; rm {force: bool}; stop and restart
    {timeout: seconds, force: bool}; rename {name: str}; fork {count, names: pattern with {n}, paused};
    attach {volume, read_only, bus}; detach {volume}; volume-create and volume-resize {size}; volume-clone
    {name}; image-import {ImportSpec}, image-pull {PullSpec}, image-export {ExportSpec}; template-prune
    {unused_for: seconds}; system-check {CheckSpec}, system-prune {PruneSpec}.
    if_generation: refuse (StaleGeneration, HTTP 412) unless current.
    """

    verb: str
    project: str = "default"
    name: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    if_generation: int | None = None


@dataclass(frozen=True)
class MachineState:
    """A machine's document and what is seen of it."""

    document: Machine
    observation: Observation


@dataclass(frozen=True)
class VolumeState:
    """A volume and the machines that have it: (name, read only)."""

    document: Volume
    attached_to: tuple[tuple[str, bool], ...]
