"""A guest agent built from its source and run on this host; its port is a listening socket it inherits."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

import insula.storage
from insula.engine.agent.insula import InsulaAgent, connect

# No agent that runs on this host can freeze its file systems, whatever it is told: see fakefreeze.c.
FAKE_FREEZE = Path(__file__).with_name("fakefreeze.c")
HARMLESS = ('-DMOUNTINFO=getenv("FREEZE_MOUNTS")', "-Wl,--wrap=ioctl")
OWN_USERS = '-DPASSWD=getenv("AGENT_PASSWD")'
SOURCE = Path(insula.storage.__path__[0]) / "agent" / "insula-agent.c"
RELEASE = ("-O2", "-static")
SANITIZED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def build_agent(directory: Path, options: tuple[str, ...]) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc and libc6-dev")
    program = directory / "insula-agent"
    strict = ("-Wall", "-Wextra", "-Werror")
    command = [compiler, *options, *HARMLESS, OWN_USERS, *strict, "-o", str(program)]
    command += [str(SOURCE), str(FAKE_FREEZE)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if built.returncode != 0 and "-fsanitize" in " ".join(options) and "cannot find" in built.stderr:
        pytest.skip("this compiler has no sanitizer libraries")
    assert built.returncode == 0, built.stderr
    return program


@pytest.fixture(scope="session")
def agent_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_agent(tmp_path_factory.mktemp("agent"), RELEASE)


@pytest.fixture(scope="session")
def sanitized_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_agent(tmp_path_factory.mktemp("agent-asan"), SANITIZED)


class Guest:
    """An agent process and the socket it serves."""

    def __init__(self, program: Path, directory: Path, *options: str) -> None:
        self.socket = directory / "agent.sock"
        self.mounts = directory / "mountinfo"
        self.mounts.touch()
        self.freeze_log = directory / "freeze.log"
        self.users = directory / "passwd"
        self.users.write_bytes(Path("/etc/passwd").read_bytes())
        places = {
            "FREEZE_MOUNTS": str(self.mounts),
            "FREEZE_LOG": str(self.freeze_log),
            "AGENT_PASSWD": str(self.users),
        }
        self._stderr: list[bytes] = []
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.socket))
            listener.listen(1)
            descriptor = listener.fileno()
            self.process = subprocess.Popen(
                [program, *options, "--fd", str(descriptor)],
                pass_fds=(descriptor,),
                stderr=subprocess.PIPE,
                env={**os.environ, **places},
                start_new_session=True,
            )

    def stop(self) -> str:
        """End the agent; what it wrote to stderr."""
        if not self._stderr:
            self.process.terminate()
            self._stderr.append(self.process.communicate(timeout=10)[1])
        return self._stderr[0].decode(errors="replace")


StartGuest = Callable[..., Guest]


@pytest.fixture
def start_guest(tmp_path: Path) -> Iterator[StartGuest]:
    """Start an agent: start_guest(program, *options); it is ended after the test."""
    running: list[Guest] = []

    def start(program: Path, *options: str) -> Guest:
        running.append(Guest(program, tmp_path, *options))
        return running[-1]

    yield start
    for guest in running:
        guest.stop()


@pytest.fixture
def guest(agent_program: Path, start_guest: StartGuest) -> Guest:
    return start_guest(agent_program)


@pytest.fixture
async def agent(guest: Guest) -> AsyncIterator[InsulaAgent]:
    connected = await connect(guest.socket, timeout=10)
    yield connected
    await connected.close()
