"""Homes with things in them that nobody needs, and what housekeeping says of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from insula.kit.clock import utc_now
from insula.model.base import new_uid
from insula.model.housekeeping import Part, StoreCheck, StoreProblem, Usage
from insula.model.operation import Operation, OperationState
from insula.store.protocol import Put
from tests.support.host import FakeHost

MIB = 2**20
LONG_AGO = 1_000_000_000.0  # older than any patience


async def usage(host: FakeHost) -> Usage:
    assert host.node is not None
    return await host.node.housekeeping.usage()


async def check(host: FakeHost) -> StoreCheck:
    assert host.node is not None
    return await host.node.housekeeping.check()


async def problem(host: FakeHost) -> StoreProblem:
    """The only one there is."""
    (found,) = (await check(host)).problems
    return found


async def part(host: FakeHost, name: str) -> Part:
    (found,) = [part for part in (await usage(host)).parts if part.name == name]
    return found


def make(directory: Path, **files: int) -> Path:
    """A directory with files of so many bytes, all of long ago."""
    directory.mkdir(parents=True)
    for name, size in files.items():
        (directory / name).write_bytes(os.urandom(size))
    age(directory)
    return directory


def age(directory: Path) -> None:
    for path in [directory, *directory.rglob("*")]:
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


async def prune(host: FakeHost, **parameters: Any) -> dict[str, Any]:
    operation = await host.do("system-prune", "", **parameters)
    assert operation.state is OperationState.DONE, operation.problem
    assert operation.outcome is not None
    return operation.outcome


async def remember(host: FakeHost, uid: str, state: OperationState, verb: str = "create") -> Operation:
    """An operation of the ledger that names the uid."""
    assert host.store is not None
    operation = Operation(
        uid=new_uid(),
        name="web",
        created=utc_now(),
        verb=verb,
        target_kind="machine",
        target=uid,
        state=state,
        parameters={"awaiting": True},  # so that no actor begins it
    )
    await host.store.commit([Put(operation, expect=0)])
    return operation


def uid_of(host: FakeHost, name: str) -> str:
    machine = host.machine(name)
    assert machine is not None
    return machine.uid
