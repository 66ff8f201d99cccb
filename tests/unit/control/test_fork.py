"""Siblings of a machine: their names, their identity, and that nothing of a fork that fails is left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from insula.control.verbs.create import MachineNameTaken
from insula.control.verbs.fork import BadFork
from insula.engine.agent.protocol import capture
from insula.engine.fake import Script
from insula.kit.errors import Conflict
from insula.model.base import BadName
from insula.model.device.nic import Nic
from insula.model.machine import Power
from insula.model.observation import Phase
from insula.model.operation import Operation, OperationState
from insula.node.procedure import DaemonDied
from insula.planner.lifecycle import BeingForked
from tests.support.host import PATIENCE, FakeHost
from tests.unit.control.test_faults import Scripted, faults_reached


async def forked(host: FakeHost, name: str = "web", **parameters: Any) -> list[Operation]:
    """Fork and wait for the siblings; the operations that made them."""
    operation = await host.do("fork", name, **parameters)
    assert operation.state is OperationState.DONE, operation.problem
    assert operation.outcome is not None
    return [await host.ended(born["operation"]) for born in operation.outcome["machines"]]


async def say(host: FakeHost, name: str, *argv: str) -> str:
    machine = host.world.machine(name)
    assert machine.instance is not None
    agent = await machine.instance.agent(PATIENCE)
    return (await capture(await agent.exec(argv))).stdout.decode().strip()


def captures(host: FakeHost) -> list[str]:
    return sorted(path.name for path in host.home.captures.glob("*"))


async def test_siblings_run_as_themselves_and_the_machine_goes_on(host: FakeHost) -> None:
    await host.run()
    births = await forked(host, count=3)
    names = [birth.name for birth in births]
    assert names == ["web-1", "web-2", "web-3"]
    assert [host.seen(name).phase for name in ("web", *names)] == [Phase.RUNNING] * 4
    assert [await say(host, name, "hostname") for name in ("web", *names)] == ["web", *names]
    for birth in births:
        assert birth.outcome is not None
        assert {"random", "clock", "hostname", "machine-id"} <= set(birth.outcome["renewed"]["renewed"])
    assert len({host.seen(name).process for name in ("web", *names)}) == 4
    assert host.world.machine("web").identity == host.seen("web").process
    assert captures(host) == []
    assert host.world.frozen == {}


async def test_forks_of_forks(host: FakeHost) -> None:
    await host.run()
    await forked(host)
    await forked(host, "web-1", names="deep")
    assert await say(host, "deep", "hostname") == "deep"
    await host.do("rm", "web-1", force=True)
    assert host.seen("deep").phase is Phase.RUNNING


async def test_names_by_a_pattern_and_by_the_first_free_numbers(host: FakeHost) -> None:
    await host.run()
    await host.do("create", "web-2")
    assert [birth.name for birth in await forked(host, count=2)] == ["web-1", "web-3"]
    assert [birth.name for birth in await forked(host, count=2, names="w{n}")] == ["w1", "w2"]
    assert [birth.name for birth in await forked(host, names="one")] == ["one"]


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"count": 0}, BadFork),
        ({"count": 201}, BadFork),
        ({"count": "2"}, BadFork),
        ({"count": 2, "names": "twins"}, BadFork),
        ({"names": "No Name"}, BadName),
        ({"names": "web"}, MachineNameTaken),
    ],
)
async def test_what_cannot_be_changes_nothing(
    host: FakeHost, parameters: dict[str, Any], error: type[Exception]
) -> None:
    await host.run()
    assert host.control is not None
    with pytest.raises(error):
        await host.submit("fork", **parameters)
    assert [state.document.name for state in await host.control.list_machines(None)] == ["web"]


@pytest.mark.parametrize("agent", ["qemu", "none"])
async def test_a_running_guest_that_cannot_renew_itself_is_not_forked(host: FakeHost, agent: str) -> None:
    await host.run(agent=agent)
    with pytest.raises(BadFork) as caught:
        await host.submit("fork")
    assert "insula stop web" in caught.value.hint
    await host.do("stop", timeout=0.01)
    assert [birth.name for birth in await forked(host)] == ["web-1"]


async def test_a_machine_without_a_process_is_forked_by_its_disks(host: FakeHost) -> None:
    await host.do("create")
    (birth,) = await forked(host)
    assert host.seen("web-1").phase is Phase.CREATED
    sibling = host.machine("web-1")
    assert sibling is not None
    assert sibling.power is Power.OFF
    assert birth.outcome is not None
    assert "renewed" not in birth.outcome
    assert (await host.do("start", "web-1")).state is OperationState.DONE
    assert captures(host) == []


async def test_paused_siblings_and_siblings_of_a_paused_machine(host: FakeHost) -> None:
    await host.run()
    await forked(host, paused=True)
    assert host.seen("web-1").phase is Phase.PAUSED
    await host.do("pause")
    await forked(host)
    assert host.seen("web").phase is Phase.PAUSED
    assert host.seen("web-2").phase is Phase.RUNNING
    assert await say(host, "web-2", "hostname") == "web-2"


async def test_cards_get_addresses_of_their_own_and_ports_stay_the_parents(host: FakeHost) -> None:
    await host.run(network="isolated", publish=["2222:22"])
    (birth,) = await forked(host)
    parent, sibling = host.machine("web"), host.machine("web-1")
    assert parent is not None
    assert sibling is not None
    cards = [next(d for d in m.devices if isinstance(d, Nic)) for m in (parent, sibling)]
    assert cards[0].mac != cards[1].mac
    assert cards[0].publish
    assert not cards[1].publish
    assert birth.outcome is not None
    assert "mac" in birth.outcome["renewed"]["renewed"]
    assert birth.remembered["cards"] == [(cards[0].mac, cards[1].mac)]


async def test_one_sibling_that_fails_is_gone_and_the_others_stay(host: FakeHost) -> None:
    await host.run()
    host.world.scripts["web-2"] = Script(launch_error="no memory")
    births = await forked(host, count=3)
    assert [birth.state for birth in births] == [
        OperationState.DONE,
        OperationState.FAILED,
        OperationState.DONE,
    ]
    assert host.machine("web-2") is None
    assert host.seen("web-3").phase is Phase.RUNNING
    assert captures(host) == []


async def test_a_sibling_is_left_alone_until_it_is_made(host: FakeHost) -> None:
    await host.run()
    operation = await host.submit("fork")
    for verb in ("start", "rm", "fork"):
        with pytest.raises(BeingForked):
            await host.submit(verb, "web-1", force=True)
    assert (await host.ended(operation.uid)).state is OperationState.DONE


async def test_a_machine_that_ends_in_the_middle_has_no_siblings(host: FakeHost) -> None:
    await host.run()
    faults = Scripted(verb="fork", place="before capture", error=lambda: Conflict("It ended."))
    await host.close()
    await host.boot(faults)
    operation = await host.do("fork", count=2)
    assert operation.state is OperationState.FAILED
    assert host.machine("web-1") is None
    assert host.seen("web").phase is Phase.RUNNING
    assert captures(host) == []
    # Its actor is still the one that has it: the siblings that went were not the machine.
    assert (await host.do("pause")).state is OperationState.DONE
    assert (await host.do("resume")).state is OperationState.DONE
    assert (await host.do("stop")).state is OperationState.DONE


STEPS = ("make directory", "make disks", "make seed", "record", "prepare", "launch", "run")


@pytest.mark.parametrize("place", [f"{when} {step}" for step in STEPS for when in ("before", "after")])
async def test_a_daemon_that_dies_while_siblings_are_made_is_followed_by_one_that_makes_them(
    host: FakeHost, place: str
) -> None:
    await host.run()
    await host.close()
    faults = Scripted(verb="create", error=DaemonDied)
    await host.boot(faults)
    faults.place = place
    operation = await host.do("fork", count=2)
    assert operation.outcome is not None
    await faults_reached(faults)
    await host.die()
    await host.boot()
    for born in operation.outcome["machines"]:
        made = await host.ended(born["operation"])
        assert made.state is OperationState.DONE, made.problem
        assert await say(host, made.name, "hostname") == made.name
    assert captures(host) == []
    assert len([m for m in host.world.machines.values() if m.exit.value is None]) == 3


async def test_a_capture_is_removed_once_by_all_who_want_it_gone(host: FakeHost) -> None:
    dead = host.home.captures / "0123456789abcdef"
    dead.mkdir(parents=True)
    for number in range(50):
        (dead / str(number)).touch()
    assert host.node is not None
    captures = host.node.rooms.captures
    await asyncio.gather(captures.sweep(), captures.sweep(), captures.remove(dead.name))
    assert not dead.exists()


async def test_a_capture_that_nobody_needs_is_swept(host: FakeHost) -> None:
    await host.run()
    dead = host.home.captures / "0123456789abcdef"
    dead.mkdir(parents=True)
    await host.close()
    await host.boot()
    assert host.node is not None
    await host.node.rooms.captures.sweep()
    assert captures(host) == []
