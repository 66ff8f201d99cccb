"""kill -9 of the real daemon in the middle of everything, and what a check finds afterwards."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.boots import IMAGES, ROOT, RealShell, has_image, keep_logs

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(not has_image("micro"), reason="image micro is not built"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
]
MIB = 2**20


@dataclass
class OwnImages(RealShell):
    """A home with its own images: imports are killed in it."""

    @property
    def environment(self) -> dict[str, str]:
        return {k: v for k, v in super().environment.items() if k != "INSULA_IMAGES"}

    def kill_daemon_when(self, words: list[str], is_time: Callable[[], object]) -> None:
        """Run a command, and kill -9 the daemon at that moment; what becomes of the command is its own."""
        daemon = self.data("daemon", "status")["pid"]
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with self.popen(*words, **output) as command:
            deadline = time.monotonic() + 60
            while not is_time():
                assert command.poll() is None, f"{words} had ended before the moment to kill it"
                assert time.monotonic() < deadline, f"the moment to kill {words} did not come"
            os.kill(daemon, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(120)

    def settle(self) -> None:
        """Until the daemon that came back has gone on with everything."""
        for operation in self.data("op", "ls"):
            self("op", "wait", operation["uid"], status=None)

    def check(self) -> Any:
        """What is wrong; every bit of it is to be such that prune clears it, and then nothing is."""
        found = self.data_of("system", "check")["problems"]
        assert {problem["remedy"] for problem in found} <= {"prune"}, found
        if found:
            cleared = self.data("system", "prune", "--yes")
            assert {one["path"] for one in cleared["removed"]} <= {problem["path"] for problem in found}
            assert self.data("system", "check")["problems"] == []
        return found

    def data_of(self, *words: str) -> Any:
        """Likewise, of a command that may exit with 65."""
        import json

        return json.loads(self(*words, "--json", status=None).stdout)


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnImages]:
    shell = OwnImages(tmp_path_factory.mktemp("boots") / "home")
    images = shell.home / "images"
    blob = (IMAGES / "micro").resolve()
    shutil.copytree(blob, images / "blobs" / blob.name)
    (images / "micro").symlink_to(f"blobs/{blob.name}")
    try:
        yield shell
    finally:
        keep_logs(shell.home, ROOT / "test-artifacts" / "housekeeping")
        shell.clean_up()


def entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def test_nothing_is_left_whenever_the_daemon_dies(insula: OwnImages, tmp_path: Path) -> None:
    home = insula.home
    assert insula.data("system", "check")["clean"]
    # While the first launch makes its template.
    run = ["run", "-d", "--name", "web", "micro"]
    insula.kill_daemon_when(run, lambda: any(home.glob("templates/*/qemu.pid")))
    insula.settle()
    insula.check()
    assert insula.info("web")["phase"] == "running"

    # While a machine is created.
    insula.kill_daemon_when(
        ["run", "-d", "--name", "db", "micro"], lambda: len(entries(home / "machines")) > 1
    )
    insula.settle()
    insula.check()

    # While one is forked.
    insula.kill_daemon_when(["fork", "web", "-n", "2"], lambda: entries(home / "captures"))
    insula.settle()
    insula.check()
    assert entries(home / "captures") == []
    assert {machine["name"] for machine in insula.data("ls")} == {"web", "db", "web-1", "web-2"}

    # While an image is imported.
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as stream:
        for _ in range(192):
            stream.write(os.urandom(MIB))
    words = ["image", "import", str(disk), "--name", "imported", "--format", "raw"]
    insula.kill_daemon_when(words, lambda: any(home.glob("images/builds/*/image/disk.raw")))
    insula.settle()
    insula.check()
    assert "imported" in {image["name"] for image in insula.data("image", "ls")}

    # What nobody needs goes, and what is needed stays.
    doomed = home / "machines" / f".removing-{'0' * 16}"
    doomed.mkdir()
    (doomed / "disk").write_bytes(bytes(MIB))
    os.utime(doomed, (0, 0))
    assert [problem["path"] for problem in insula.check()] == [str(doomed)]
    usage = insula.data("system", "df")
    kinds = {kind["kind"]: kind for kind in usage["kinds"]}
    assert kinds["machine"]["count"] == 4
    assert kinds["template"]["memory_bytes"] > 0
    assert {part["state"] for part in usage["parts"]} <= {"needed", "cache", "foreign"}
    for name in ("web", "db", "web-1", "web-2"):
        assert insula("exec", name, "--", "hostname").stdout.decode().strip() == name
    assert insula.data("system", "check", "--disks")["clean"]


def test_nothing_outlives_a_home_that_is_removed(tmp_path: Path) -> None:
    shell = RealShell(tmp_path / "home")
    shell("run", "--rm", "micro", "--", "true")
    daemon = shell.data("daemon", "status")["pid"]
    assert len(shell.processes()) > 1, "nobody keeps the memory of the template"
    watch = os.pidfd_open(daemon)
    shutil.rmtree(shell.home)
    assert select.select([watch], [], [], 20)[0], "the daemon lives on"
    os.close(watch)
    deadline = time.monotonic() + 10
    while shell.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert shell.processes() == []


def test_a_machine_outlives_its_home(tmp_path: Path) -> None:
    shell = RealShell(tmp_path / "home")
    shell("run", "--name", "web", "micro")
    pid = shell.info("web")["pid"]
    daemon = os.pidfd_open(shell.data("daemon", "status")["pid"])
    watch = os.pidfd_open(pid)
    try:
        shutil.rmtree(shell.home)
        assert select.select([watch, daemon], [], [], 3)[0] == []
        signal.pidfd_send_signal(watch, signal.SIGKILL)
        assert select.select([daemon], [], [], 30)[0], "the daemon outlives the last machine of its home"
    finally:
        for descriptor in (watch, daemon):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            assert select.select([descriptor], [], [], 10)[0]
            os.close(descriptor)
