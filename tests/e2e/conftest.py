"""The whole program but QEMU: the real command line, the real daemon, real sockets; the fake engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from insula.storage.images import ImageStore
from tests.support.host import publish_fake_image

ROOT = Path(__file__).parents[2]


@dataclass
class Shell:
    """Runs `insula` in a home of its own, beside a daemon on the fake engine."""

    home: Path
    daemon: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("INSULA_")}
        return {**environment, "INSULA_HOME": str(self.home), "NO_COLOR": "1", "COLUMNS": "120"}

    def __call__(
        self, *words: str, status: int = 0, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; its exit status must be `status`."""
        done = subprocess.run(
            self.argv(*words),
            env=self.environment,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "insula", *words]

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.argv(*words), env=self.environment, text=True, **options)

    def data(self, *words: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self(*words, "--json").stdout)

    def crash_machines(self) -> None:
        self.daemon.send_signal(signal.SIGUSR1)

    def make_guests_stubborn(self) -> None:
        self.daemon.send_signal(signal.SIGUSR2)


def start_fake_daemon(home: Path) -> subprocess.Popen[bytes]:
    reading, writing = os.pipe()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fake_daemon", str(home)],
        cwd=ROOT,
        env={**os.environ, "INSULA_READY_FD": str(writing), "INSULA_HOME": str(home)},
        pass_fds=[writing],
    )
    os.close(writing)
    with os.fdopen(reading) as ready:
        answer = ready.readline()
    assert json.loads(answer or "{}").get("ok"), f"the daemon did not start: {answer}"
    return daemon


@pytest.fixture
def insula(tmp_path: Path) -> Iterator[Shell]:
    home = tmp_path / "home"
    publish_fake_image(ImageStore(home / "images"))
    shell = Shell(home, start_fake_daemon(home))
    yield shell
    shell.daemon.terminate()
    assert shell.daemon.wait(10) == 0
