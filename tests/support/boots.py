"""Running the real thing: `insula` in a home of its own, and the proof that nothing is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insula.kit.paths import AGENT_SOCKET

ROOT = Path(__file__).parents[2]
IMAGES = Path(os.environ.get("INSULA_IMAGES") or ROOT / ".cache" / "images")


def has_image(name: str) -> bool:
    return (IMAGES / name / "manifest.json").is_file()


def free_port() -> int:
    """A TCP port of the loopback that nobody has: other tests may run beside these."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class RealShell:
    """Runs `insula` in one home; the daemon starts by itself."""

    home: Path
    images: Path = IMAGES

    @property
    def environment(self) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("INSULA_")}
        return {
            **environment,
            "INSULA_HOME": str(self.home),
            "INSULA_IMAGES": str(self.images),
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "insula", *words]

    def __call__(
        self, *words: str, status: int | None = 0, input: bytes | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            self.argv(*words),
            env=self.environment,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if status is not None:
            told = f"{words}: {done.returncode}\n{done.stdout[-2000:]!r}\n{done.stderr.decode()[-4000:]}"
            assert done.returncode == status, told
        return done

    def text(self, *words: str, timeout: float = 120) -> str:
        return self(*words, timeout=timeout).stdout.decode()

    def data(self, *words: str) -> Any:
        return json.loads(self(*words, "--json").stdout)

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.argv(*words), env=self.environment, **options)

    def info(self, name: str) -> Any:
        return self.data("info", name)

    def agent_socket(self, name: str, file: str = AGENT_SOCKET) -> Path:
        """The port of a machine's agent, free for us: the daemon is ended until the next command."""
        directory = self.home / "machines" / self.info(name)["uid"]
        self("daemon", "stop")
        return directory / file

    def kill_daemon(self) -> None:
        """kill -9, and wait until it is no more than a zombie."""
        pid = self.data("daemon", "status")["pid"]
        watch = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        import select

        assert select.select([watch], [], [], 10)[0], "the daemon survived kill -9"
        os.close(watch)

    def processes(self) -> list[str]:
        """Command lines of living processes that work in this home (zombies aside)."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                cwd = str((entry / "cwd").readlink())
                if line and (str(self.home) in line or cwd.startswith(str(self.home))):
                    found.append(line[:200])
        return found

    def clean_up(self) -> None:
        """Remove every machine and template, stop the daemon; fail if anything is left."""
        for machine in self.data("ls", "--all"):
            self("rm", "-f", machine["name"])
        self("template", "prune")
        left = sorted(
            str(path) for room in ("machines", "templates") for path in (self.home / room).rglob("*")
        )
        self("daemon", "stop")
        deadline = time.monotonic() + 10
        while processes := self.processes():
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        assert not left, f"files were left: {left}"
        assert not processes, f"processes were left: {processes}"


@contextlib.contextmanager
def real_home(path: Path, keep_in: Path | None = None, images: Path = IMAGES) -> Iterator[RealShell]:
    """A home for a module's boots. On failure its logs are kept in `keep_in`."""
    shell = RealShell(path, images)
    try:
        yield shell
    finally:
        if keep_in is not None:
            keep_logs(shell.home, keep_in)
        shell.clean_up()


def copy_image(name: str, images: Path) -> Path:
    """A directory of images with this one, whose files are shared with the tests' own."""
    blob = (IMAGES / name).resolve()
    shutil.copytree(blob, images / "blobs" / blob.name, copy_function=os.link)
    (images / name).symlink_to(Path("blobs") / blob.name)
    return images


def keep_logs(home: Path, destination: Path) -> None:
    """Copy what tells why a boot failed: serial logs, commands, stderr, the daemon's log."""
    destination.mkdir(parents=True, exist_ok=True)
    names = ("serial.log", "command.sh", "qemu.stderr", "plan.json")
    files = [*home.glob("machines/*/*"), *home.glob("daemon/*.log")]
    for file in files:
        if file.name in names or file.suffix == ".log":
            with contextlib.suppress(OSError):
                shutil.copyfile(file, destination / f"{file.parent.name}-{file.name}")
