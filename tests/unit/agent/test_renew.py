"""RENEW, by the real agent in namespaces of its own: it would really do it, so never to this host.

There root is nobody: the clock and the kernel's random numbers stay out of its reach, and it says so.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from insula.engine.agent import wire
from insula.engine.agent.insula import InsulaAgent, connect
from insula.engine.agent.protocol import AgentCannot, Identity, Renewal, capture
from insula.engine.agent.wire import FrameType
from tests.unit.agent.test_insula_wire import SEAL, raw_session, read_refusal

if TYPE_CHECKING:
    from tests.unit.agent.conftest import Guest, StartGuest

pytestmark = [pytest.mark.timeout(20), pytest.mark.slow]

MAC, NEW_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
NEW_ID = "0123456789abcdef0123456789abcdef"
REFUSED = "Operation not permitted"
NAMESPACES = ("unshare", "--user", "--map-root-user", "--uts", "--mount", "--net")
# Nothing of this runs unless all before it succeeded: outside of the namespaces it would change the host.
INSIDE = f"""set -e
mount -t tmpfs none /etc
mount -t tmpfs none /var/lib
echo template >/etc/hostname
echo frozen >/etc/machine-id
mkdir /var/lib/dbus
echo frozen >/var/lib/dbus/machine-id
hostname template
ip link add card address {MAC} type bridge
exec "$@"
"""


@pytest.fixture
def forked(sanitized_program: Path, start_guest: StartGuest, tmp_path: Path) -> Iterator[Guest]:
    """An agent whose guest calls itself 'template' and has one card."""
    inside = tmp_path / "inside"
    inside.write_text(INSIDE)
    enter = [*NAMESPACES, "sh", str(inside)]
    if not all(shutil.which(name) for name in ("unshare", "ip", "hostname")):
        pytest.skip("unshare, ip or hostname is missing")
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make such namespaces here")
    program = tmp_path / "agent"
    program.write_text(f'#!/bin/sh\nexec {" ".join(enter)} {sanitized_program} "$@"\n')
    program.chmod(0o755)
    guest = start_guest(program)
    yield guest
    stderr = guest.stop()
    assert "ERROR: " not in stderr, stderr


async def said(agent: InsulaAgent, script: str) -> str:
    return (await capture(await agent.exec(["sh", "-c", script]))).stdout.decode()


async def test_a_guest_becomes_somebody_else_and_says_what_it_could_not(forked: Guest) -> None:
    host = Path("/proc/sys/kernel/hostname").read_text()
    agent = await connect(forked.socket, timeout=10)
    identity = Identity("web", NEW_ID, ((MAC, NEW_MAC),))
    expected = Renewal(("hostname", "machine-id", "mac"), (("random", REFUSED), ("clock", REFUSED)))
    for _ in range(2):  # doing it twice is doing it once
        assert await agent.renew(identity) == expected
        files = "/etc/hostname /etc/machine-id /var/lib/dbus/machine-id"
        assert await said(agent, f"hostname; cat {files}") == f"web\nweb\n{NEW_ID}\n{NEW_ID}\n"
        assert NEW_MAC in await said(agent, "ip link show card")
    await agent.close()
    assert Path("/proc/sys/kernel/hostname").read_text() == host


async def test_a_guest_that_goes_on_as_itself_keeps_its_identity(forked: Guest) -> None:
    agent = await connect(forked.socket, timeout=10)
    assert await agent.refresh() == Renewal((), (("random", REFUSED), ("clock", REFUSED)))
    assert await said(agent, "hostname; cat /etc/hostname /etc/machine-id") == "template\ntemplate\nfrozen\n"
    assert MAC in await said(agent, "ip link show card")
    old = wire.CAN_RENEW | 3
    agent.hello = replace(agent.hello, capabilities=old)
    with pytest.raises(AgentCannot, match="random numbers and clock alone"):
        await agent.refresh()
    await agent.close()


async def test_a_card_that_is_not_there_is_told(forked: Guest) -> None:
    agent = await connect(forked.socket, timeout=10)
    told = await agent.renew(Identity("web", NEW_ID, (("02:00:00:00:00:0a", "02:00:00:00:00:0b"),)))
    assert dict(told.failed)["mac"] == "No such device"
    told = await agent.renew(Identity("web", NEW_ID, ((MAC, "nonsense"),)))
    assert dict(told.failed)["mac"] == "Invalid argument"
    await agent.close()


def malformed() -> dict[str, bytes]:
    identity = Identity("web", NEW_ID, ((MAC, NEW_MAC),))
    whole = wire.encode_renew(identity, b"e" * 32, 1)
    cards = len(wire.encode_renew(Identity("web", NEW_ID), b"", 1)) + 32 - 4  # where their number stands
    return {
        "nothing": b"",
        "no entropy": whole[:12],
        "entropy beyond the end": whole[:8] + b"\xff\xff\xff\xff" + whole[12:],
        "half a hostname": whole[: 12 + 32 + 5],
        "half a card": whole[:-1],
        "more than is known": whole + b"\0",
        "no hostname": wire.encode_renew(Identity("", NEW_ID), b"e" * 32, 1),
        "no machine-id": wire.encode_renew(Identity("web", ""), b"e" * 32, 1),
        "too many cards": whole[:cards] + b"\xff\xff\0\0" + whole[cards + 4 :],
    }


@pytest.mark.parametrize("what", malformed())
async def test_half_an_identity_is_none(forked: Guest, what: str) -> None:
    connection = await raw_session(forked.socket)
    connection.sendall(wire.encode_frame(FrameType.RENEW, 1, malformed()[what], SEAL))
    assert "RENEW" in read_refusal(connection)
    connection.close()
    agent = await connect(forked.socket, timeout=10)
    assert await said(agent, "hostname; cat /etc/hostname /etc/machine-id") == "template\ntemplate\nfrozen\n"
    await agent.close()
