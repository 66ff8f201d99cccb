"""stop: ask the guest (its agent, else the power button), wait, and say so before forcing it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from insula.engine.errors import EngineLost
from insula.engine.protocol import Instance
from insula.kit.errors import InsulaError, Unavailable
from insula.kit.units import format_duration
from insula.model.observation import Phase
from insula.node.context import MachineContext
from insula.node.procedure import Step

DEFAULT_TIMEOUT = 30.0  # seconds a guest gets to shut down, as with libvirt-guests and Proxmox' default order
PRESS_AGAIN = (3.0, 5.0, 10.0, 20.0)  # seconds between one press of the power button and the next
AGENT_TIMEOUT = 3.0  # seconds for the agent to take the request before the power button is pressed instead


class GuestDidNotStop(Unavailable):
    """The guest was asked to shut down, did not within the time, and forcing it was not wanted."""

    code = "guest-did-not-stop"


async def ask(context: MachineContext) -> None:
    instance = context.instance
    if instance is None:
        return
    if await instance.state() != "running":
        await instance.resume()  # a guest whose vCPUs stand cannot shut down
    context.progress("Asking the guest to shut down")
    seen = context.observer.seen
    asked = False
    if seen is not None and seen.agent == "connected":
        try:
            async with asyncio.timeout(AGENT_TIMEOUT + 1):
                agent = await instance.agent(AGENT_TIMEOUT)
                await agent.shutdown("poweroff")
            asked = True
        except (InsulaError, TimeoutError):
            context.note("The guest agent did not take the request; the power button was pressed instead.")
    if not asked and context.instance is not None:
        await _press(instance)
    if context.instance is not None:
        await context.observer.see(phase=Phase.STOPPING, reason="Asked to shut down.")


async def _press(instance: Instance) -> None:
    """A machine that ends just now hears nothing any more; its end is what is waited for."""
    with contextlib.suppress(EngineLost):
        await instance.press_power_button()


async def _wait_pressing(context: MachineContext) -> None:
    """Wait for the end; press the power button again now and then: a guest that was still booting at the
    first time has not heard it, and one that has heard it does nothing more."""
    for interval in PRESS_AGAIN:
        try:
            async with asyncio.timeout(interval):
                await context.wait_ended()
            return
        except TimeoutError:
            if context.instance is not None:
                await _press(context.instance)
    await context.wait_ended()


async def wait_or_force(context: MachineContext) -> None:
    """Wait for the guest; after the timeout end it, or (force false) give up and leave it running."""
    timeout = float(context.parameters.get("timeout", DEFAULT_TIMEOUT))
    try:
        async with asyncio.timeout(timeout):
            await _wait_pressing(context)
        return
    except TimeoutError:
        pass
    waited = format_duration(timeout)
    if not context.parameters.get("force", True):
        await context.observer.see(phase=Phase.RUNNING, reason=f"It did not shut down within {waited}.")
        name = context.operation.name
        raise GuestDidNotStop(
            f"Machine '{name}' did not shut down within {waited}, and still runs.",
            hint=f"Give it longer (insula stop --timeout 2m {name}) or end it: insula kill {name}",
        )
    context.note(f"The guest did not shut down within {waited}; it was forced.")
    context.progress(f"The guest did not shut down within {waited}; forcing it")
    if context.instance is not None:
        await context.instance.kill()
    await context.wait_ended()


def steps(context: MachineContext) -> Sequence[Step[MachineContext]]:
    return [Step("ask the guest", ask), Step("wait", wait_or_force)]
