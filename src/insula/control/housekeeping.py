"""What control and the server ask of whoever looks after a home's files; a node has one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from insula.kit.clock import utc_now
from insula.kit.errors import NotFound
from insula.model.base import new_uid
from insula.model.operation import Operation

if TYPE_CHECKING:
    from insula.model.housekeeping import StoreCheck, Usage

TARGET = "system:store"  # whose actor does the verbs
NAME = "store"


class NothingLost(NotFound):
    """No files without a document have this uid."""

    code = "nothing-lost"


class Housekeeping(Protocol):
    """A small port of its own: a kind of thing that a node has need not make `NodePort` longer than by one
    attribute."""

    async def usage(self) -> Usage:
        """What everything takes, each part of it included."""

    async def check(self) -> StoreCheck:
        """What is not as it should be, as far as that is seen without looking into disks."""


def system_operation(verb: str, parameters: dict[str, Any]) -> Operation:
    """A new operation on the store."""
    return Operation(
        uid=new_uid(),
        name=NAME,
        created=utc_now(),
        verb=verb,
        target_kind="system",
        target=TARGET,
        parameters=parameters,
    )
