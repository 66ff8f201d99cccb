"""insulad as a process: its lock, its reports, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from insula import __version__

pytestmark = pytest.mark.slow
# The socket is descriptor 3, and LISTEN_PID the process that becomes the daemon.
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "insula.daemon", *sys.argv[2:]])
"""
DEADLINE = 60.0  # seconds; for a host that is busy with something else


@dataclass
class Daemon:
    """report: the line of the ready pipe ({} when it was closed without one)."""

    process: subprocess.Popen[str]
    home: Path
    report: dict[str, Any]

    @property
    def socket(self) -> Path:
        return self.home / "daemon" / "insula.sock"

    def ask(self, request: str) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(DEADLINE)
            channel.connect(str(self.socket))
            channel.sendall(f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: channel.recv(65536), b""))
        found: dict[str, Any] = json.loads(answer.split(b"\r\n\r\n", 1)[1])
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)


@contextlib.contextmanager
def started(home: Path, *arguments: str, **environment: str) -> Iterator[Daemon]:
    ready, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "insula.daemon", "--home", str(home), *arguments],
        env={**os.environ, "INSULA_READY_FD": str(theirs), **environment},
        pass_fds=(theirs,),
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    try:
        with os.fdopen(ready) as pipe:
            line = pipe.read()
        yield Daemon(process, home, json.loads(line or "{}"))
    finally:
        process.kill()
        process.communicate()


async def test_served_in_process_with_another_engine(tmp_path: Path) -> None:
    """What other tests build on: the whole daemon without QEMU, ended by an event."""
    from insula.daemon import prepare_home, serve
    from insula.engine.fake import FakeEngine
    from insula.kit.paths import Home
    from insula.server.ready import Ready

    home, closing, ready = Home(tmp_path), asyncio.Event(), asyncio.Event()

    class Heard(Ready):
        def succeed(self) -> None:
            ready.set()

    prepare_home(home)
    engine: Any = FakeEngine()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(home, closing=closing, ready=Heard(), engine=engine))
        await ready.wait()
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(home.daemon_socket)), base_url="http://insula"
        ) as client:
            assert (await client.get("/v1/machines")).json() == []
            answer = await client.post("/v1/projects/default/machines/web/start?wait=5")
            assert answer.json()["code"] == "machine-not-found"
        closing.set()
    assert not home.daemon_socket.exists()


def test_life(tmp_path: Path) -> None:
    with started(tmp_path) as daemon:
        assert daemon.report == {"ok": True}
        status = json.loads((tmp_path / "daemon" / "insulad.json").read_text())
        assert status["pid"] == daemon.process.pid
        assert (status["version"], status["socket"]) == (__version__, str(daemon.socket))
        assert daemon.ask("GET /v1/machines") == []
        assert daemon.ask("GET /v1/operations") == []
        told = daemon.ask("GET /v1/daemon")
        assert told["pid"] == daemon.process.pid
        assert told["resident_bytes"] < 100 * 2**20
        assert daemon.end() == 0
        assert not daemon.socket.exists()
        assert not (tmp_path / "daemon" / "insulad.json").exists()
    assert (tmp_path / "daemon").stat().st_mode & 0o777 == 0o700
    assert "machines go on" in (tmp_path / "daemon" / "insulad.log").read_text()


def test_stop_by_request_and_by_interrupt(tmp_path: Path) -> None:
    with started(tmp_path) as daemon:
        assert daemon.ask("POST /v1/daemon/stop") == {}
        assert daemon.process.wait(DEADLINE) == 0
    with started(tmp_path) as daemon:
        assert daemon.end(signal.SIGINT) == 0


def test_second_daemon_says_so(tmp_path: Path) -> None:
    with started(tmp_path) as first, started(tmp_path) as second:
        assert second.process.wait(DEADLINE) == 73
        problem = second.report["problem"]
        assert problem["code"] == "daemon-running"
        assert problem["evidence"]["pid"] == first.process.pid
        assert second.process.stderr is not None
        assert second.process.stderr.read().startswith("insulad: Another daemon already serves")
        assert first.ask("GET /v1/version")["version"] == __version__


def test_killed_daemon_leaves_a_socket_that_the_next_one_replaces(tmp_path: Path) -> None:
    with started(tmp_path) as daemon:
        daemon.end(signal.SIGKILL)
        assert daemon.socket.exists()
    with started(tmp_path) as daemon:
        assert daemon.report == {"ok": True}
        assert daemon.ask("GET /v1/version")["version"] == __version__


def test_damaged_ledger_is_refused_kept_and_recovered(tmp_path: Path) -> None:
    (tmp_path / "insula.db").write_bytes(b"not a database at all" * 100)
    with started(tmp_path) as daemon:
        assert daemon.process.wait(DEADLINE) == 69
        assert daemon.report["problem"]["code"] == "ledger-corrupt"
        assert not daemon.socket.exists()
    with started(tmp_path, "--recover-ledger") as daemon:
        assert daemon.report == {"ok": True}
        assert "was kept as" in daemon.ask("GET /v1/daemon")["recovered"][0]
    assert [path.read_bytes()[:3] for path in tmp_path.glob("insula.db.damaged-*")] == [b"not"]


def test_a_setting_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSULA_TEMPLATE_MEMORY", "lots")
    with started(tmp_path) as daemon:
        assert daemon.process.wait(DEADLINE) == 64
        problem = daemon.report["problem"]
        assert problem["detail"] == "INSULA_TEMPLATE_MEMORY is 'lots', which is not a size."
        assert "INSULA_TEMPLATE_MEMORY=4GiB" in problem["hint"]
        assert not daemon.socket.exists()


def test_home_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with started(tmp_path / "file") as daemon:
        assert daemon.process.wait(DEADLINE) == 69
        assert daemon.report["problem"]["code"] == "home-refused"


def test_systemd_is_told_and_passes_its_socket(tmp_path: Path) -> None:
    """What sd_listen_fds(3) and sd_notify(3) say; a child of ours stands in for systemd."""
    path, notify = tmp_path / "passed.sock", tmp_path / "notify"
    with socket.socket(socket.AF_UNIX) as passed, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        passed.bind(str(path))
        passed.listen()
        told.bind(str(notify))
        told.settimeout(DEADLINE)
        process = subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD, str(passed.fileno()), "--home", str(tmp_path)],
            env={**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(notify)},
            pass_fds=(passed.fileno(),),
        )
        try:
            assert told.recv(100) == b"READY=1"
            with socket.socket(socket.AF_UNIX) as channel:
                channel.connect(str(path))
                channel.sendall(b"GET /v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert channel.recv(100).startswith(b"HTTP/1.1 200 ")
            process.terminate()
            assert told.recv(100) == b"STOPPING=1"
            assert process.wait(DEADLINE) == 0
            assert path.exists()
        finally:
            process.kill()
            process.wait()
