"""Operations: verbs somebody asked for. Durable, with steps, progress, one outcome and one error.

    queued --node accepts--> running --steps--> performed --control concludes--> done | failed | cancelled
       └── refused by the actor's policy ──────────┘

`performed` means the node has finished (result or error is recorded) and control has yet to change the
documents accordingly; a daemon that dies in between concludes it at its next start.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import Field

from insula.model.base import Document, Value


class OperationState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PERFORMED = "performed"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (OperationState.DONE, OperationState.FAILED, OperationState.CANCELLED)


class StepRecord(Value):
    """A step of an operation and how far it came. Written before its first side effect (`started`)."""

    name: str
    state: Literal["started", "done", "undone"]


class Progress(Value):
    """Where long work stands. fraction: 0..1 or None where nobody can know. message: one short line."""

    message: str
    fraction: float | None = None


class Operation(Document):
    """A verb on a target. `name` and `generation` are the target's when it was asked.

    parameters: the verb's own. outcome: JSON for whoever waits. problem: the error as problem+json.
    notes: what a person should hear besides ("The guest did not answer within 30s; it was forced").
    recovered: how often a daemon that came back had to go on with it. remembered: what its undo puts back.
    """

    kind: ClassVar[str] = "operation"

    verb: str
    target_kind: Literal["machine", "image", "template", "volume", "system"]
    target: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    state: OperationState = OperationState.QUEUED
    steps: tuple[StepRecord, ...] = ()
    progress: Progress | None = None
    cancel_requested: bool = False
    outcome: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    recovered: int = 0
    remembered: dict[str, Any] = Field(default_factory=dict)
    started: datetime | None = None
    finished: datetime | None = None
