"""A new ledger from the machines' own directories, when the old one is damaged. Nothing is removed."""

from __future__ import annotations

from datetime import datetime

from insula.kit.clock import utc_now
from insula.kit.errors import InsulaError
from insula.kit.paths import (
    MACHINE_DOCUMENT,
    SNAPSHOT_DOCUMENT,
    SUSPENDED_DOCUMENT,
    VOLUME_DISK,
    VOLUME_DOCUMENT,
    Home,
)
from insula.model.base import Document
from insula.model.machine import Machine, Power
from insula.model.observation import Observation, Phase
from insula.model.operation import Operation
from insula.model.snapshot import Snapshot
from insula.model.volume import Volume
from insula.storage.volumes import virtual_size
from insula.store.protocol import Change, Put
from insula.store.sqlite import open_ledger, set_aside

KINDS: tuple[type[Document], ...] = (Machine, Observation, Operation, Volume, Snapshot)


async def recover_ledger(home: Home, now: datetime | None = None) -> list[str]:
    """Set the ledger aside and make a new one from every machine's directory; what was done, in words.

    Machines that live are adopted by the daemon afterwards like after any crash. Operations, events and
    machines whose document cannot be read are not recovered; the latter are named, and their files stay.
    """
    told = []
    now = now or utc_now()
    if home.ledger.exists():
        kept = set_aside(home.ledger, f"damaged-{now:%Y%m%dT%H%M%S}")
        told.append(f"The damaged ledger was kept as '{kept}'.")
    store = open_ledger(home.ledger, KINDS)
    try:
        for directory in sorted(home.machines.glob("*/")):
            if directory.name.startswith("."):
                continue
            try:
                machine = Machine.model_validate_json((directory / MACHINE_DOCUMENT).read_bytes())
                suspended = (directory / SUSPENDED_DOCUMENT).exists()
                await store.commit(_recovered(machine, now, suspended=suspended))
                told.append(f"Machine '{machine.name}' was recovered.")
            except (OSError, ValueError, InsulaError) as error:
                told.append(f"'{directory}' was left alone, its document cannot be used: {error}")
        for directory in sorted(home.volumes.glob("*/")):
            if directory.name.startswith("."):
                continue
            try:
                volume = Volume.model_validate_json((directory / VOLUME_DOCUMENT).read_bytes())
                size = await virtual_size(directory / VOLUME_DISK)  # the copy is of the time it was made
                await store.commit([Put(volume.changed(size_bytes=size), expect=0)])
                told.append(f"Volume '{volume.name}' was recovered.")
            except (OSError, ValueError, InsulaError) as error:
                told.append(f"'{directory}' was left alone, its document cannot be used: {error}")
        for directory in sorted(home.snapshots.glob("*/")):
            if directory.name.startswith("."):
                continue
            try:
                snapshot = Snapshot.model_validate_json((directory / SNAPSHOT_DOCUMENT).read_bytes())
                await store.commit([Put(snapshot, expect=0)])
                told.append(f"Snapshot '{snapshot.name}' of machine '{snapshot.machine.name}' was recovered.")
            except (OSError, ValueError, InsulaError) as error:
                told.append(f"'{directory}' was left alone, its document cannot be used: {error}")
    finally:
        await store.close()
    return told


def _recovered(machine: Machine, now: datetime, *, suspended: bool) -> list[Change]:
    # `running` makes adoption look for the process, and read how it ended where there is none. Wanted off:
    # what was wanted last is not known, and repair must not start on a guess.
    seen = Observation(
        uid=machine.uid,
        project=machine.project,
        name=machine.name,
        created=machine.created,
        generation=machine.generation,
        phase=Phase.SUSPENDED if suspended else Phase.RUNNING,
        since=now,
        reason="Recovered from the machine's directory.",
    )
    wanted = machine.changed(power=Power.OFF, removing=False)
    return [Put(wanted, expect=0), Put(seen, expect=0)]
