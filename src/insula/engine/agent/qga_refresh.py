"""Over the QEMU guest agent: random numbers and time for a guest that goes on from a saved memory.

Neither is what that agent was made for, so each is checked, and what was done only in part is said.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from insula.engine.agent.protocol import AgentCannot, GuestFailed, Renewal
from insula.kit.errors import InsulaError

CLOCK_TOLERANCE = 1.0  # seconds between host and guest that pass for 'set'
_ENTROPY = 64  # bytes for each of the two ways of the script
# Forced where there is perl, as RENEW of Insula's agent does: RNDADDENTROPY, RNDRESEEDCRNG (random(4)).
# Elsewhere the bytes are only mixed in: the kernel reseeds from them at its own next turn, up to a minute
# later. They come on stdin, half for each way: a command's words can be read by everybody in the guest.
RESEED = r"""
perl -e 'sysread(STDIN, $b, 64) == 64 or exit 1; open(F, "+<", "/dev/urandom") or exit 1;
$e = pack("ii", 512, 64) . $b; ioctl(F, 0x40085203, $e) && ioctl(F, 0x5207, 0) or exit 1' 2>/dev/null &&
echo forced && exit
cat >/dev/urandom && echo mixed
"""
MIXED = "mixed in, and not forced: the guest's kernel takes it up within a minute"


class Requests(Protocol):
    """What is needed of the connection."""

    async def request(self, command: str, *, timeout: float = ..., **arguments: Any) -> Any: ...
    async def wait_ended(self, pid: int) -> dict[str, Any]: ...


async def refresh(agent: Requests) -> Renewal:
    """See Agent.refresh. Raises AgentSilent and AgentLost."""
    renewed: list[str] = []
    failed: list[tuple[str, str]] = []
    works: tuple[tuple[str, Callable[[Requests], Awaitable[str]]], ...] = (
        ("random", _renew_random),
        ("clock", _set_clock),
    )
    for name, work in works:
        why = await work(agent)
        if why:
            failed.append((name, why))
        else:
            renewed.append(name)
    return Renewal(tuple(renewed), tuple(failed))


async def _renew_random(agent: Requests) -> str:
    """Why it is not renewed, or nothing."""
    entropy = base64.b64encode(secrets.token_bytes(2 * _ENTROPY)).decode()
    try:
        started = await agent.request(
            "guest-exec", path="/bin/sh", arg=["-c", RESEED], input_data=entropy, capture_output=True
        )
        ended = await agent.wait_ended(int(started["pid"]))
    except (AgentCannot, GuestFailed) as error:
        return _words(error)
    said = base64.b64decode(ended.get("out-data", "")).decode(errors="replace").strip()
    if said == "forced":
        return ""
    if said == "mixed":
        return MIXED
    return base64.b64decode(ended.get("err-data", "")).decode(errors="replace").strip() or "not written"


async def _set_clock(agent: Requests) -> str:
    """Why it is not set, or nothing.

    The agent sets the clock, then lets hwclock(8) write it into the hardware's, and fails if a guest has no
    such program. Whether the clock that counts is right is therefore asked for.
    """
    try:
        await agent.request("guest-set-time", time=time.time_ns())
    except (AgentCannot, GuestFailed) as error:
        if await _clock_is_right(agent):
            return ""
        return _words(error)
    return ""


async def _clock_is_right(agent: Requests) -> bool:
    try:
        before = time.time()
        guest = int(await agent.request("guest-get-time")) / 1e9
    except (AgentCannot, GuestFailed):
        return False
    return before - CLOCK_TOLERANCE <= guest <= time.time() + CLOCK_TOLERANCE


def _words(error: InsulaError) -> str:
    return str(error.evidence.get("guest_error") or error)
