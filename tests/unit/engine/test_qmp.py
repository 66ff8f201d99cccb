"""Sessions with a monitor that still says what another session was to hear."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from insula.engine.errors import EngineLost
from insula.engine.qmp import Monitor

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}


class LateMonitor:
    """strays: what it has left to say to an earlier session, said in place of a greeting, one a session.

    answers: said before each answer of its own. negotiating: said before the answer to what opens a session.
    """

    def __init__(self) -> None:
        self.strays: list[Any] = []
        self.answers: list[Any] = []
        self.negotiating: list[Any] = []
        self.refuses = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(message: Any) -> None:
            writer.write(json.dumps(message).encode() + b"\n")

        if self.strays:
            say(self.strays.pop())
        else:
            say(GREETING)
            while request := await reader.read(2**16):  # one at a time, without a line's end
                asked = json.loads(request)
                named = {"id": asked["id"]} if "id" in asked else {}
                opens = asked["execute"] == "qmp_capabilities"
                for answer in self.negotiating if opens else self.answers:
                    say(answer)
                if opens and self.refuses:
                    say({"error": {"class": "CommandNotFound", "desc": "no"}, **named})
                else:
                    say({"return": {"asked": asked["execute"]}, **named})
        await reader.read()
        writer.close()


@pytest.fixture
async def late(tmp_path: Path) -> AsyncIterator[LateMonitor]:
    monitor = LateMonitor()
    async with await asyncio.start_unix_server(monitor.serve, tmp_path / "qmp.sock"):
        yield monitor


async def test_a_monitor_that_first_answers_another_session_is_spoken_to(
    late: LateMonitor, tmp_path: Path
) -> None:
    late.strays += [{"return": {}, "id": "__qmp#00001"}, {"error": {"class": "GenericError", "desc": "no"}}]
    monitor = await Monitor.connect(tmp_path / "qmp.sock", "web", 5.0)
    assert await monitor.execute("query-status") == {"asked": "query-status"}
    assert late.strays == []
    await monitor.close()


async def test_an_answer_to_another_session_is_not_taken_for_ours(late: LateMonitor, tmp_path: Path) -> None:
    late.answers += [{"return": "another's", "id": f"__qmp#{number:05}"} for number in range(4)]
    monitor = await Monitor.connect(tmp_path / "qmp.sock", "web", 5.0)
    for command in ("query-status", "query-name"):
        assert await monitor.execute(command) == {"asked": command}
    await monitor.close()


@pytest.mark.parametrize(
    "stray",
    [
        {"error": {"class": "GenericError", "desc": "no"}, "id": "__qmp#00000"},
        {"return": {}, "id": "__qmp#00000-0123456789abcdef"},
        {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}},
    ],
)
async def test_what_is_said_before_the_negotiations_answer_is_not_taken_for_it(
    late: LateMonitor, tmp_path: Path, stray: Any
) -> None:
    late.negotiating.append(stray)
    monitor = await Monitor.connect(tmp_path / "qmp.sock", "web", 5.0)
    assert await monitor.execute("query-status") == {"asked": "query-status"}
    await monitor.close()


async def test_a_monitor_that_refuses_to_negotiate_is_given_up_at_once(
    late: LateMonitor, tmp_path: Path
) -> None:
    late.refuses = True
    with pytest.raises(EngineLost, match="cannot be reached"):
        await Monitor.connect(tmp_path / "qmp.sock", "web", 5.0)
