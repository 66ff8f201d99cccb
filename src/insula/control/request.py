"""What is asked of control, and what it shows of a machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from insula.model.machine import Machine
from insula.model.observation import Observation


@dataclass(frozen=True)
class VerbRequest:
    """Somebody asks for a verb.

    verb: create start stop restart reset pause resume kill rm rename (machines), image-build image-import
    image-pull image-export image-rm image-prune.
    name: of the machine ('' lets create choose one) or image. parameters: the verb's own, checked by it:
    create {spec: MachineSpec as JSON, start: bool}; stop and restart {timeout: seconds, force: bool};
    rm {force: bool}; rename {name: str}; image-import {ImportSpec as JSON}, image-pull {PullSpec},
    image-export {ExportSpec}. if_generation: refuse (StaleGeneration, HTTP 412) unless current.
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
