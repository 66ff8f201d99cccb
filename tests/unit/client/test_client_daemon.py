"""Starting the daemon on demand, with a small program in the daemon's place."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from insula.client import daemon
from insula.client.errors import DaemonNotStarted, DaemonUnreachable, HomeUnusable
from insula.client.sdk import Client
from insula.kit.errors import Conflict

LISTEN = """
import fcntl, json, os, socket, sys
home = sys.argv[sys.argv.index("--home") + 1] + "/daemon"
lock = open(home + "/insulad.lock", "w")
ready = int(os.environ["INSULA_READY_FD"])
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    os.write(ready, b'{"problem": {"code": "daemon-running", "family": "conflict", "detail": "Held."}}\\n')
    sys.exit(73)
with open(home + "/starts", "a") as starts:
    starts.write("x")
listener = socket.socket(socket.AF_UNIX)
listener.bind(home + "/insula.sock")
listener.listen()
os.write(ready, b'{"ok": true}\\n')
os.close(ready)
while True:
    channel, _ = listener.accept()
    if b"GET" in channel.recv(65536):
        channel.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n[]")
        os._exit(0)  # so that no test leaves it behind
    channel.close()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def replace_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable} -IS\n{program}")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.slow
def test_first_request_starts_it(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_daemon(monkeypatch, tmp_path, LISTEN)
    assert Client(home).machines() == []
    assert (home / "daemon").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_several_at_once_start_one(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_daemon(monkeypatch, tmp_path, LISTEN)
    begin = threading.Barrier(5)

    def connect() -> None:
        begin.wait()
        daemon.start_daemon(str(home)).close()

    threads = [threading.Thread(target=connect) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (home / "daemon" / "starts").read_text() == "x"
    assert Client(home).machines() == []  # ends it


@pytest.mark.slow
def test_problem_of_the_daemon_is_ours(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = b'{"problem": {"code": "ledger-bad", "family": "conflict", "detail": "The ledger is bad."}}\n'
    replace_daemon(
        monkeypatch, tmp_path, f"import os; os.write(int(os.environ['INSULA_READY_FD']), {line!r})"
    )
    with pytest.raises(Conflict, match="The ledger is bad") as caught:
        Client(home).machines()
    assert caught.value.code == "ledger-bad"


@pytest.mark.slow
def test_silent_end_shows_status_and_log(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "daemon").mkdir(parents=True)
    (home / "daemon" / "insulad.log").write_text("of old\n")
    replace_daemon(monkeypatch, tmp_path, "import sys; sys.exit('ImportError: no such thing')")
    with pytest.raises(DaemonNotStarted, match="status 1") as caught:
        Client(home).machines()
    assert caught.value.evidence["log"] == "ImportError: no such thing"
    assert str(home / "daemon" / "insulad.log") in caught.value.hint


@pytest.mark.slow
def test_daemon_that_never_gets_ready(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_daemon(monkeypatch, tmp_path, "import sys; sys.stdin = None\nimport signal; signal.pause()")
    with pytest.raises(DaemonNotStarted, match=r"not ready within 0\.05s"):
        daemon.start_daemon(str(home), timeout=0.05)
    process = daemon._started[-1]
    process.kill()
    process.wait()


@pytest.mark.slow
def test_rival_that_holds_the_lock_and_never_listens(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_daemon(monkeypatch, tmp_path, LISTEN)
    monkeypatch.setattr(daemon, "RIVAL_TIMEOUT", 0.05)
    (home / "daemon").mkdir(parents=True)
    lock = home / "daemon" / "insulad.lock"
    rival = subprocess.Popen(["flock", str(lock), "sh", "-c", "echo; read x"], stdin=-1, stdout=-1)
    assert rival.stdout is not None
    rival.stdout.readline()
    try:
        with pytest.raises(DaemonUnreachable, match="Another daemon holds"):
            Client(home).machines()
    finally:
        rival.communicate()
    assert Client(home).machines() == []  # and once it has let go, ours starts


def test_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((HomeUnusable, DaemonUnreachable)) as caught:
        Client(tmp_path / "file" / "home").machines()
    assert "INSULA_HOME=DIR" in caught.value.hint


def test_environment_of_a_checkout_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "src:other")
    paths = daemon._environment(7)["PYTHONPATH"].split(":")
    assert all(os.path.isabs(path) for path in paths)  # noqa: PTH117
    root = str(Path(daemon.__file__).parents[2])
    assert (root in paths) == (not root.endswith("-packages"))  # installed, it needs no help
