"""fork: siblings of a machine as it is at one moment; it goes on after a blink.

    intend     the siblings' documents, so that their names are theirs, and the operation on the machine
    (node)     the machine is captured: disks, and memory if it has any
    conclude   a `create` operation for each sibling, which gives it disks, a process and an identity

A sibling whose `create` fails is gone again; the others stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from insula.control.desk import Conclusion, Desk, Intent
from insula.control.request import VerbRequest
from insula.control.verbs.create import refuse_taken_name
from insula.control.volumes import untouched, volume_of
from insula.kit.clock import utc_now
from insula.kit.errors import Invalid
from insula.model.base import new_uid, require_name
from insula.model.device import Device
from insula.model.device.disk import Disk, copied_disk
from insula.model.device.nic import Nic
from insula.model.machine import Machine, Power, mac_address
from insula.model.operation import Operation
from insula.model.template import why_not_captured
from insula.model.volume import Volume
from insula.planner.admission import admit
from insula.store.protocol import Change, Delete, Put, Stored

MOST = 200  # siblings of one operation
NUMBER = "{n}"


class BadFork(Invalid):
    """Siblings that cannot be: their number, their names, or what the machine is."""

    code = "bad-fork"


async def intend(desk: Desk, request: VerbRequest) -> Intent:
    """Raises MachineNotFound, BadFork, BadName, MachineNameTaken, BeingRemoved, StaleGeneration."""
    parent = desk.find(request.project, request.name).document
    phase = desk.state(parent).observation.phase
    count = _checked_count(request.parameters.get("count", 1))
    why = why_not_captured(parent, live=phase.has_process)
    if why is not None:
        raise BadFork(f"Machine '{parent.name}' cannot be forked: {why[0]}.", hint=why[1])
    names = _choose_names(desk, parent, count, request.parameters.get("names"))
    volumes = {stored.document.uid: stored for stored in _volumes_of(desk, parent)}
    siblings = [_sibling(parent, name, volumes) for name in names]
    for sibling in siblings:
        admit(sibling, await desk.node.host_facts())
    parameters = {
        "siblings": [sibling.uid for sibling in siblings],
        "paused": bool(request.parameters.get("paused")),
    }
    intent = desk.machine_intent(
        VerbRequest("fork", request.project, request.name, parameters, request.if_generation)
    )
    created = tuple(desk.event("machine.created", sibling, fork_of=parent.name) for sibling in siblings)
    changes: list[Change] = [Put(sibling, expect=0) for sibling in siblings]
    changes += [untouched(stored) for stored in volumes.values()]
    return Intent(intent.operation, (*intent.changes, *changes), (*intent.events, *created))


def _checked_count(count: Any) -> int:
    if not isinstance(count, int) or not 1 <= count <= MOST:
        raise BadFork(
            f"A machine cannot be forked {count} times at once.", hint=f"From 1 to {MOST} siblings."
        )
    return count


def _choose_names(desk: Desk, parent: Machine, count: int, pattern: str | None) -> list[str]:
    """The pattern's names for n = 1 to count; without a pattern, the machine's name with free numbers."""
    if pattern is None:
        taken = {s.document.name for s in desk.store.all(Machine) if s.document.project == parent.project}
        numbered = (f"{parent.name[:56]}-{n}" for n in range(1, len(taken) + count + 1))
        return [name for name in numbered if name not in taken][:count]
    if NUMBER not in pattern and count > 1:
        raise BadFork(
            f"'{pattern}' names one sibling; {count} were asked for.",
            hint=f"For example '{pattern}-{NUMBER}'.",
        )
    names = [require_name(pattern.replace(NUMBER, str(n))) for n in range(1, count + 1)]
    for name in names:
        refuse_taken_name(desk, parent.project, name)
    return names


def _volumes_of(desk: Desk, machine: Machine) -> list[Stored[Volume]]:
    references = [ref for device in machine.devices if (ref := volume_of(device)) is not None]
    found = [desk.store.get(Volume, reference.uid) for reference in references]
    return [stored for stored in found if stored is not None]


def _sibling(parent: Machine, name: str, volumes: Mapping[str, Stored[Volume]]) -> Machine:
    """The machine with an identity of its own. A port of the host is one machine's: it stays the parent's.

    A volume that the parent writes is the parent's too: the sibling has a copy. One that it reads it shares.
    """
    uid = new_uid()
    devices: list[Device] = []
    for index, device in enumerate(parent.devices):
        volume = volume_of(device)
        if isinstance(device, Nic):
            devices.append(device.changed(mac=mac_address(uid, index), publish=()))
        elif isinstance(device, Disk) and volume is not None and not device.read_only:
            devices.append(copied_disk(device, volumes[volume.uid].document.size_bytes))
        else:
            devices.append(device)
    return parent.changed(
        uid=uid,
        name=name,
        generation=1,
        created=utc_now(),
        devices=devices,
        cloud_init=None if parent.cloud_init is None else parent.cloud_init.changed(hostname=None),
        power=Power.OFF,
        removing=False,
        snapshot=None,
        unmerged=False,
    )


def conclude(desk: Desk, operation: Operation, succeeded: bool) -> Conclusion:
    stored = [desk.store.get(Machine, uid) for uid in operation.parameters["siblings"]]
    siblings = [found.document for found in stored if found is not None]
    if not succeeded:
        gone = tuple(desk.event("machine.removed", sibling, reason="fork failed") for sibling in siblings)
        return Conclusion(tuple(Delete(Machine, sibling.uid) for sibling in siblings), gone)
    outcome = dict(operation.outcome or {})
    live = bool(outcome.pop("live"))
    cards = outcome.pop("cards")
    # Each fork of a machine that runs leaves a layer below its disks.
    deep = outcome.pop("deep", False)
    changes: list[Change] = [*desk.change_machine(operation.target, unmerged=True)] if deep else []
    machines = []
    for sibling in siblings:
        own = [device.mac for device in sibling.devices if isinstance(device, Nic)]
        remembered = {"captured": operation.uid, "live": live, "cards": list(zip(cards, own, strict=True))}
        paused = live and bool(operation.parameters["paused"])
        request = VerbRequest("create", sibling.project, sibling.name, {"start": live, "paused": paused})
        create = desk.operation(request, sibling, remembered=remembered)
        changes += [
            Put(create, expect=0),
            *desk.change_machine(sibling.uid, power=Power.ON if live else Power.OFF),
        ]
        machines.append({"name": sibling.name, "uid": sibling.uid, "operation": create.uid})
    outcome["machines"] = machines
    return Conclusion(tuple(changes), outcome=outcome, nudges=tuple(s.uid for s in siblings))
