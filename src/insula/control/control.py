"""What the server calls: reading documents, submitting verbs, waiting for operations, watching events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any

from insula.control.port import NodePort
from insula.model.event import Event
from insula.model.machine import Machine
from insula.model.observation import Observation, Phase
from insula.model.operation import Operation


@dataclass(frozen=True)
class VerbRequest:
    """Somebody asks for a verb.

    verb: 'create start stop restart reset pause resume kill rm rename' (on machines), 'image-build image-rm'.
    name: of the machine ('' lets create choose one) or image. parameters: the verb's own, checked by it:
    create {spec: MachineSpec as JSON, start: bool}; stop and restart {timeout: seconds, force: bool};
    rm {force: bool}; rename {name: str}. if_generation: refuse (StaleGeneration, HTTP 412) unless it is current.
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


class Control:
    node: NodePort

    async def submit(self, request: VerbRequest) -> Operation:
        """Check everything, then record the operation and nudge the node; does not wait for its end."""
        raise NotImplementedError

    async def find_machine(self, project: str, name: str) -> MachineState:
        """Raises MachineNotFound with the nearest name."""
        raise NotImplementedError

    async def list_machines(self, project: str | None) -> list[MachineState]:
        raise NotImplementedError

    async def find_operation(self, uid: str) -> Operation:
        raise NotImplementedError

    async def list_operations(self, *, active: bool) -> list[Operation]:
        raise NotImplementedError

    async def wait_operation(self, uid: str, timeout: float | None) -> Operation:
        """The operation once it is final, or as it is when `timeout` seconds have passed."""
        raise NotImplementedError

    async def cancel_operation(self, uid: str) -> Operation:
        raise NotImplementedError

    async def wait_machine(
        self, project: str, name: str, phases: Collection[Phase], timeout: float | None
    ) -> MachineState:
        """The machine once its phase is one of `phases`; as it is after `timeout` seconds. Removed: raises."""
        raise NotImplementedError

    def watch_events(self, after: int | None, *, follow: bool) -> AsyncIterator[Event]:
        """Events with seq > after (None: only new ones), in order; with follow, on and on."""
        raise NotImplementedError
