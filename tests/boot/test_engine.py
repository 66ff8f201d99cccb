"""QemuEngine against the suite of every engine, and what only processes can suffer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from insula.engine import frozen
from insula.engine.agent import wire
from insula.engine.agent.port import Port, open_port
from insula.engine.agent.protocol import capture
from insula.engine.agent.wire import Frame, FrameType
from insula.engine.errors import LaunchFailed, MachineDirectoryBusy
from insula.engine.evidence import read_stderr
from insula.engine.inotify import CREATED, watching
from insula.engine.plan import MONITOR
from insula.engine.probe import connect_when_listening
from insula.engine.process import is_locked, read_identity
from insula.engine.protocol import (
    BootFiles,
    Engine,
    GuestReset,
    Instance,
    LaunchPlan,
    Memory,
    Resumed,
    ShuttingDown,
)
from insula.engine.qemu import QemuEngine
from insula.kit.clock import monotonic
from insula.kit.paths import AGENT_SOCKET, LAUNCH_PLAN, QMP_SOCKET, SERIAL_LOG
from insula.kit.run import run
from insula.model.device.agent import AgentPort
from insula.model.device.disk import Disk
from insula.model.device.nic import NetworkMode, Nic, Publish
from insula.model.device.rng import Rng
from insula.model.device.serial import Serial
from insula.model.image import Image
from tests.conformance.cdrom import DriveConformance
from tests.conformance.engine import (
    PATIENCE,
    EngineConformance,
    freeze_template,
    launched,
    machine,
    next_transition,
    planned,
)

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.boot, pytest.mark.slow]


class QemuBench:
    """Machines under one directory; every engine made here is closed at the end."""

    def __init__(self, root: Path, host_facts: Path) -> None:
        self.directory = root / "machine"
        self._host_facts = host_facts
        self._engines: list[QemuEngine] = []
        self.engine: Engine = self.new_daemon()

    def new_daemon(self) -> Engine:
        self._engines.append(QemuEngine(self._host_facts))
        return self._engines[-1]

    async def close(self) -> None:
        for engine in self._engines:
            await engine.close()
        instance = await QemuEngine(self._host_facts).adopt(self.directory)
        if instance is not None:
            await instance.kill()

    def kill_from_outside(self, instance: Instance) -> None:
        os.kill(instance.identity.pid, signal.SIGKILL)

    async def plan_failure(self) -> LaunchPlan:
        facts = await self.engine.facts()
        missing = BootFiles(kernel=Path("/nonexistent/vmlinuz"))
        return self.engine.plan(machine(boot="direct"), missing, self.directory, facts)


def processes_in(root: Path) -> list[int]:
    """Processes, zombies aside, that run below a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            if (entry / "cwd").readlink().is_relative_to(root):
                found.append(pid)
    return [pid for pid in found if pid != os.getpid()]


