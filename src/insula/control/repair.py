"""Repair: looks at everything, on a nudge and now and then. It may start; it removes only by a given consent.

crash, policy always            start again, later and later (planner.repair)
host came back, always or keep  start again
the guest powered itself off    what is wanted becomes `off`: it has spoken
ended, policy once              what is wanted becomes `off`
ended, ephemeral                removed: the consent was given when it was made so
layers to be merged             merged, when nobody wants anything of the machine
the guest ejected its medium    its drive is wanted empty: it has spoken
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from insula.control.desk import Desk
from insula.control.media import ejection
from insula.control.request import VerbRequest
from insula.kit.aio import Crew
from insula.kit.clock import monotonic, utc_now
from insula.kit.errors import Conflict, InsulaError, NotFound
from insula.model.machine import Machine, Power, RunPolicy
from insula.model.observation import Observation, Phase
from insula.model.operation import Operation
from insula.planner.repair import plan_restart
from insula.store.protocol import Put

log = logging.getLogger(__name__)

ROUND = 30.0  # seconds between rounds over all machines when nothing nudges
MERGE_AGAIN = 600.0  # seconds before layers are merged again that were not: forks stand on them, or no room


class Repair:
    """One task that looks at machines whose observation changed, and at all of them every ROUND seconds."""

    def __init__(self, desk: Desk, submit: Callable[[VerbRequest], Awaitable[Operation]], crew: Crew) -> None:
        self._desk = desk
        self._submit = submit
        self._crew = crew
        self._scheduled: set[str] = set()
        self._merged: dict[str, float] = {}  # when layers of a machine were last tried to be merged

    def start(self) -> None:
        self._crew.start(self._follow(), "repair follows observations")
        self._crew.start(self._rounds(), "repair rounds")

    async def _rounds(self) -> None:
        while True:
            for stored in self._desk.store.all(Machine):
                await self.look(stored.document.uid)
                await self._merge(stored.document)
            await asyncio.sleep(ROUND)

    async def _merge(self, machine: Machine) -> None:
        now = monotonic()
        if not machine.unmerged or machine.removing or self._desk.unfinished(machine.uid):
            return
        if now - self._merged.get(machine.uid, -MERGE_AGAIN) < MERGE_AGAIN:
            return
        self._merged[machine.uid] = now
        try:
            await self._act("merge", machine, by="repair")
        except InsulaError as error:
            log.info("layers of %s are merged later: %s", machine.name, error)

    async def _follow(self) -> None:
        async for commit in self._desk.store.watch():
            for change in commit.changes:
                document = change.document if isinstance(change, Put) else None
                if isinstance(document, Observation):
                    await self.look(document.uid)
                elif isinstance(document, Operation) and document.state.is_final:
                    await self.look(document.target)

    async def look(self, uid: str) -> None:
        """Compare what is wanted of one machine with what is seen of it."""
        try:
            await self._look(uid)
        except (Conflict, NotFound) as error:
            log.info("repair left %s alone: %s", uid, error)
        except Exception:
            log.exception("repair of %s failed", uid)

    async def _look(self, uid: str) -> None:
        machine = self._desk.store.get(Machine, uid)
        seen = self._desk.store.get(Observation, uid)
        if machine is not None and seen is not None and (change := ejection(self._desk, machine, seen)):
            await self._desk.store.commit(*change)
        if machine is None or seen is None or seen.document.phase not in (Phase.STOPPED, Phase.CRASHED):
            return
        if self._desk.unfinished(uid):
            return  # somebody is at it
        document, observation = machine.document, seen.document
        if document.ephemeral:
            await self._act("rm", document, force=True, by="ephemeral")
        elif document.power is Power.ON and _has_spoken(document, observation):
            await self._desk.store.commit(list(self._desk.change_machine(uid, power=Power.OFF)))
        elif (due := plan_restart(document, observation)) is not None and uid not in self._scheduled:
            self._scheduled.add(uid)
            delay = max(0.0, (due - utc_now()).total_seconds())
            self._crew.start(self._restart_later(uid, delay), f"restart of {document.name}")

    async def _restart_later(self, uid: str, delay: float) -> None:
        await asyncio.sleep(delay)
        self._scheduled.discard(uid)
        machine = self._desk.store.get(Machine, uid)
        seen = self._desk.store.get(Observation, uid)
        if machine is None or seen is None or self._desk.unfinished(uid):
            return
        if plan_restart(machine.document, seen.document) is None:
            return
        try:
            await self._act("start", machine.document, by="repair")
        except InsulaError as error:
            log.warning("machine %s was not started again: %s", machine.document.name, error)

    async def _act(self, verb: str, machine: Machine, **parameters: object) -> None:
        await self._submit(VerbRequest(verb, machine.project, machine.name, dict(parameters)))


def _has_spoken(machine: Machine, seen: Observation) -> bool:
    """The end was the guest's own wish, or the policy wants no more of it."""
    if seen.last_exit is None:
        return False
    if seen.last_exit.cause == "guest-shutdown":
        return True
    return machine.run_policy is RunPolicy.ONCE
