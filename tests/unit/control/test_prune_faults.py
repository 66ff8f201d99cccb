"""system-prune fails and dies at every place: what is needed is there, and the next one goes on."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from insula.model.base import new_uid
from insula.model.observation import Phase
from insula.model.operation import OperationState
from insula.node.procedure import DaemonDied
from insula.storage.images import ImageStore
from tests.support.homes import age, check, make, remember
from tests.support.host import FakeHost, publish_fake_image
from tests.unit.control.test_faults import Scripted, faults_reached

Garbage = list[Path]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost(tmp_path / "home", template_budget=2**30)
    publish_fake_image(ImageStore(host.home.images))
    yield host
    await host.close()


async def litter(host: FakeHost) -> Garbage:
    """A machine in use, and one of each thing that nobody needs."""
    await host.run("web")
    uid = new_uid()
    await remember(host, uid, OperationState.FAILED)
    machine = host.machine("web")
    assert machine is not None
    left = host.home.machine(machine.uid) / ".plan.json.new"
    left.touch()
    garbage = [
        make(host.home.machines / uid, file=4096),
        make(host.home.volumes / f".removing-{new_uid()}", file=4096),
        make(host.home.captures / new_uid(), file=4096),
        make(host.home.templates / "0123456789ab", file=4096),
        make(host.home.images / "builds" / "dead", file=4096),
        left,
    ]
    age(left)
    return garbage


def kept(host: FakeHost) -> set[str]:
    """Every file of the home that somebody needs, the ledger aside."""
    rooms = [host.home.machines, host.home.templates, host.home.images / "blobs"]
    return {str(path) for room in rooms for path in room.rglob("*")}


@pytest.mark.parametrize("place", ["before system-prune", "after system-prune"])
@pytest.mark.parametrize("error", [lambda: OSError("injected"), DaemonDied], ids=["fails", "dies"])
async def test_prune_at_every_place(host: FakeHost, place: str, error: Any) -> None:
    faults = Scripted(verb="system-prune", error=error)
    await host.boot(faults)
    garbage = await litter(host)
    needed = {path for path in kept(host) if not any(path.startswith(str(g)) for g in garbage)}
    faults.place = place
    asked = await host.submit("system-prune", "")
    await faults_reached(faults)
    if error is DaemonDied:
        await host.die()
        await host.boot()
        operation = await host.ended(asked.uid)
        assert operation.state is OperationState.DONE, operation.problem
        assert any("what it had removed is not counted" in note for note in operation.notes)
    else:
        operation = await host.ended(asked.uid)
        assert operation.state is OperationState.FAILED
        assert (await host.do("system-prune", "")).state is OperationState.DONE
    assert not [path for path in garbage if path.exists()]
    assert kept(host) == needed
    assert host.seen("web").phase is Phase.RUNNING
    assert (await check(host)).clean


async def test_a_removal_that_a_daemon_died_in_is_finished(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.boot()
    garbage = await litter(host)
    deaths = Scripted(verb="rmtree", place="before rmtree", error=DaemonDied)
    rmtree = shutil.rmtree

    def dying(path: Path, **options: Any) -> None:
        deaths.before("rmtree", "rmtree")
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", dying)
    asked = await host.submit("system-prune", "")
    await faults_reached(deaths)
    await host.die()
    assert list(host.home.machines.glob(".removing-*")) or list(host.home.volumes.glob(".removing-*"))
    await host.boot()
    operation = await host.ended(asked.uid)
    assert operation.state is OperationState.DONE, operation.problem
    assert not [path for path in garbage if path.exists()]
    assert not list(host.home.machines.glob(".removing-*"))
    assert (await check(host)).clean


async def test_what_cannot_be_removed_is_told_and_the_rest_goes(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.boot()
    garbage = await litter(host)
    rmtree = shutil.rmtree

    def failing(path: Path, **options: Any) -> None:
        if "volumes" in str(path):
            raise PermissionError(13, "Permission denied")
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", failing)
    operation = await host.do("system-prune", "")
    assert operation.state is OperationState.DONE
    assert operation.outcome is not None
    (left,) = operation.outcome["left"]
    assert left["path"] == str(garbage[1])
    assert left["why"] == "Permission denied."
    assert any("was left: Permission denied" in note for note in operation.notes)
    assert [path for path in garbage if path.exists()] == [garbage[1]]


async def test_two_prunes_take_turns(host: FakeHost) -> None:
    await host.boot()
    await litter(host)
    first, second = await host.submit("system-prune", ""), await host.submit("system-prune", "")
    done = [(await host.ended(each.uid)).outcome for each in (first, second)]
    assert done[0] is not None
    assert done[1] is not None
    assert len(done[0]["removed"]) == 6
    assert done[1]["removed"] == []
