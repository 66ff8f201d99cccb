"""Events: the transitions of a host in order, for whoever watches."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from insula.model.base import Value


class Event(Value):
    """Something that happened. seq: rises by one with each event of a ledger.

    kind: dotted, such as 'machine.phase', 'machine.created', 'machine.removed', 'operation.done'.
    """

    seq: int = 0
    at: datetime
    kind: str
    project: str = "default"
    target: str = ""
    name: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