def thread_names(root: Path) -> list[str]:
    """Of the one process below a directory."""
    (pid,) = processes_in(root)
    return [(task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()]


async def all_ended(root: Path) -> bool:
    """Whether nothing runs below the directory; dying processes get a moment, as they close files first."""
    deadline = monotonic() + 1
    while processes_in(root):
        if monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


@pytest.fixture(scope="module")
def host_facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("facts") / "host.json"


@pytest.fixture
async def bench(tmp_path: Path, host_facts: Path) -> AsyncIterator[QemuBench]:
    bench = QemuBench(tmp_path, host_facts)
    yield bench
    await bench.close()
    ended = await all_ended(tmp_path)
    for pid in processes_in(tmp_path):
        os.kill(pid, signal.SIGKILL)
    assert ended, "the engine left processes behind"


@pytest.fixture(autouse=True)
def _descriptors_are_given_back() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    # The test's event loop and its inotify instance are gone or reused by now.
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208


class TestQemuEngine(EngineConformance):
    pass


class TestQemuDrive(DriveConformance):
    pass


LAUNCHER = """
import asyncio, sys
from pathlib import Path
from insula.engine.plan import plan_from_json
from insula.engine.qemu import QemuEngine

async def main():
    directory = Path(sys.argv[1])
    plan = plan_from_json(Path(sys.argv[2]).read_text(), directory)
    instance = await QemuEngine().launch(plan)
    await instance.resume()
    print("launched", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_machine_outlives_a_daemon_that_is_killed(bench: QemuBench, tmp_path: Path) -> None:
    from insula.engine.plan import plan_to_json

    (tmp_path / LAUNCH_PLAN).write_text(plan_to_json(await planned(bench)))
    argv = [sys.executable, "-c", LAUNCHER, str(bench.directory), str(tmp_path / LAUNCH_PLAN)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as daemon:  # noqa: ASYNC220
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"launched\n"
        with pytest.raises(MachineDirectoryBusy):
            bench.engine.forget(bench.directory)
        daemon.send_signal(signal.SIGKILL)
    instance = await bench.engine.adopt(bench.directory)
    assert instance is not None
    assert await instance.state() == "running"
    bench.kill_from_outside(instance)
    async with asyncio.timeout(0.3):
        evidence = await instance.wait_exit()
    assert (evidence.cause, evidence.exit_status) == ("crash", 137)
    assert not is_locked(bench.directory)


WAKER = """
import asyncio, sys
from pathlib import Path
from insula.engine.instance import QemuInstance
from insula.engine.plan import plan_from_json
from insula.engine.qemu import QemuEngine

async def wake(*_, **__):
    print("launched", flush=True)
    await asyncio.sleep(60)

async def main():
    QemuInstance.wake = wake
    directory = Path(sys.argv[1])
    await QemuEngine().launch(plan_from_json(Path(sys.argv[2]).read_text(), directory))

asyncio.run(main())
"""


async def test_who_was_not_given_what_it_was_to_wake_up_with_has_never_lived(
    bench: QemuBench, tmp_path: Path
) -> None:
    from insula.engine.plan import plan_to_json

    template = await freeze_template(bench)
    facts = await bench.engine.facts()
    memory = Memory(template=template)
    plan = bench.engine.plan(machine(), BootFiles(), bench.directory, facts, memory)
    (tmp_path / LAUNCH_PLAN).write_text(plan_to_json(plan))
    argv = [sys.executable, "-c", WAKER, str(bench.directory), str(tmp_path / LAUNCH_PLAN)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as daemon:  # noqa: ASYNC220
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"launched\n"
        daemon.send_signal(signal.SIGKILL)
    assert is_locked(bench.directory)
    assert await bench.engine.adopt(bench.directory) is None
    assert not is_locked(bench.directory)
    assert bench.engine.read_exit(bench.directory) is None
    fork = await bench.engine.launch(plan)
    await fork.resume()
    assert await fork.state() == "running"
    await fork.kill()
    await bench.engine.discard(template)


async def test_the_lock_is_held_by_the_supervisor_too(bench: QemuBench) -> None:
    instance = await launched(bench)
    supervisor = os.getsid(instance.identity.pid)
    os.kill(supervisor, signal.SIGKILL)
    await instance.detach()
    again = await bench.new_daemon().adopt(bench.directory)
    assert again is not None
    evidence = await again.kill()
    assert (evidence.cause, evidence.exit_status) == ("host-kill", None)
    assert not is_locked(bench.directory)


async def test_a_monitor_ended_by_the_host_is_no_crash(bench: QemuBench) -> None:
    instance = await launched(bench)
    os.kill(instance.identity.pid, signal.SIGTERM)
    evidence = await instance.wait_exit()
    assert (evidence.cause, evidence.exit_status) == ("host-stop", 0)


async def test_a_monitor_ended_by_the_host_while_nobody_watched(bench: QemuBench) -> None:
    instance = await launched(bench)
    await instance.detach()
    watch = os.pidfd_open(instance.identity.pid)
    os.kill(instance.identity.pid, signal.SIGTERM)
    assert select.select([watch], [], [], PATIENCE)[0]
    os.close(watch)
    assert await bench.new_daemon().adopt(bench.directory) is None
    evidence = bench.engine.read_exit(bench.directory)
    assert evidence is not None
    assert evidence.cause == "host-stop"


async def test_a_launch_that_is_cancelled_leaves_nothing(bench: QemuBench, tmp_path: Path) -> None:
    plan = await planned(bench)
    for turns in range(0, 40, 3):
        launching = asyncio.create_task(bench.engine.launch(plan))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        launching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await launching).kill()
        assert not is_locked(bench.directory)
        assert await all_ended(tmp_path)


async def test_a_binary_that_is_missing_fails_the_launch(bench: QemuBench) -> None:
    plan = await planned(bench)
    with pytest.raises(LaunchFailed) as caught:
        await bench.engine.launch(replace(plan, argv=("/nonexistent/qemu", *plan.argv[1:])))
    assert caught.value.evidence["exit_status"] == 127


async def test_a_port_that_is_taken_is_explained(bench: QemuBench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        publish = Publish(host_port=server.getsockname()[1], guest_port=22)
        nic = Nic(id="nic0", mac="02:00:00:00:00:01", mode=NetworkMode.ISOLATED, publish=(publish,))
        with pytest.raises(LaunchFailed) as caught:
            await launched(bench, devices=(nic,))
    assert "port is taken" in caught.value.hint


async def test_every_kind_of_device_is_taken(bench: QemuBench) -> None:
    bench.directory.mkdir()
    for name, form in (("root.qcow2", "qcow2"), ("seed.iso", "raw")):
        await run(["qemu-img", "create", "-q", "-f", form, str(bench.directory / name), "4M"])
    devices = (
        Disk(id="root", source="image", file="root.qcow2", format="qcow2", serial="root"),
        Disk(id="seed", source="seed", file="seed.iso", format="raw", read_only=True),
        Nic(id="nic0", mac="02:00:00:00:00:01", mode=NetworkMode.ISOLATED),
        Serial(id="serial0"),
        AgentPort(id="agent0", protocol="qemu"),
        Rng(id="rng0"),
    )
    for kind in ("pc", "q35"):
        instance = await launched(bench, devices=devices, machine_type=kind, cpus=2)
        assert await instance.state() == "prepared"
        assert read_stderr(bench.directory) == ""
        await instance.kill()


async def test_a_deep_home_is_no_obstacle(bench: QemuBench, tmp_path: Path) -> None:
    bench.directory = tmp_path / ("deep" * 30) / "machine"
    instance = await launched(bench)
    await (await instance.console()).close()
    await instance.detach()
    again = await bench.new_daemon().adopt(bench.directory)
    assert again is not None
    await again.kill()


async def test_twenty_machines_are_adopted_at_once(bench: QemuBench, tmp_path: Path) -> None:
    facts = await bench.engine.facts()
    directories = [tmp_path / f"m{number}" for number in range(20)]
    plans = [bench.engine.plan(machine(name=d.name), BootFiles(), d, facts) for d in directories]
    for instance in await asyncio.gather(*(bench.engine.launch(plan) for plan in plans)):
        await instance.detach()
    daemon = bench.new_daemon()
    adopted = await asyncio.gather(*(daemon.adopt(directory) for directory in directories))
    assert len({instance.identity.pid for instance in adopted if instance is not None}) == 20
    await asyncio.gather(*(instance.kill() for instance in adopted if instance is not None))


# With a guest


@pytest.fixture(scope="module")
def micro() -> tuple[Image, Path]:
    """The image 'micro' and its directory, where it was built already."""
    root = Path(os.environ.get("INSULA_IMAGES") or ROOT / ".cache" / "images")
    manifest = root / "micro" / "manifest.json"
    if not manifest.exists():
        pytest.skip("the image 'micro' is not built: insula image build micro")
    return Image.model_validate_json(manifest.read_text()), manifest.parent


async def booted(bench: QemuBench, micro: tuple[Image, Path]) -> Instance:
    image, directory = micro
    assert image.kernel is not None
    kernel = image.kernel
    files = BootFiles(
        directory / kernel.file, directory / kernel.initrd if kernel.initrd else None, kernel.arguments
    )
    facts = await bench.engine.facts()
    document = machine(boot="direct", memory_bytes=image.defaults.memory_bytes)
    instance = await bench.engine.launch(bench.engine.plan(document, files, bench.directory, facts))
    await instance.resume()
    return instance


async def test_a_guest_answers_and_powers_itself_off(bench: QemuBench, micro: tuple[Image, Path]) -> None:
    instance = await booted(bench, micro)
    events = instance.events()
    assert await next_transition(events) == Resumed()
    agent = await instance.agent(timeout=60)
    done = await capture(await agent.exec(["uname", "-s"]))
    assert done.stdout == b"Linux\n"
    assert await instance.agent(timeout=1) is agent
    await agent.shutdown("poweroff")
    assert await next_transition(events) == ShuttingDown(by_guest=True)
    evidence = await instance.wait_exit()
    assert (evidence.cause, evidence.exit_status) == ("guest-shutdown", 0)


async def has_host(instance: Instance) -> bool:
    """Whether somebody is connected to the port of its agent."""
    chardevs = await instance.transfer.monitor.execute("query-chardev")  # type: ignore[attr-defined]
    (name,) = [entry["filename"] for entry in chardevs if AGENT_SOCKET in entry["filename"]]
    return not name.startswith("disconnected:")


async def test_machines_that_have_written_much_and_little_are_captured(
    bench: QemuBench, micro: tuple[Image, Path]
) -> None:
    """Much is sent by the monitor to a vessel. Little, as a fork has written, is copied: with all that it
    shares with others for many forks, by itself for few."""
    live = await booted(bench, micro)
    agent = await live.agent(timeout=60)
    look = ["sh", "-c", "tail -c 3000000 /tmp/f | md5sum"]
    await capture(await agent.exec(["dd", "if=/dev/urandom", "of=/tmp/f", "bs=1M", "count=150"]))
    facts = await bench.engine.facts()
    document = machine("fork", boot="direct", memory_bytes=micro[0].defaults.memory_bytes)
    for way, forks in (("sent", 1), ("copied", 1000), ("kept apart", 1), ("kept apart again", 1)):
        agent = await live.agent(timeout=60)
        before = await capture(await agent.exec(look))
        directory, place = bench.directory.with_name(way), bench.directory.with_name(f"fork-{way}")
        memory = Memory(shareable=True, vessel=True)
        vessel = bench.engine.plan(document, BootFiles(), directory, facts, memory)
        assert 0 < await bench.engine.capture(live, vessel, [], forks=forks) < PATIENCE
        assert (directory / LAUNCH_PLAN).exists() == (way == "sent")  # there was a vessel
        assert frozen.keeps_state(directory) == way.startswith("kept")
        held = bench.engine.frozen_bytes(directory)
        assert held is not None
        assert held < 60 * 2**20 or not way.startswith("kept")
        await capture(await agent.exec(["sh", "-c", "echo more >>/tmp/f"]))
        await live.kill()
        plan = bench.engine.plan(document, BootFiles(), place, facts, Memory(template=directory))
        live = await bench.engine.launch(plan)
        await bench.engine.discard(directory)
        assert await has_host(live), "it had one when it was captured, and would be told that it has gone"
        await live.resume()
        agent = await live.agent(timeout=60)
        assert (await capture(await agent.exec(look))).stdout == before.stdout
        assert read_stderr(place) == ""
    await live.kill()


async def test_the_agent_is_found_again_after_adoption_and_reset(
    bench: QemuBench, micro: tuple[Image, Path]
) -> None:
    instance = await booted(bench, micro)
    await instance.agent(timeout=60)
    await instance.detach()
    adopted = await bench.new_daemon().adopt(bench.directory)
    assert adopted is not None
    first = await adopted.agent(timeout=5)
    assert await first.ping(5)
    await adopted.reset()
    assert await next_transition(adopted.events()) == GuestReset(by_guest=False)
    second = await adopted.agent(timeout=60)
    assert second is not first
    assert await second.ping(5)


class Host:
    """A host at the port of a guest's agent, by hand."""

    def __init__(self, port: Port, nonce: int) -> None:
        self._port = port
        self._nonce = nonce
        self._heard = bytearray()

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, path: Path, nonce: int) -> AsyncIterator[Host]:
        port = await open_port(path)
        yield cls(port, nonce)
        await port.close()
        await asyncio.sleep(0.2)  # so that the guest sees that there is none

    async def say(self, type: FrameType, payload: bytes = b"", cut: int | None = None) -> None:
        frame = wire.encode_frame(type, int(type), payload, wire.seal_of(self._nonce))
        await self._port.send(frame[:cut])

    async def greet(self) -> None:
        """Once, and until that is answered."""
        await self._port.send(wire.encode_sync(self._nonce))
        async with asyncio.timeout(5):
            while wire.find_hello(self._heard, self._nonce) is None:
                self._heard += await self._port.read()

    async def hear(self, type: FrameType) -> Frame:
        async with asyncio.timeout(5):
            while True:
                for frame in wire.take_frames(self._heard, wire.seal_of(self._nonce)):
                    if frame.type == type:
                        return frame
                self._heard += await self._port.read()


