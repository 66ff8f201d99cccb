"""Making a fork itself: nothing of its template's identity may be left in it.

What the guest could not renew is told by name. Random numbers are the exception: a guest that goes on with
its siblings' random numbers is not let loose, for its keys would be theirs.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from insula.engine.agent.protocol import Captured, Identity, capture
from insula.engine.protocol import Instance
from insula.kit.errors import InsulaError, Unavailable
from insula.model.template import cards_of
from insula.node.context import MachineContext
from insula.node.templates import HOOK

HOOK_PATIENCE = 60.0  # seconds for an image's own program to tell the guest's services
AGENT_PATIENCE = 30.0  # seconds for the agent of a guest that was idle when it was frozen; 0.05 s is usual


class NotItself(Unavailable):
    """A fork could not be given an identity of its own."""

    code = "not-itself"


def identity_of(context: MachineContext) -> Identity:
    """Who the guest is to be. The machine-id is made from the machine's uid, so that doing it twice is doing
    it once."""
    machine = context.machine
    # A sibling woke up with the cards of the machine that was captured, another fork with its template's.
    cards = context.journal.remembered.get("cards", cards_of(machine))
    machine_id = hashlib.sha256(f"machine-id {machine.uid}".encode()).hexdigest()[:32]
    return Identity(context.hostname, machine_id, tuple((old, new) for old, new in cards))


async def renew(context: MachineContext, instance: Instance) -> dict[str, Any]:
    """What was renewed and what was not, with the reason. Raises NotItself."""
    identity = identity_of(context)
    name = context.machine.name
    try:
        agent = await instance.agent(AGENT_PATIENCE)
        renewal = await agent.renew(identity)
        failed = dict(renewal.failed)
        renewed = list(dict.fromkeys(renewal.renewed))
        if renewal.hook and (identity.macs or context.machine.cloud_init is not None):
            words = [identity.hostname, *(new for _, new in identity.macs)]
            try:
                async with asyncio.timeout(HOOK_PATIENCE):
                    told = await capture(await agent.exec([HOOK, "wake", *words]))
                _hear(told, renewed, failed)
            except TimeoutError:
                failed["hook"] = f"{HOOK} did not end within {HOOK_PATIENCE:.0f}s"
    except InsulaError as error:
        raise NotItself(
            f"Machine '{name}' was forked, and its guest did not take an identity of its own.",
            hint="Boot it instead: insula run --cold ...",
        ) from error
    if "random" in failed:
        raise NotItself(
            f"Machine '{name}' was forked; its guest cannot renew its random numbers: {failed['random']}.",
            hint="Boot it instead: insula run --cold ...",
        )
    for what, why in failed.items():
        context.note(f"The guest could not renew its {what}: {why}.")
    return {"renewed": renewed, "failed": failed}


def _hear(told: Captured, renewed: list[str], failed: dict[str, str]) -> None:
    """A hook prints a line 'done WHAT' or 'failed WHAT: WHY' for each thing that it renews."""
    for line in told.stdout.decode(errors="replace").splitlines():
        verdict, _, rest = line.partition(" ")
        if verdict == "done" and rest:
            renewed.append(rest)
        elif verdict == "failed" and rest:
            what, _, why = rest.partition(": ")
            failed[what] = why or "it does not say why"
    if told.status.shell_status != 0:
        failed["hook"] = f"{HOOK} ended with status {told.status.shell_status}"
