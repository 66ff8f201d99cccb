"""FREEZE and THAW, by the real agent on file systems that are only pretended (fakefreeze.c)."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from insula.engine.agent import wire
from insula.engine.agent.insula import InsulaAgent, connect
from insula.engine.agent.protocol import (
    AgentCannot,
    ExitStatus,
    GuestFailed,
    GuestFrozen,
    Identity,
    capture,
)
from insula.engine.agent.wire import FrameType
from tests.unit.agent.test_insula_agent import wait_gone
from tests.unit.agent.test_insula_wire import SEAL, Relay

if TYPE_CHECKING:
    from tests.unit.agent.conftest import Guest, StartGuest

pytestmark = [pytest.mark.timeout(20), pytest.mark.slow]

LONG = 50.0  # seconds: longer than any test


class FileSystems:
    """What the guest believes to be mounted, in the order of the mounts."""

    def __init__(self, guest: Guest, root: Path) -> None:
        self.guest = guest
        self._root = root

    def mount(self, name: str, device: str = "8:1", kind: str = "ext4") -> Path:
        """As proc_pid_mountinfo(5) shows it: with optional fields, and blanks as \\040."""
        path = self._root / name
        path.mkdir(exist_ok=True)
        shown = str(path).replace(" ", "\\040")
        with self.guest.mounts.open("a") as file:
            file.write(f"36 35 {device} / {shown} rw,noatime shared:1 master:2 - {kind} /dev/x rw\n")
        return path

    def log(self) -> list[str]:
        log = self.guest.freeze_log
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def disks(sanitized_program: Path, start_guest: StartGuest, tmp_path: Path) -> Iterator[FileSystems]:
    """The file systems of a running agent; none of them may be frozen when it has ended."""
    guest = start_guest(sanitized_program)
    root = tmp_path / "mnt"
    root.mkdir()
    yield FileSystems(guest, root)
    stderr = guest.stop()
    assert "ERROR: " not in stderr, stderr
    deadline = time.monotonic() + 5
    while list(root.glob("*/is-frozen")):
        assert time.monotonic() < deadline, "the guest stayed frozen"


@pytest.fixture
async def agent(disks: FileSystems) -> InsulaAgent:
    return await connect(disks.guest.socket, timeout=10)


async def until(agent: InsulaAgent, condition: Callable[[], bool]) -> None:
    """Asking the agent meanwhile, which must answer whatever its keeper does."""
    async with asyncio.timeout(10):
        while not condition():
            assert await agent.ping(5)


async def works(agent: InsulaAgent) -> bool:
    return (await capture(await agent.exec(["echo", "on"]))).stdout == b"on\n"


async def test_the_last_mounted_first_and_back_in_their_order(disks: FileSystems, agent: InsulaAgent) -> None:
    disks.mount("root")
    disks.mount("proc", "0:22", "proc")
    disks.mount("data", "8:16")
    disks.mount("a loop", "7:0")
    disks.mount("tree", "0:35", "btrfs")
    assert await agent.freeze(LONG) == 4
    assert disks.log() == ["freeze tree", "freeze a loop", "freeze data", "freeze root"]
    assert await agent.thaw() == 4
    assert disks.log()[4:] == ["thaw root", "thaw data", "thaw a loop", "thaw tree"]
    assert await agent.thaw() == 0
    assert await works(agent)


async def test_what_cannot_be_frozen_does_not_count(disks: FileSystems, agent: InsulaAgent) -> None:
    disks.mount("root")
    (disks.mount("efi", "8:2", "vfat") / "refuses").write_text(str(errno.EOPNOTSUPP))
    disks.mount("root")  # once more: a bind mount
    assert await agent.freeze(LONG) == 1
    assert await agent.thaw() == 1


async def test_nothing_to_freeze_is_no_error(disks: FileSystems, agent: InsulaAgent) -> None:
    disks.mount("run", "0:30", "tmpfs")
    assert await agent.freeze(LONG) == 0
    assert await works(agent)
    assert await agent.thaw() == 0


async def test_one_that_fails_thaws_all_and_is_named(disks: FileSystems, agent: InsulaAgent) -> None:
    disks.mount("root")
    (disks.mount("bad", "8:2") / "refuses").write_text(str(errno.EIO))
    disks.mount("data", "8:3")
    with pytest.raises(GuestFailed, match=r"freeze its file system '.*/bad': Input/output error") as caught:
        await agent.freeze(LONG)
    assert str(caught.value.evidence["file_system"]).endswith("/bad")
    assert disks.log() == ["freeze data", "thaw data"]
    assert await works(agent)


async def test_what_would_write_is_refused_and_the_rest_goes_on(
    disks: FileSystems, agent: InsulaAgent
) -> None:
    disks.mount("root")
    running = await agent.exec(["cat"])
    assert await agent.freeze(LONG) == 1
    for refused in (
        agent.exec(["true"]),
        agent.shutdown("poweroff"),
        agent.renew(Identity("web", "0" * 32)),
        agent.refresh(),
        agent.freeze(1),
    ):
        with pytest.raises(GuestFrozen, match="frozen"):
            await refused
    assert await agent.ping(5)
    assert (await agent.info()).kernel
    await running.write_stdin(b"still here")
    assert await anext(running.output()) == ("stdout", b"still here")
    assert await agent.thaw() == 1
    await running.close_stdin()
    assert await running.wait() == ExitStatus(code=0)
    assert await works(agent)


async def test_it_goes_on_by_itself_and_says_so(disks: FileSystems, agent: InsulaAgent) -> None:
    disks.mount("root")
    assert await agent.freeze(0.2) == 1
    await until(agent, lambda: "thaw root" in disks.log())
    assert await agent.thaw() == 0
    assert await works(agent)


async def test_it_goes_on_when_the_connection_ends(disks: FileSystems, agent: InsulaAgent) -> None:
    disks.mount("root")
    assert await agent.freeze(LONG) == 1
    await agent.close()
    again = await connect(disks.guest.socket, timeout=10)
    assert await works(again)  # what comes while it thaws is not refused
    assert disks.log() == ["freeze root", "thaw root"]
    assert await again.thaw() == 0
    await again.close()


async def test_it_goes_on_for_a_host_that_comes_unnoticed(disks: FileSystems, tmp_path: Path) -> None:
    disks.mount("root")
    for _ in range(3):
        async with Relay(tmp_path / "port.sock", disks.guest.socket) as relay:
            first = await connect(relay.path)
            assert await first.freeze(LONG) == 1
            await first.close()
            second = await connect(relay.path)
            assert await works(second)
            assert await second.freeze(LONG) == 1
            assert await second.thaw() == 1
            await second.close()


def only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


async def test_it_goes_on_when_the_agent_is_killed(disks: FileSystems, agent: InsulaAgent) -> None:
    disks.mount("root")
    assert await agent.freeze(LONG) == 1
    keeper = only_child(disks.guest.process.pid)
    os.kill(disks.guest.process.pid, signal.SIGKILL)
    await wait_gone(keeper)
    assert disks.log() == ["freeze root", "thaw root"]
    await agent.close()


async def test_it_goes_on_when_its_keeper_is_killed(disks: FileSystems, agent: InsulaAgent) -> None:
    disks.mount("root")
    disks.mount("data", "8:2")
    assert await agent.freeze(LONG) == 2
    os.kill(only_child(disks.guest.process.pid), signal.SIGKILL)
    await until(agent, lambda: disks.log().count("thaw root") == 1 and "thaw data" in disks.log())
    assert await agent.thaw() == 0
    assert await works(agent)


async def test_the_agent_answers_while_data_is_written_out(disks: FileSystems, agent: InsulaAgent) -> None:
    waits = disks.mount("root") / "waits"
    waits.touch()
    freezing = asyncio.create_task(agent.freeze(LONG))
    await until(agent, lambda: "wait root" in disks.log())
    with pytest.raises(GuestFrozen):
        await agent.exec(["true"])
    waits.unlink()
    assert await freezing == 1
    assert await agent.thaw() == 1


async def test_writing_out_for_too_long_is_a_failure(disks: FileSystems, agent: InsulaAgent) -> None:
    waits = disks.mount("root") / "waits"
    disks.mount("data", "8:2")
    waits.touch()
    freezing = asyncio.create_task(agent.freeze(0.1))
    over = time.monotonic() + 0.2
    await until(agent, lambda: "wait root" in disks.log() and time.monotonic() > over)
    waits.unlink()
    with pytest.raises(GuestFailed, match=r"/root': Timer expired"):
        await freezing
    assert disks.log() == ["freeze data", "wait root", "freeze root", "thaw root", "thaw data"]
    assert await works(agent)


async def test_a_freeze_that_nobody_waits_for_is_undone(disks: FileSystems, agent: InsulaAgent) -> None:
    waits = disks.mount("root") / "waits"
    waits.touch()
    freezing = asyncio.create_task(agent.freeze(LONG))
    await until(agent, lambda: "wait root" in disks.log())
    freezing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await freezing
    waits.unlink()
    assert await works(agent)
    assert disks.log() == ["wait root", "freeze root", "thaw root"]


async def test_an_agent_of_before_cannot(disks: FileSystems, agent: InsulaAgent) -> None:
    agent.hello = replace(agent.hello, capabilities=wire.CAN_RENEW | 3)
    with pytest.raises(AgentCannot, match="cannot freeze"):
        await agent.freeze(1)
    assert await agent.thaw() == 0


async def test_the_time_is_bounded(disks: FileSystems, agent: InsulaAgent) -> None:
    """Of a host that asks for years, the keeper still takes a minute: nobody else could tell."""
    disks.mount("root")
    reader, writer = await asyncio.open_unix_connection(disks.guest.socket)
    await agent.close()
    writer.write(wire.encode_sync(0x1122334455667788))
    writer.write(wire.encode_frame(FrameType.FREEZE, 1, wire.encode_number(2**32 - 1), SEAL))
    buffer = bytearray()
    while wire.encode_frame(FrameType.FREEZE_REPLY, 1, wire.encode_number(1), SEAL) not in buffer:
        buffer += await reader.read(4096)
    writer.close()
    await writer.wait_closed()
