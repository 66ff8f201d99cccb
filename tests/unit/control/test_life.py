"""What happens when nobody asks: crashes, guests that speak, hosts that come back, images to build."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from insula.control.conclusion import KEPT_OPERATIONS
from insula.control.port import ExecRequest
from insula.control.recovery import recover_ledger
from insula.engine.agent.protocol import AgentSilent
from insula.engine.errors import EngineLost
from insula.engine.fakeinstance import FakeInstance
from insula.kit.clock import monotonic
from insula.kit.paths import PID_FILE
from insula.model.event import Event
from insula.model.machine import Power
from insula.model.observation import Phase
from insula.model.operation import OperationState, Progress
from insula.node.node import GuestPaused
from insula.planner import repair
from insula.planner.lifecycle import NotRunning
from insula.storage.images import ImageStore
from insula.store.protocol import LedgerCorrupt
from tests.support.host import FakeHost, publish_fake_image


async def events(host: FakeHost) -> list[Event]:
    assert host.store is not None
    return await host.store.events(0, 1000)


async def test_a_crash_is_seen_with_its_evidence(host: FakeHost) -> None:
    await host.run()
    host.world.machine("web").print("Kernel panic - not syncing\r\n")
    began = monotonic()
    host.world.machine("web").crash(status=128 + 9, stderr="qemu: killed\n")
    seen = await host.until(Phase.CRASHED)
    assert monotonic() - began < 0.3
    assert seen.last_exit is not None
    assert seen.last_exit.exit_status == 137
    assert seen.last_exit.signal == 9
    assert "qemu: killed" in seen.last_exit.stderr
    assert "Kernel panic" in seen.last_exit.serial
    assert "qemu-system" in seen.last_exit.command
    assert "signal 9" in seen.reason
    assert seen.process is None
    told = [event for event in await events(host) if event.kind == "machine.phase"]
    assert told[-1].data["to"] == "crashed"
    assert told[-1].data["exit_status"] == 137


async def test_keep_leaves_a_crash_to_be_looked_at(host: FakeHost) -> None:
    await host.run(run_policy="keep")
    host.world.machine("web").crash()
    await host.until(Phase.CRASHED)
    assert host.world.launches == 1
    assert (await host.do("start")).state is OperationState.DONE


async def test_always_starts_again_after_a_crash(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "FIRST_DELAY", 0.01)
    await host.run(run_policy="always")
    for restarts in (1, 2):
        host.world.machine("web").crash()
        await host.until(Phase.CRASHED)
        seen = await host.until(Phase.RUNNING)
        assert seen.restarts == restarts
    await host.do("restart")
    assert host.seen().restarts == 0


async def test_once_wants_no_more_of_a_crashed_machine(host: FakeHost) -> None:
    await host.run(run_policy="once")
    host.world.machine("web").crash()
    await host.until(Phase.CRASHED)
    await wanted(host, Power.OFF)


async def wanted(host: FakeHost, power: Power) -> None:
    machine = host.machine()
    assert machine is not None
    assert host.store is not None
    async with asyncio.timeout(5):
        await host.store.wait(type(machine), machine.uid, lambda m: m is not None and m.power is power)


async def test_a_guest_that_powers_itself_off_has_spoken(host: FakeHost) -> None:
    await host.run(run_policy="always")
    host.world.machine("web").power_off()
    seen = await host.until(Phase.STOPPED)
    assert seen.last_exit is not None
    assert seen.last_exit.cause == "guest-shutdown"
    await wanted(host, Power.OFF)
    assert host.world.launches == 1


async def test_an_ephemeral_machine_goes_with_its_end(host: FakeHost) -> None:
    await host.run(ephemeral=True)
    host.world.machine("web").power_off()
    await host.until_gone()
    assert list(host.home.machines.iterdir()) == []


async def test_no_task_is_left_of_a_removed_machine(host: FakeHost) -> None:
    await host.run()
    uid = host.seen().uid
    await host.do("rm", force=True)
    for _ in range(5):  # the end of one may be what another waits for
        if left := [task for task in asyncio.all_tasks() if uid in task.get_name()]:
            await asyncio.wait(left, timeout=5)
    assert not left


async def test_a_disk_that_is_full_pauses_and_the_machine_goes_on(host: FakeHost) -> None:
    await host.run()
    host.world.machine("web").fail_io()
    seen = await host.until(Phase.PAUSED)
    assert "full" in seen.reason
    await host.do("resume")
    assert host.seen().phase is Phase.RUNNING


async def test_adoption_after_the_daemon_died(host: FakeHost) -> None:
    for name in ("one", "two", "three"):
        await host.run(name)
    await host.do("pause", "two")
    process = host.seen("one").process
    await host.die()
    host.world.machine("three").crash()
    await host.boot()
    assert host.seen("one").phase is Phase.RUNNING
    assert host.seen("one").process == process
    assert host.seen("two").phase is Phase.PAUSED
    assert host.seen("three").phase is Phase.CRASHED
    assert sum("adopted" in line for line in host.told) == 2
    host.world.machine("one").crash()  # it is listened to again
    await host.until(Phase.CRASHED, "one")


async def test_a_host_that_came_back_brings_back_what_was_wanted(host: FakeHost) -> None:
    await host.run("kept", run_policy="keep")
    await host.run("once", run_policy="once")
    await host.die()
    for path in host.home.machines.rglob(PID_FILE):  # as if written under another boot of the host
        path.write_text("1 1 00000000-0000-0000-0000-000000000000\n")
    host.world.machines.clear()
    await host.boot()
    assert (await host.until(Phase.RUNNING, "kept")).last_exit is not None
    seen = await host.until(Phase.STOPPED, "once")
    assert seen.last_exit is not None
    assert seen.last_exit.cause == "host-reboot"


async def test_exec_needs_a_running_machine_with_an_agent(host: FakeHost) -> None:
    assert host.node is not None
    await host.do("create")
    machine = host.machine()
    assert machine is not None
    with pytest.raises(NotRunning):
        await host.node.open_exec(machine.uid, ExecRequest(("true",)))
    host.world.script.agent = "silent"
    await host.do("start")
    with pytest.raises(AgentSilent) as caught:
        await host.node.open_exec(machine.uid, ExecRequest(("true",), timeout=0.05))
    assert "50ms" in caught.value.message
    await host.do("pause")
    with pytest.raises(GuestPaused):
        await host.node.open_exec(machine.uid, ExecRequest(("true",), timeout=0.05))


async def test_a_guest_that_is_still_booting_gets_more_patience(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host.node is not None
    host.world.script.agent = "silent"
    await host.run()
    uid = host.seen().uid
    monkeypatch.setattr("insula.node.node.PATIENCE", 0.01)
    monkeypatch.setattr("insula.node.node.BOOT_PATIENCE", 0.3)
    with pytest.raises(AgentSilent) as caught:
        await host.node.open_exec(uid, ExecRequest(("true",)))
    assert caught.value.evidence["waited_seconds"] > 0.02
    monkeypatch.setattr("insula.node.node.BOOT_PATIENCE", 0.0)
    with pytest.raises(AgentSilent) as caught:
        await host.node.open_exec(uid, ExecRequest(("true",)))
    assert caught.value.evidence["waited_seconds"] == 0.01


async def test_exec_streams(host: FakeHost) -> None:
    assert host.node is not None
    await host.run()
    machine = host.machine()
    assert machine is not None
    session = await host.node.open_exec(machine.uid, ExecRequest(("echo", "hello")))
    assert [chunk async for chunk in session.output()] == [("stdout", b"hello\n")]
    assert (await session.wait()).code == 0


Builder = Callable[..., Any]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the builder: `go` lets it finish, `fail` makes it raise."""
    control: dict[str, Any] = {"go": asyncio.Event(), "fail": None, "calls": 0}

    async def fake_build(recipe: Any, store: ImageStore, report: Callable[[Progress], None]) -> Any:
        control["calls"] += 1
        report(Progress(message="Fetching packages", fraction=0.5))
        await control["go"].wait()
        if control["fail"] is not None:
            raise control["fail"]
        return publish_fake_image(store, recipe.name)

    monkeypatch.setattr("insula.storage.builder.build", fake_build)
    return control