async def test_a_session_outlives_the_end_of_a_host_that_is_back_at_once(
    bench: QemuBench, micro: tuple[Image, Path]
) -> None:
    """For the driver may tell of the end of the host before this one after what this one has said."""
    instance = await booted(bench, micro)
    await instance.agent(timeout=60)
    await instance.detach()
    path = bench.directory / AGENT_SOCKET
    # Its stderr ends with its session, and a shell says there that a child was hung up.
    script = (
        "exec 2>/dev/null; trap 'cat /proc/uptime >/tmp/hung-up; exit' HUP; while :; do usleep 100000; done"
    )
    command = wire.encode_exec(
        ["sh", "-c", script], env={}, cwd="", user="", tty=False, rows=0, cols=0, window=2**16
    )

    async with Host.at(path, nonce=1) as host:
        await host.greet()
    async with Host.at(path, nonce=1) as host:
        await host.say(FrameType.PING)
        await host.hear(FrameType.PONG)
        await host.say(FrameType.STDIN, bytes(1000), cut=500)
    async with Host.at(path, nonce=2) as host:
        await host.greet()  # heard, though what came before lacks its second half
        await host.say(FrameType.EXEC, command)
        await host.hear(FrameType.STARTED)
        await asyncio.sleep(0.5)  # until the shell has set its trap
    await asyncio.sleep(2.5)
    adopted = await bench.new_daemon().adopt(bench.directory)
    assert adopted is not None
    agent = await adopted.agent(timeout=5)
    said = await capture(await agent.exec(["cat", "/proc/uptime", "/tmp/hung-up"]))
    now, hung_up = (float(line.split()[0]) for line in said.stdout.splitlines())
    assert now - hung_up > 0.7, "it was hung up by the next host only"
    await adopted.kill()


