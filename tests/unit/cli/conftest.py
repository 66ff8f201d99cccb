from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from insula.cli import interrupts
from insula.cli.main import run
from tests.unit.client.stub import Stub

SOURCE = Path(__file__).parents[3] / "src"


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    with Stub(tmp_path / "home") as stub:
        monkeypatch.setenv("INSULA_HOME", str(stub.home))
        yield stub


@dataclass
class Ran:
    status: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def insula(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Run a command line in this process, stdin from `stdin`; INSULA_HOME has nobody in it without a stub."""
    if "INSULA_HOME" not in os.environ:
        monkeypatch.setenv("INSULA_HOME", str(tmp_path / "nobody"))
    monkeypatch.setattr(interrupts, "arm", lambda: None)
    stdin = os.dup(0)

    def command(*argv: str, stdin: bytes = b"") -> Ran:
        reader, writer = os.pipe()
        os.write(writer, stdin)
        os.close(writer)
        os.dup2(reader, 0)
        os.close(reader)
        status = run(list(argv))
        out, err = capfd.readouterr()
        return Ran(status, out, err)

    yield command
    os.dup2(stdin, 0)
    os.close(stdin)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


def start(*argv: str, **options: object) -> subprocess.Popen[bytes]:
    """The program itself, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "insula", *argv],
        env=environment(),
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where tests run in background
        **{"stdin": -3, "stdout": -1, "stderr": -1, **options},  # type: ignore[arg-type]
    )