@pytest.fixture
async def bare_host(tmp_path: Path) -> Any:
    """A host without images."""
    host = FakeHost(tmp_path / "home")
    await host.boot()
    yield host
    await host.close()


async def test_the_first_run_builds_the_image_and_shows_progress(
    bare_host: FakeHost, build: dict[str, Any]
) -> None:
    assert bare_host.store is not None
    first = await bare_host.submit("create", "a", start=True)
    second = await bare_host.submit("create", "b", start=True)
    async with asyncio.timeout(5):
        shown = await bare_host.store.wait(type(first), first.uid, lambda o: bool(o and o.progress))
    assert shown is not None
    assert shown.progress == Progress(message="Fetching packages", fraction=0.5)
    build["go"].set()
    assert (await bare_host.ended(first.uid)).state is OperationState.DONE
    assert (await bare_host.ended(second.uid)).state is OperationState.DONE
    assert build["calls"] == 1
    await bare_host.until(Phase.RUNNING, "a")


async def test_a_build_that_fails_ends_the_run_and_leaves_nothing(
    bare_host: FakeHost, build: dict[str, Any]
) -> None:
    build["fail"] = OSError("no mirror")
    build["go"].set()
    operation = await bare_host.do("create", start=True)
    assert operation.state is OperationState.FAILED
    assert operation.problem is not None
    assert operation.problem["code"] == "image-build-failed"
    assert bare_host.machine() is None