async def test_a_monitor_starts_nothing_before_its_first_client_is_accepted(tmp_path: Path) -> None:
    """So that the thread that will serve it and the main loop never both accept."""
    argv = ["qemu-system-x86_64", "-machine", "none", "-display", "none", "-name", "m,debug-threads=on"]
    starting = asyncio.create_task(run([*argv, "-nodefaults", *MONITOR], cwd=tmp_path))
    try:
        with watching(tmp_path, CREATED) as created:
            while not (tmp_path / QMP_SOCKET).exists():
                await created.wait()
        await asyncio.sleep(0.3)
        assert [name for name in thread_names(tmp_path) if "mon" in name] == []
        monitor = await connect_when_listening(tmp_path / QMP_SOCKET, "m", PATIENCE)
        assert await monitor.execute("query-name") == {"name": "m"}
        assert len([name for name in thread_names(tmp_path) if "mon" in name]) == 1
        await monitor.close()
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def test_the_power_button_reaches_the_firmware(bench: QemuBench) -> None:
    instance = await launched(bench, devices=(Serial(id="serial0"),))
    await instance.resume()
    await instance.press_power_button()
    assert await instance.state() == "running"
    seen = b""
    log = bench.engine.follow_log(bench.directory, follow=True, tail=None)
    async with asyncio.timeout(PATIENCE):
        while b"SeaBIOS" not in seen:
            seen += await anext(log)
    await log.aclose()  # type: ignore[attr-defined]
    assert (bench.directory / SERIAL_LOG).stat().st_size > 0
    assert read_stderr(bench.directory) == ""
    identity = read_identity(bench.directory)
    assert identity == instance.identity
