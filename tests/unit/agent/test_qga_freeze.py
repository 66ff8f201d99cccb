"""Freezing and refreshing over the QEMU guest agent: pretended, as the real one would freeze this host."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from insula.engine.agent.protocol import (
    AgentCannot,
    Captured,
    ExitStatus,
    GuestFailed,
    GuestFrozen,
    Renewal,
    capture,
)
from insula.engine.agent.qga import QemuAgent, connect
from insula.engine.agent.qga_refresh import MIXED, RESEED
from insula.kit.aio import Cell

pytestmark = pytest.mark.timeout(20)

WHILE_FROZEN = ("guest-ping", "guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-thaw")


class Refusal(Exception):
    def __init__(self, desc: str, kind: str = "GenericError") -> None:
        super().__init__(desc)
        self.answer = {"error": {"class": kind, "desc": desc}}


class Qga:
    """Answers as qemu-ga 7.2 does: frozen it refuses nearly all (qga/main.c, ga_freeze_allowlist)."""

    def __init__(self) -> None:
        self.count = 2
        self.frozen = Cell(False)
        self.asked: list[str] = []
        self.freezing: asyncio.Event | None = None  # freezing takes until it is set
        self.began = asyncio.Event()
        self.exited = True
        self.freeze_fails = self.clock_fails = ""
        self.said = "forced\n"
        self.clock = 0.0
        self.stdin = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            message = json.loads(line.lstrip(b"\xff"))
            mark = b"\xff" if message["execute"] == "guest-sync-delimited" else b""
            try:
                answer = {"return": await self.do(message["execute"], message["arguments"])}
            except Refusal as refusal:
                answer = refusal.answer
            writer.write(mark + json.dumps(answer).encode() + b"\n")
        writer.close()

    async def do(self, command: str, arguments: dict[str, Any]) -> Any:
        if command != "guest-sync-delimited":
            self.asked.append(command)
        if self.frozen.value and command not in WHILE_FROZEN:
            desc = f"Command {command} has been disabled: the agent is in frozen state"
            raise Refusal(desc, "CommandNotFound")
        match command:
            case "guest-sync-delimited":
                return arguments["id"]
            case "guest-fsfreeze-status":
                return "frozen" if self.frozen.value else "thawed"
            case "guest-fsfreeze-freeze":
                return await self.freeze()
            case "guest-fsfreeze-thaw":
                thawed = self.count if self.frozen.value else 0
                self.frozen.set(False)
                return thawed
            case "guest-exec":
                self.stdin = base64.b64decode(arguments.get("input-data", ""))
                return {"pid": 5}
            case "guest-exec-status":
                out = base64.b64encode(self.said.encode()).decode()
                return {"exited": True, "exitcode": 0, "out-data": out} if self.exited else {"exited": False}
            case "guest-set-time":
                if self.clock_fails:
                    raise Refusal(self.clock_fails)
                return {}
            case "guest-get-time":
                return int((time.time() + self.clock) * 1e9)
            case _:
                return {}

    async def freeze(self) -> int:
        if self.freeze_fails:
            raise Refusal(self.freeze_fails)
        self.began.set()
        if self.freezing is not None:
            await self.freezing.wait()
        self.frozen.set(self.count > 0)
        return self.count

    async def wait_thawed(self) -> None:
        async with asyncio.timeout(10):
            await self.frozen.wait_until(lambda frozen: not frozen)


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Qga]:
    guest = Qga()
    server = await asyncio.start_unix_server(guest.serve, tmp_path / "qga.sock")
    yield guest
    server.close()


@pytest.fixture
async def agent(guest: Qga, tmp_path: Path) -> AsyncIterator[QemuAgent]:
    connected = await connect(tmp_path / "qga.sock", streaming=False)
    guest.asked.clear()
    yield connected
    await connected.close()


async def test_what_would_write_is_refused_without_asking(guest: Qga, agent: QemuAgent) -> None:
    assert await agent.freeze(50) == 2
    for refused in (agent.exec(["true"]), agent.info(), agent.shutdown("reboot"), agent.refresh()):
        with pytest.raises(GuestFrozen):
            await refused
    with pytest.raises(GuestFrozen):
        await agent.freeze(50)
    assert await agent.ping(5)
    assert await agent.thaw() == 2
    assert await agent.thaw() == 0
    assert guest.asked == [
        "guest-fsfreeze-freeze",
        "guest-ping",
        "guest-fsfreeze-thaw",
        "guest-fsfreeze-thaw",
    ]
    guest.said = "out"
    assert await capture(await agent.exec(["true"])) == Captured(ExitStatus(code=0), b"out", b"")


async def test_output_of_a_running_command_waits(guest: Qga, agent: QemuAgent) -> None:
    guest.exited, guest.said = False, "late"
    running = asyncio.create_task(capture(await agent.exec(["make"])))
    while "guest-exec-status" not in guest.asked:
        assert await agent.ping(5)
    assert await agent.freeze(50) == 2
    guest.asked.clear()
    for _ in range(10):
        assert await agent.ping(5)
    assert set(guest.asked) == {"guest-ping"}
    guest.exited = True
    assert await agent.thaw() == 2
    assert (await running).stdout == b"late"


async def test_our_timer_thaws(guest: Qga, agent: QemuAgent) -> None:
    assert await agent.freeze(0.05) == 2
    await guest.wait_thawed()
    assert await agent.thaw() == 0
    await agent.exec(["true"])


async def test_the_end_of_the_connection_thaws(guest: Qga, tmp_path: Path) -> None:
    agent = await connect(tmp_path / "qga.sock")
    await agent.freeze(50)
    await agent.close()
    assert not guest.frozen.value


async def test_a_guest_left_frozen_by_a_host_that_died_is_thawed(guest: Qga, tmp_path: Path) -> None:
    guest.frozen.set(True)
    agent = await connect(tmp_path / "qga.sock")
    assert not guest.frozen.value
    await agent.close()


async def test_a_freeze_that_nobody_waits_for_is_undone(guest: Qga, agent: QemuAgent) -> None:
    guest.freezing = asyncio.Event()
    freezing = asyncio.create_task(agent.freeze(50))
    await guest.began.wait()
    freezing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await freezing
    guest.freezing.set()
    await guest.frozen.wait_until(lambda frozen: frozen)
    await guest.wait_thawed()


async def test_nothing_to_freeze_is_no_error(guest: Qga, agent: QemuAgent) -> None:
    guest.count = 0
    assert await agent.freeze(50) == 0
    await agent.exec(["true"])


async def test_a_failure_is_told_in_the_guests_words(guest: Qga, agent: QemuAgent) -> None:
    guest.freeze_fails = "failed to freeze /data: Input/output error"
    with pytest.raises(GuestFailed, match="/data: Input/output error"):
        await agent.freeze(50)
    await agent.exec(["true"])


async def test_frozen_by_somebody_else(guest: Qga, agent: QemuAgent) -> None:
    guest.frozen.set(True)
    with pytest.raises(GuestFrozen):
        await agent.request("guest-exec", path="/bin/true")


async def test_refresh(guest: Qga, agent: QemuAgent) -> None:
    assert await agent.refresh() == Renewal(("random", "clock"))
    assert len(guest.stdin) == 128
    assert len(set(guest.stdin)) > 1


async def test_random_numbers_that_were_only_mixed_in_are_not_renewed(guest: Qga, agent: QemuAgent) -> None:
    guest.said = "mixed\n"
    assert await agent.refresh() == Renewal(("clock",), (("random", MIXED),))
    guest.said = ""
    assert await agent.refresh() == Renewal(("clock",), (("random", "not written"),))


async def test_a_guest_without_hwclock_has_its_clock_set(guest: Qga, agent: QemuAgent) -> None:
    guest.clock_fails = "hwclock failed to set hardware clock to system time"
    assert (await agent.refresh()).renewed == ("random", "clock")
    guest.clock = -3600.0
    assert await agent.refresh() == Renewal(("random",), (("clock", guest.clock_fails),))


@pytest.mark.slow
def test_the_script_says_what_it_could_do() -> None:
    """In a namespace where nobody may credit entropy; bytes that are mixed in do this host no harm."""
    enter = ["unshare", "--user", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*enter, "true"], check=False).returncode != 0:
        pytest.skip("this user may not make such namespaces here")
    done = subprocess.run(
        [*enter, "sh", "-c", RESEED], input=bytes(range(128)), capture_output=True, check=False, timeout=10
    )
    assert (done.stdout, done.stderr) == (b"mixed\n", b"")


async def test_an_agent_that_cannot_freeze(guest: Qga, agent: QemuAgent) -> None:
    async def freeze() -> int:
        raise Refusal("The command guest-fsfreeze-freeze has not been found", "CommandNotFound")

    guest.freeze = freeze  # type: ignore[method-assign]
    with pytest.raises(AgentCannot, match="does not offer"):
        await agent.freeze(50)
    await agent.exec(["true"])
