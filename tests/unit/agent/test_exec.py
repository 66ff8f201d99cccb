"""What the C agent gives to a command, and what is left of it in the agent: nothing."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from insula.engine.agent.insula import InsulaAgent, connect
from insula.engine.agent.protocol import GuestCommandNotFound, GuestRefused, capture

if TYPE_CHECKING:
    from tests.unit.agent.conftest import Guest, StartGuest

pytestmark = pytest.mark.timeout(20)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
US = pwd.getpwuid(os.geteuid())


@pytest.fixture
def guest(sanitized_program: Path, start_guest: StartGuest) -> Guest:
    """One that says so when it touches memory that it should not."""
    return start_guest(sanitized_program)


@pytest.fixture
async def agent(guest: Guest) -> AsyncIterator[InsulaAgent]:
    connected = await connect(guest.socket, timeout=10)
    yield connected
    await connected.close()
    assert guest.stop() == ""


async def environment(
    agent: InsulaAgent, env: Mapping[str, str] | None = None, user: str | None = None, cwd: str | None = None
) -> dict[str, str]:
    """What `env` says, with PWD, and each word once."""
    captured = await capture(await agent.exec(["env", "-0"], env=env or {}, user=user, cwd=cwd))
    words = captured.stdout.decode().rstrip("\0").split("\0")
    said = dict(word.split("=", 1) for word in words)
    assert len(said) == len(words)
    return said


def our_own() -> dict[str, str]:
    return {
        "PATH": PATH,
        "HOME": US.pw_dir,
        "USER": US.pw_name,
        "LOGNAME": US.pw_name,
        "SHELL": US.pw_shell or "/bin/sh",
    }


@pytest.mark.parametrize("cwd", [None, "/"])  # the agent stands still for the first, and not for the second
async def test_a_commands_environment_is_not_the_next_ones(agent: InsulaAgent, cwd: str | None) -> None:
    assert await environment(agent, cwd=cwd) == our_own()
    additions = {"WORD": "a = ä", "HOME": "/elsewhere", "EMPTY": "", "HOMER": "1"}
    assert await environment(agent, additions, cwd=cwd) == {**our_own(), **additions}
    assert await environment(agent, cwd=cwd) == our_own()


async def test_many_additions(agent: InsulaAgent) -> None:
    additions = {f"WORD_{number}": str(number) for number in range(2000)}
    assert await environment(agent, additions) == {**our_own(), **additions}


async def test_the_commands_own_path_is_searched(agent: InsulaAgent, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "here").chmod(0o755)
    captured = await capture(await agent.exec(["here"], env={"PATH": f"{tmp_path}:{PATH}"}))
    assert captured.stdout == b"found\n"
    with pytest.raises(GuestCommandNotFound):
        await agent.exec(["here"])
    assert (await capture(await agent.exec(["true"]))).status.code == 0


@pytest.mark.parametrize("command", ["no-such-command", "/no/such/command"])
async def test_a_command_that_does_not_exist_leaves_nothing(
    agent: InsulaAgent, guest: Guest, command: str
) -> None:
    descriptors = Path(f"/proc/{guest.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        with pytest.raises(GuestCommandNotFound):
            await agent.exec([command], env={"LEFT": "over"})
    assert await environment(agent) == our_own()
    assert len(list(descriptors.iterdir())) == before
    children = Path(f"/proc/{guest.process.pid}/task/{guest.process.pid}/children")
    async with asyncio.timeout(5):
        while children.read_text():  # reaped in the agent's next round
            await agent.ping(5)


async def test_signals_are_as_for_any_program(agent: InsulaAgent) -> None:
    for cwd in (None, "/"):
        captured = await capture(await agent.exec(["cat", "/proc/self/status"], cwd=cwd))
        said = dict(line.split(":\t", 1) for line in captured.stdout.decode().splitlines())
        assert int(said["SigBlk"], 16) == int(said["SigIgn"], 16) == int(said["SigCgt"], 16) == 0
    assert await agent.ping(5)


async def test_a_directory_that_is_not_there(agent: InsulaAgent, tmp_path: Path) -> None:
    with pytest.raises(GuestRefused, match="cannot enter"):
        await agent.exec(["true"], cwd="/no/such/place")
    captured = await capture(await agent.exec(["pwd"], cwd=str(tmp_path)))
    assert captured.stdout.decode() == f"{tmp_path}\n"
    captured = await capture(await agent.exec(["pwd"]))
    assert captured.stdout.decode() == f"{US.pw_dir}\n"


async def test_we_need_not_be_listed(agent: InsulaAgent, guest: Guest) -> None:
    guest.users.write_text("somebody:x:4711:4711::/home:/bin/sh\n")
    assert await environment(agent) == {"PATH": PATH, "HOME": "/"}
    guest.users.unlink()
    assert await environment(agent) == {"PATH": PATH, "HOME": "/"}
    captured = await capture(await agent.exec(["pwd"]))
    assert captured.stdout == b"/\n"
    with pytest.raises(GuestRefused, match="as user"):
        await agent.exec(["true"], user="somebody")


async def test_passwd_as_people_write_it(agent: InsulaAgent, guest: Guest) -> None:
    """Lines that are none, more than the agent reads at once, no shell, no end of the last line."""
    number = os.geteuid()
    crowd = "".join(f"user{n}:x:{n}:{n}:somebody:/home/user{n}:/bin/sh\n" for n in range(100000, 101000))
    nonsense = (
        "\n# comment\n+::::::\nshort:x:1\nus:x::0::/:/bin/sh\nus:x:4294967296:0::/:/bin/sh\nus:x:-1:0::/:\n"
    )
    guest.users.write_text(f"{nonsense}{crowd}us:x:{number}:{US.pw_gid}:We, ourselves:/tmp:")
    wanted = {"PATH": PATH, "HOME": "/tmp", "USER": "us", "LOGNAME": "us", "SHELL": "/bin/sh"}
    for user in (None, "us", str(number)):
        assert await environment(agent, user=user) == wanted
    for user in ("user", "u", "user100999x", "4294967296", " 0", "short"):
        with pytest.raises(GuestRefused, match="as user"):
            await agent.exec(["true"], user=user)


@pytest.mark.parametrize("length", [4000, 4095, 4096, 4097, 5000, 8192, 8193, 100_000])
async def test_a_line_longer_than_any_user_s_hides_nobody(
    agent: InsulaAgent, guest: Guest, length: int
) -> None:
    long = "x" * (length - 1) + "\n"
    us = f"us:x:{os.geteuid()}:0::/tmp:/bin/sh"
    wanted = {"PATH": PATH, "HOME": "/tmp", "USER": "us", "LOGNAME": "us", "SHELL": "/bin/sh"}
    for text in (f"{long}{us}", f"{long}{long}{us}\n", f"a:x:1:1::/:/bin/sh\n{long}{us}\n{long}"):
        guest.users.write_text(text)
        assert await environment(agent) == wanted
    guest.users.write_text(long.rstrip())
    assert await environment(agent) == {"PATH": PATH, "HOME": "/"}


@as_root
async def test_another_user_and_then_ourselves_again(agent: InsulaAgent, tmp_path: Path) -> None:
    script = "id -u; id -g; id -G; echo $HOME; pwd"
    captured = await capture(await agent.exec(["sh", "-c", script], user="nobody"))
    nobody = pwd.getpwnam("nobody")
    home = nobody.pw_dir if Path(nobody.pw_dir).is_dir() else "/"
    groups = os.getgrouplist("nobody", nobody.pw_gid)
    assert captured.stdout.decode().split("\n") == [
        *(str(nobody.pw_uid), str(nobody.pw_gid), " ".join(map(str, groups))),
        *(nobody.pw_dir, home, ""),
    ]
    tmp_path.chmod(0o700)
    with pytest.raises(GuestRefused, match="cannot enter"):
        await agent.exec(["true"], user="nobody", cwd=str(tmp_path))
    captured = await capture(await agent.exec(["id", "-u"]))
    assert captured.stdout == b"0\n"
