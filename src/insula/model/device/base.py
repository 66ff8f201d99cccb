"""What every device has: a kind, and an id by which the engine and QMP know it."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from pydantic.fields import FieldInfo

from insula.model.base import Value

REGISTRY: dict[str, type[DeviceBase]] = {}


class DeviceBase(Value):
    """A device of a machine. `device` tells the kind, `id` is unique within the machine ([a-z0-9-]).

    LIVE_FIELDS: what may change while the machine runs.
    """

    LIVE_FIELDS: ClassVar[frozenset[str]] = frozenset()

    device: str
    id: str


D = TypeVar("D", bound=type[DeviceBase])


def register(kind: D) -> D:
    """Class decorator: the kind joins the union `Device` under the default of its field `device`."""
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__
    REGISTRY[fields["device"].default] = kind
    return kind