async def test_a_run_that_waits_for_its_image_can_be_cancelled(
    bare_host: FakeHost, build: dict[str, Any]
) -> None:
    assert bare_host.control is not None
    operation = await bare_host.submit("create", start=True)
    await bare_host.control.cancel_operation(operation.uid)
    assert (await bare_host.ended(operation.uid)).state is OperationState.CANCELLED
    for other in await bare_host.control.list_operations(active=False):
        assert (await bare_host.ended(other.uid)).state is OperationState.CANCELLED
    assert bare_host.machine() is None


async def test_a_daemon_that_dies_while_building_goes_on_with_both(
    bare_host: FakeHost, build: dict[str, Any]
) -> None:
    assert bare_host.store is not None
    operation = await bare_host.submit("create", start=True)
    async with asyncio.timeout(5):
        await bare_host.store.wait(type(operation), operation.uid, lambda o: bool(o and o.progress))
    await bare_host.die()
    await bare_host.boot()
    build["go"].set()
    assert (await bare_host.ended(operation.uid)).state is OperationState.DONE
    assert build["calls"] == 2


async def test_a_lost_ledger_is_made_again_from_the_directories(host: FakeHost) -> None:
    await host.run("alive")
    await host.do("create", "never-started")
    uid = host.seen("alive").uid
    await host.die()
    host.home.ledger.write_bytes(b"garbage" * 1000)
    with pytest.raises(LedgerCorrupt):
        await host.boot()
    (host.home.machines / "broken").mkdir()
    told = await recover_ledger(host.home)
    assert any("broken" in line for line in told)
    assert len(list(host.root.glob("insula.db.damaged-*"))) >= 1
    await host.boot()
    assert host.seen("alive").uid == uid
    assert host.seen("alive").phase is Phase.RUNNING
    assert host.machine("never-started") is not None
    await host.do("rm", "alive", force=True)


async def test_old_operations_are_forgotten_and_events_bounded(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KEPT_OPERATIONS > 3
    monkeypatch.setattr("insula.control.conclusion.KEPT_OPERATIONS", 3)
    await host.run()
    for _ in range(5):
        await host.do("reset")
    await host.die()
    await host.boot()
    assert host.control is not None
    assert len(await host.control.list_operations(active=False)) == 3


async def test_events_can_be_followed_from_any_point(host: FakeHost) -> None:
    assert host.control is not None
    await host.run()
    backlog = [event async for event in host.control.watch_events(None, follow=False)]
    kinds = [event.kind for event in backlog]
    assert kinds.index("machine.created") < kinds.index("operation.done")
    follow = host.control.watch_events(backlog[1].seq, follow=True)
    seen = [(await asyncio.wait_for(anext(follow), 1)).seq for _ in backlog[2:]]
    assert seen == [event.seq for event in backlog[2:]]
    await host.do("pause")
    assert (await asyncio.wait_for(anext(follow), 1)).data["to"] == "paused"


async def test_waiting_for_a_phase(host: FakeHost) -> None:
    assert host.control is not None
    await host.run()
    state = await host.control.wait_machine("default", "web", {Phase.STOPPED}, 0.01)
    assert state.observation.phase is Phase.RUNNING
    waiting = asyncio.create_task(host.control.wait_machine("default", "web", {Phase.STOPPED}, 5))
    await host.do("stop")
    assert (await waiting).observation.phase is Phase.STOPPED


async def test_a_machine_that_ends_while_its_power_button_is_pressed_is_stopped(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.run()
    machine = host.world.machine("web")
    machine.close_agent()

    async def ends(_: object) -> None:
        machine.power_off()
        raise EngineLost("The monitor ended before it answered.")

    monkeypatch.setattr(FakeInstance, "press_power_button", ends)
    stopped = await host.do("stop", timeout=3)
    assert stopped.state is OperationState.DONE, stopped.problem
    assert host.seen().phase is Phase.STOPPED
