"""Every verb, in the phases it fits and in those it does not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from insula.control.desk import MachineNotFound, StaleGeneration
from insula.control.request import VerbRequest
from insula.control.verbs import find_verb, verb_names
from insula.control.verbs.create import MachineNameTaken
from insula.kit.errors import Conflict, Invalid
from insula.kit.paths import MACHINE_DOCUMENT
from insula.model.base import BadDocument, BadName
from insula.model.machine import Power
from insula.model.observation import Phase
from insula.model.operation import OperationState
from insula.planner.admission import MemoryExceedsHost
from insula.planner.lifecycle import AlreadyRunning, NotRunning, StillRunning, WrongPhase
from tests.support.host import FakeHost


def files(host: FakeHost) -> list[str]:
    return sorted(str(path.relative_to(host.root)) for path in host.home.machines.rglob("*"))


async def test_run_and_the_whole_life(host: FakeHost) -> None:
    operation = await host.run()
    assert operation.outcome is not None
    assert operation.outcome["name"] == "web"
    assert [record.state for record in operation.steps] == ["done"] * len(operation.steps)
    seen = await host.until(Phase.RUNNING)
    assert seen.process is not None
    assert seen.accelerator is not None
    for verb, phase in [
        ("pause", Phase.PAUSED),
        ("resume", Phase.RUNNING),
        ("reset", Phase.RUNNING),
        ("stop", Phase.STOPPED),
        ("start", Phase.RUNNING),
        ("restart", Phase.RUNNING),
        ("kill", Phase.STOPPED),
        ("restart", Phase.RUNNING),
    ]:
        operation = await host.do(verb)
        assert operation.state is OperationState.DONE, (verb, operation.problem)
        assert host.seen().phase is phase, verb
    await host.do("rm", force=True)
    assert host.machine() is None
    assert files(host) == []


async def test_create_without_start_makes_a_directory_with_the_document(host: FakeHost) -> None:
    await host.do("create")
    machine = host.machine()
    assert machine is not None
    assert machine.power is Power.OFF
    assert host.seen().phase is Phase.CREATED
    kept = json.loads((host.home.machine(machine.uid) / MACHINE_DOCUMENT).read_text())
    assert kept["name"] == "web"


async def test_a_name_is_chosen_when_none_is_given(host: FakeHost) -> None:
    assert host.control is not None
    for _ in range(2):
        await host.control.submit(VerbRequest("create", parameters={"spec": {"image": "micro"}}))
    names = [state.document.name for state in await host.control.list_machines(None)]
    assert len(set(names)) == 2
    assert all(name.startswith("micro-") for name in names)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"cpus": 0}, BadDocument),
        ({"cpus": 100000}, BadDocument),
        ({"memory": "1"}, BadDocument),
        ({"memory": "lots"}, BadDocument),
        ({"memory": "1024TiB"}, MemoryExceedsHost),
        ({"flavour": "vanilla"}, BadDocument),
        ({"name": "Not A Label"}, BadName),
        ({"name": "x" * 64}, BadName),
        ({"image": "mikro"}, Invalid),
        ({"publish": ["nonsense"]}, BadDocument),
        ({"accelerator": "kvm"}, Exception),
        ({"boot": "disk"}, Invalid),
        ({"cloud_init": {"user": "me"}}, Invalid),
        ({"memory": "33MiB"}, Invalid),
    ],
)
async def test_bad_specs_are_refused_and_nothing_changes(
    host: FakeHost, spec: dict[str, object], error: type[Exception]
) -> None:
    assert host.store is not None
    before = host.store.last_event()
    with pytest.raises(error) as caught:
        await host.submit("create", spec=spec, start=True)
    assert getattr(caught.value, "hint", "") or getattr(caught.value, "fields", [])
    assert host.store.last_event() == before
    assert files(host) == []


async def test_every_faulty_field_is_told_at_once(host: FakeHost) -> None:
    with pytest.raises(BadDocument) as caught:
        await host.submit("create", spec={"cpus": 0, "memory": "x", "colour": "red"})
    assert {field["path"] for field in caught.value.fields} == {"cpus", "memory", "colour"}


async def test_names_are_taken_once_even_by_two_at_the_same_moment(host: FakeHost) -> None:
    results = await asyncio.gather(host.submit("create"), host.submit("create"), return_exceptions=True)
    assert sum(isinstance(result, MachineNameTaken) for result in results) == 1
    with pytest.raises(MachineNameTaken):
        await host.submit("create")


async def test_unknown_machines_come_with_the_nearest_name(host: FakeHost) -> None:
    await host.do("create", "database")
    with pytest.raises(MachineNotFound) as caught:
        await host.submit("start", "databaze")
    assert "'database'" in caught.value.hint


async def test_verbs_that_do_not_fit_are_refused(host: FakeHost) -> None:
    await host.do("create")
    for verb in ("stop", "kill", "pause", "resume", "reset"):
        with pytest.raises(NotRunning):
            await host.submit(verb)
    await host.do("start")
    with pytest.raises(AlreadyRunning):
        await host.submit("start")
    with pytest.raises(WrongPhase):
        await host.submit("resume")
    with pytest.raises(StillRunning):
        await host.submit("rm")
    assert host.seen().phase is Phase.RUNNING


async def test_an_older_generation_is_refused(host: FakeHost) -> None:
    await host.run()
    machine = host.machine()
    assert machine is not None
    assert host.control is not None
    with pytest.raises(StaleGeneration):
        await host.control.submit(VerbRequest("stop", name="web", if_generation=machine.generation - 1))
    operation = await host.control.submit(VerbRequest("stop", name="web", if_generation=machine.generation))
    assert (await host.ended(operation.uid)).state is OperationState.DONE


async def test_rename_keeps_the_machine_running(host: FakeHost) -> None:
    await host.run()
    await host.do("create", "other")
    pid = host.seen().process
    with pytest.raises(MachineNameTaken):
        await rename(host, "other")
    with pytest.raises(BadName):
        await rename(host, "Bad Name")
    await rename(host, "shop")
    assert host.machine() is None
    assert host.seen("shop").process == pid
    assert host.seen("shop").name == "shop"
    await host.do("stop", "shop")
    assert host.seen("shop").phase is Phase.STOPPED


async def rename(host: FakeHost, new: str) -> None:
    assert host.control is not None
    await host.control.submit(VerbRequest("rename", name="web", parameters={"name": new}))


async def test_stop_says_so_before_it_forces(host: FakeHost) -> None:
    host.world.script.obeys_power_off = False
    await host.run()
    operation = await host.do("stop", timeout=0.05)
    assert operation.state is OperationState.DONE
    assert any("forced" in note for note in operation.notes)
    assert host.seen().phase is Phase.STOPPED


async def test_stop_without_force_gives_up_and_leaves_it_running(host: FakeHost) -> None:
    host.world.script.obeys_power_off = False
    await host.run()
    operation = await host.do("stop", timeout=0.05, force=False)
    assert operation.state is OperationState.FAILED
    assert operation.problem is not None
    assert operation.problem["code"] == "guest-did-not-stop"
    machine = host.machine()
    assert machine is not None
    assert machine.power is Power.ON
    assert host.seen().phase is Phase.RUNNING


async def test_a_paused_machine_can_be_stopped(host: FakeHost) -> None:
    await host.run()
    await host.do("pause")
    assert (await host.do("stop")).notes == ()
    assert host.seen().phase is Phase.STOPPED


async def test_a_silent_agent_does_not_keep_stop_from_the_power_button(host: FakeHost) -> None:
    host.world.script.agent = "when-told"
    await host.run()
    process = host.world.machine("web")
    await host.do("stop", timeout=2)
    assert process.power_button_presses == 1
    assert host.seen().phase is Phase.STOPPED


async def test_two_stops_share_one_end(host: FakeHost) -> None:
    host.world.script.obeys_power_off = False
    await host.run()
    first = await host.submit("stop", timeout=0.1)
    await host.until(Phase.STOPPING)
    second = await host.submit("stop", timeout=30)
    assert (await host.ended(first.uid)).state is OperationState.DONE
    assert (await host.ended(second.uid)).state is OperationState.DONE


async def test_kill_cuts_a_stop_short(host: FakeHost) -> None:
    host.world.script.obeys_power_off = False
    await host.run()
    stop = await host.submit("stop", timeout=60)
    await host.until(Phase.STOPPING)
    kill = await host.do("kill")
    assert kill.state is OperationState.DONE
    ended = await host.ended(stop.uid)
    assert ended.state is OperationState.CANCELLED
    assert ended.problem is not None
    assert ended.problem["code"] == "superseded"
    assert host.seen().phase is Phase.STOPPED


async def test_a_stop_can_be_cancelled(host: FakeHost) -> None:
    assert host.control is not None
    host.world.script.obeys_power_off = False
    await host.run()
    stop = await host.submit("stop", timeout=60)
    await host.until(Phase.STOPPING)
    await host.control.cancel_operation(stop.uid)
    assert (await host.ended(stop.uid)).state is OperationState.CANCELLED
    machine = host.machine()
    assert machine is not None
    assert machine.power is Power.ON


async def test_a_failed_launch_leaves_nothing_and_tells_why(host: FakeHost) -> None:
    host.world.script.launch_error = "qemu: no such thing"
    operation = await host.do("create", start=True)
    assert operation.state is OperationState.FAILED
    assert operation.problem is not None
    assert operation.problem["code"] == "launch-failed"
    assert "no such thing" in json.dumps(operation.problem["evidence"])
    assert host.machine() is None
    assert files(host) == []


async def test_a_failed_start_leaves_the_machine_as_it_was(host: FakeHost) -> None:
    await host.do("create")
    host.world.script.launch_error = "qemu: no such thing"
    operation = await host.do("start")
    assert operation.state is OperationState.FAILED
    machine = host.machine()
    assert machine is not None
    assert machine.power is Power.OFF
    assert host.seen().phase is Phase.CREATED
    host.world.script.launch_error = ""
    assert (await host.do("start")).state is OperationState.DONE


def test_every_verb_on_machines_has_a_procedure() -> None:
    for verb in verb_names():
        assert find_verb(verb)
        of_volumes = verb in ("volume-create", "volume-clone", "volume-rm")
        if verb == "rename" or verb.startswith(("image-", "template-", "system-")) or of_volumes:
            continue
        module = f"{verb.replace('-', '_')}.py"
        path = Path(__file__).parents[3] / "src/insula/node/procedures" / module
        assert path.is_file(), verb


async def test_unknown_verbs_are_refused(host: FakeHost) -> None:
    with pytest.raises(Invalid):
        await host.submit("fly")


async def test_conflicts_and_invalids_are_told_apart(host: FakeHost) -> None:
    await host.run()
    with pytest.raises(Conflict):
        await host.submit("start")
