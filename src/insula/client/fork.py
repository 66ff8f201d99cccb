"""Siblings of a machine: asked for together, made side by side, removed together at the end of a `with`."""

from __future__ import annotations

from insula.client.machine import Machine
from insula.client.operation import Operation
from insula.client.wire import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from insula.client.operation import Progress
    from insula.client.transport import Transport
    from insula.client.types import OperationInfo


class Siblings(list[Machine]):
    """The forks that were made. As a context manager it removes them at the end.

    stood_seconds: how long the machine's processors stood. renewed: by name, what each sibling renewed of its
    identity (`renewed`) and what it could not, with the reason (`failed`); empty for those that did not run.
    """

    def __init__(self, machines: Iterable[Machine], stood_seconds: float) -> None:
        super().__init__(machines)
        self.stood_seconds = stood_seconds
        self.renewed: dict[str, dict[str, object]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self:
            machine.__exit__()


def births(transport: Transport, fork: OperationInfo) -> list[Operation]:
    """The operations that make the siblings of a fork that is done."""
    machines = (fork["outcome"] or {})["machines"]
    return [
        Operation(transport, transport.call("GET", f"/v1/operations/{quote(born['operation'])}"))
        for born in machines
    ]


def fork(machine: Machine, count: int, name: str | None, paused: bool, progress: Progress | None) -> Siblings:
    """See `Machine.fork`. When one sibling fails, the others are removed and its error is raised."""
    body = {"count": count, "names": name, "paused": paused}
    info = machine.submit("fork", {key: value for key, value in body.items() if value}).wait(progress)
    transport = machine._transport
    outcome = info["outcome"] or {}
    siblings = Siblings(
        (Machine(transport, born["name"], machine.project, uid=born["uid"]) for born in outcome["machines"]),
        float(outcome.get("stood_seconds", 0.0)),
    )
    try:
        for sibling, birth in zip(siblings, births(transport, info), strict=True):
            made = birth.wait(progress)["outcome"] or {}
            siblings.renewed[sibling.name] = made.get("renewed") or {}
    except BaseException:
        siblings.__exit__()
        raise
    return siblings
