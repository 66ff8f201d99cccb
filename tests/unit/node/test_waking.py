"""Machines that wake up in the middle of what they did, on a whole host with fake machines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.model.observation import Phase
from insula.model.operation import OperationState
from insula.node.procedure import DaemonDied
from insula.storage.images import ImageStore
from tests.support.host import FakeHost, publish_fake_image
from tests.unit.control.test_faults import Scripted, faults_reached


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost(tmp_path / "home")
    publish_fake_image(ImageStore(host.home.images))
    yield host
    await host.close()


@pytest.mark.parametrize("dies", [False, True])
async def test_one_restored_as_paused_can_be_resumed_and_is_told_the_time_then(
    host: FakeHost, dies: bool
) -> None:
    await host.boot()
    await host.run()
    await host.do("pause")
    await host.do("snapshot-create", name="still", memory=True)
    await host.do("resume")
    await host.do("snapshot-restore", name="still")
    assert host.seen().phase is Phase.PAUSED
    if dies:
        await host.die()
        await host.boot()
    resumed = await host.do("resume")
    assert (resumed.state, host.seen().phase) == (OperationState.DONE, Phase.RUNNING)
    assert resumed.outcome is not None
    assert set(resumed.outcome["renewed"]["renewed"]) == {"random", "clock"}


async def test_a_daemon_that_dies_before_a_suspended_machine_runs_is_followed_by_one_that_sees_it_run(
    host: FakeHost,
) -> None:
    faults = Scripted(verb="start", error=DaemonDied)
    await host.boot(faults)
    await host.run()
    await host.do("suspend")
    faults.place = "before run"
    asked = await host.submit("start")
    await faults_reached(faults)
    await host.die()
    await host.boot()
    assert (await host.ended(asked.uid)).state is OperationState.DONE
    assert (host.world.machine("web").state, host.seen().phase) == ("running", Phase.RUNNING)
