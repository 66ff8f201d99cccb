"""The fake engine against the suite that the real one passes, and what tests can make its guests do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from insula.engine.agent.protocol import (
    AgentLost,
    AgentSilent,
    ExitStatus,
    GuestCommandNotFound,
    GuestFailed,
    GuestFrozen,
    GuestRefused,
    Renewal,
    capture,
)
from insula.engine.fake import FakeEngine, FakeMachine, Script, World
from insula.engine.protocol import AgentPortChanged, Engine, GuestReset, Instance, LaunchPlan, Paused
from tests.conformance.cdrom import DriveConformance
from tests.conformance.engine import EngineConformance, launched, next_event, planned
from tests.conformance.layers import LayersConformance


@dataclass
class FakeBench:
    directory: Path
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.world.scripts["deaf"] = Script(heeds_disks=False)
        self.engine: Engine = self.new_daemon()

    def new_daemon(self) -> Engine:
        return FakeEngine(self.world)

    @property
    def guest(self) -> FakeMachine:
        return self.world.machines[self.directory]

    def kill_from_outside(self, instance: Instance) -> None:
        self.guest.crash(128 + 9)

    async def plan_failure(self) -> LaunchPlan:
        self.world.scripts["broken"] = Script(launch_error="qemu-system-x86_64: no\n")
        return await planned(self, name="broken")


@pytest.fixture
def bench(tmp_path: Path) -> FakeBench:
    return FakeBench(tmp_path / "machine")


class TestFakeEngine(EngineConformance):
    pass


class TestFakeDrive(DriveConformance):
    pass


class TestLayersOfTheFake(LayersConformance):
    pass


async def running(bench: FakeBench) -> Instance:
    instance = await launched(bench)
    await instance.resume()
    return instance


@pytest.mark.parametrize(
    ("argv", "stdin", "status", "stdout", "stderr"),
    [
        (["true"], b"", 0, b"", b""),
        (["/bin/false"], b"", 1, b"", b""),
        (["echo", "a", "b"], b"", 0, b"a b\n", b""),
        (["cat"], b"typed", 0, b"typed", b""),
        (["sh", "-c", "exit 7"], b"", 7, b"", b""),
        (["sh", "-c", "echo out; printf err >&2; false"], b"", 1, b"out\n", b"err"),
        (["sh", "-c", "nonsense"], b"", 127, b"", b"sh: nonsense: not found\n"),
        (["sh"], b"echo hi\nexit 3\n", 3, b"hi\n", b""),
        (["uname", "-n"], b"", 0, b"web\n", b""),
        (["hostname"], b"", 0, b"web\n", b""),
    ],
)
async def test_the_guests_commands(
    bench: FakeBench, argv: list[str], stdin: bytes, status: int, stdout: bytes, stderr: bytes
) -> None:
    agent = await (await running(bench)).agent(timeout=1)
    done = await capture(await agent.exec(argv), stdin)
    assert (done.status.shell_status, done.stdout, done.stderr) == (status, stdout, stderr)


async def test_environment_and_signals(bench: FakeBench) -> None:
    agent = await (await running(bench)).agent(timeout=1)
    assert b"X=1\n" in (await capture(await agent.exec(["env"], env={"X": "1"}))).stdout
    done = await capture(await agent.exec(["sh", "-c", "kill -15 $$"]))
    assert done.status == ExitStatus(signal=15)
    sleeper = await agent.exec(["sleep", "100"])
    await sleeper.send_signal(2)
    assert (await sleeper.wait()).shell_status == 130
    other = await agent.exec(["sleep", "100"])
    await asyncio.sleep(0)
    bench.guest.wake_sleepers()
    assert (await other.wait()).code == 0


async def test_what_the_guest_refuses(bench: FakeBench) -> None:
    agent = await (await running(bench)).agent(timeout=1)
    with pytest.raises(GuestCommandNotFound):
        await agent.exec(["nonsense"])
    with pytest.raises(GuestRefused):
        await agent.exec(["true"], user="nobody")


async def test_file_systems_at_rest(bench: FakeBench) -> None:
    instance = await running(bench)
    agent = await instance.agent(timeout=1)
    disks = bench.guest.file_systems
    disks.count = 2
    assert await agent.freeze(10) == 2
    for refused in (agent.exec(["true"]), agent.shutdown("poweroff"), agent.refresh(), agent.freeze(10)):
        with pytest.raises(GuestFrozen):
            await refused
    assert await agent.ping(1)
    assert (await agent.thaw(), await agent.thaw()) == (2, 0)
    assert await agent.freeze(10) == 2
    disks.go_on()
    assert await agent.thaw() == 0
    assert await agent.freeze(10) == 2
    await agent.close()
    assert disks.log == [
        *("freeze", "thaw", "thaw"),
        *("freeze", "thaw by itself", "thaw"),
        *("freeze", "thaw by itself"),
    ]
    disks.fails = "Input/output error"
    again = await instance.agent(timeout=1)
    with pytest.raises(GuestFailed, match="Input/output error"):
        await again.freeze(10)
    assert await again.refresh() == Renewal(("random", "clock"))


async def test_the_agent_comes_when_told(bench: FakeBench) -> None:
    bench.world.script.agent = "when-told"
    instance = await running(bench)
    with pytest.raises(AgentSilent):
        await instance.agent(timeout=0.01)
    waiting = asyncio.create_task(instance.agent(timeout=5))
    await asyncio.sleep(0)
    bench.guest.open_agent()
    assert await waiting is await instance.agent(timeout=1)


async def test_a_silent_agent(bench: FakeBench) -> None:
    bench.world.script.agent = "silent"
    instance = await running(bench)
    with pytest.raises(AgentSilent):
        await instance.agent(timeout=0.01)


async def test_a_reset_loses_the_agent_and_finds_it_again(bench: FakeBench) -> None:
    instance = await running(bench)
    agent = await instance.agent(timeout=1)
    session = await agent.exec(["sleep", "9"])
    await instance.reset()
    with pytest.raises(AgentLost):
        await session.wait()
    with pytest.raises(AgentLost):
        await agent.exec(["true"])
    assert await instance.agent(timeout=1) is not agent
    events = instance.events()
    told = [await next_event(events) for _ in range(5)]
    assert told[2:] == [AgentPortChanged(open=False), GuestReset(by_guest=False), AgentPortChanged(open=True)]


async def test_power_off_when_asked(bench: FakeBench) -> None:
    instance = await running(bench)
    await (await instance.agent(timeout=1)).shutdown("poweroff")
    evidence = await instance.wait_exit()
    assert (evidence.cause, evidence.exit_status) == ("guest-shutdown", 0)
    assert evidence.serial == "Fake guest booted"


async def test_a_stubborn_guest_ignores_agent_and_button(bench: FakeBench) -> None:
    bench.world.script.obeys_power_off = False
    instance = await running(bench)
    await (await instance.agent(timeout=1)).shutdown("poweroff")
    await instance.press_power_button()
    await asyncio.sleep(0)
    assert await instance.state() == "running"
    assert bench.guest.power_button_presses == 1


async def test_a_full_disk_pauses(bench: FakeBench) -> None:
    instance = await running(bench)
    bench.guest.fail_io()
    events = instance.events()
    told = [await next_event(events) for _ in range(3)]
    assert isinstance(told[2], Paused)
    assert told[2].io_error
    assert await instance.state() == "paused"


async def test_a_crash_has_the_monitors_last_words(bench: FakeBench) -> None:
    instance = await running(bench)
    bench.guest.crash(stderr="Segmentation fault\n")
    evidence = await instance.wait_exit()
    assert (evidence.cause, evidence.signal, evidence.stderr) == ("crash", 11, "Segmentation fault")


async def test_the_console_echoes(bench: FakeBench) -> None:
    instance = await running(bench)
    console = await instance.console()
    await console.write(b"ls\r")
    assert await console.read() == b"ls\r\n"
