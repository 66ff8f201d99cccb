"""Writes what is seen of one machine: the single writer of its observation. Only transitions are written."""

from __future__ import annotations

import asyncio
from typing import Any

from insula.kit.clock import utc_now
from insula.model.event import Event
from insula.model.machine import Machine
from insula.model.observation import ExitEvidence, Observation, Phase
from insula.store.protocol import Change, Delete, Put, Store


class Observer:
    """The observation of the machine `uid`."""

    def __init__(self, store: Store, uid: str) -> None:
        self._store = store
        self._uid = uid
        self._lock = asyncio.Lock()

    @property
    def seen(self) -> Observation | None:
        stored = self._store.get(Observation, self._uid)
        return None if stored is None else stored.document

    @property
    def phase(self) -> Phase:
        return self.seen.phase if self.seen is not None else Phase.CREATED

    async def see(self, **fields: Any) -> None:
        """Record the fields that changed; nothing is written when none did."""
        async with self._lock:
            machine = self._store.get(Machine, self._uid)
            if machine is None:
                return
            document = machine.document
            before = self.seen or Observation(
                uid=document.uid,
                project=document.project,
                name=document.name,
                created=document.created,
                phase=Phase.CREATED,
                since=utc_now(),
            )
            fields = {"name": document.name, "generation": document.generation, **fields}
            after = before.model_copy(update=fields)
            moved = after.phase is not before.phase
            if moved:
                after = after.model_copy(update={"since": utc_now()})
            if after == before and self.seen is not None:
                return
            changes: list[Change] = [Put(after)]
            await self._store.commit(changes, [_moved(before, after)] if moved else [])

    async def see_end(self, evidence: ExitEvidence, *, asked: bool) -> None:
        """The process has ended. asked: an operation of ours wanted that."""
        if asked and evidence.cause in ("guest-shutdown", "crash"):
            evidence = evidence.model_copy(update={"cause": "host-stop"})
        crashed = evidence.cause == "crash"
        await self.see(
            phase=Phase.CRASHED if crashed else Phase.STOPPED,
            reason=describe_end(evidence),
            process=None,
            agent="none",
            addresses=(),
            last_exit=evidence,
        )

    async def forget(self) -> None:
        """The machine is no more."""
        async with self._lock:
            await self._store.commit([Delete(Observation, self._uid)])

    async def tell(self, kind: str, **data: Any) -> None:
        """Publish something that is no change of phase."""
        seen = self.seen
        if seen is not None:
            event = Event(
                at=utc_now(), kind=kind, project=seen.project, target=seen.uid, name=seen.name, data=data
            )
            await self._store.commit([], [event])


def _moved(before: Observation, after: Observation) -> Event:
    data: dict[str, Any] = {"from": before.phase, "to": after.phase}
    if after.reason:
        data["reason"] = after.reason
    if after.last_exit is not None and after.last_exit != before.last_exit:
        data["exit_status"] = after.last_exit.exit_status
        data["cause"] = after.last_exit.cause
    return Event(
        at=after.since,
        kind="machine.phase",
        project=after.project,
        target=after.uid,
        name=after.name,
        data=data,
    )


def describe_end(evidence: ExitEvidence) -> str:
    """Why a machine has no process, in words."""
    if evidence.cause == "crash":
        if evidence.signal is not None:
            return f"QEMU was ended by signal {evidence.signal}."
        if evidence.exit_status is None:
            return "QEMU ended while nobody watched, and left no exit status."
        return f"QEMU exited with status {evidence.exit_status}."
    return {
        "guest-shutdown": "The guest powered itself off.",
        "host-stop": "Stopped.",
        "host-kill": "Killed.",
        "host-reboot": "The host restarted.",
    }[evidence.cause]
