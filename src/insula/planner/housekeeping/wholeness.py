"""What is wrong in a home: what nobody needs, what a document misses, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterator

from insula.kit.paths import MACHINE_DOCUMENT, SNAPSHOT_STATE, VOLUME_DISK, VOLUME_DOCUMENT
from insula.model.device.disk import MADE_WITH_MACHINE, Disk
from insula.model.housekeeping import StoreProblem
from insula.model.machine import Machine
from insula.planner.housekeeping.belonging import REMOVING, Belonging, chain_of, find_leftovers
from insula.planner.housekeeping.sight import Ledger, Section, SeenEntry, Sight, Stray
from insula.planner.housekeeping.usage import Judged, freed_by

PRUNE = "insula system prune"


def find_problems(sight: Sight, ledger: Ledger, judged: Judged, home: str, images: str) -> list[StoreProblem]:
    """Everything that is not as it should be. home, images: paths, for what is not there."""
    found: list[StoreProblem] = []
    for entry, belonging in judged:
        found += _of_entry(entry, belonging, ledger)
        found += _leftovers(entry, belonging, ledger, sight.began)
    found += map(_stray, sight.strays)
    found += _of_machines(sight, ledger, home, images)
    found += _of_volumes(sight, ledger, home)
    found += _of_snapshots(sight, ledger, home)
    found += _of_templates(sight)
    found += _of_names(sight)
    return found


def is_clean(problems: list[StoreProblem]) -> bool:
    return all(problem.note for problem in problems)


# -- what is there, and whom it belongs to


def _of_entry(entry: SeenEntry, belonging: Belonging, ledger: Ledger) -> Iterator[StoreProblem]:
    state, noun = belonging.state, belonging.kind
    freed = freed_by(entry.files)
    if state == "orphan":
        removable = not entry.outside and not entry.lives
        yield StoreProblem(
            code=f"orphan-{noun}",
            what=f"{_what(entry, noun)} belongs to nobody",
            path=entry.path,
            why=_because(belonging, entry),
            mend=PRUNE if removable else _by_hand(entry),
            remedy="prune" if removable else "none",
            size_bytes=freed,
            memory_bytes=entry.memory or 0,
        )
    elif state == "lost":
        removable = not entry.outside and not entry.lives
        yield StoreProblem(
            code=f"lost-{noun}",
            what=f"{_what(entry, noun)} has lost its document",
            path=entry.path,
            why=_because(belonging, entry),
            mend=_mend_lost(entry),
            remedy="lost" if removable else "none",
            uid=entry.name,
            size_bytes=freed,
        )
    elif state == "needed" and entry.name.startswith(REMOVING):
        yield StoreProblem(
            code="half-removed",
            what=f"{belonging.owner[0].upper()}{belonging.owner[1:]} was removed by half",
            path=entry.path,
            why=_sentence(belonging.reason),
            mend=_remove(entry.name.removeprefix(REMOVING), ledger),
        )
    elif state == "kept" or state == "foreign":
        yield StoreProblem(
            code="kept-ledger" if state == "kept" else "foreign",
            what="A damaged ledger is kept"
            if state == "kept"
            else f"What is called '{entry.name}' is not Insula's",
            path=entry.path,
            why=_sentence(belonging.reason),
            mend=f"Once you need it no more: rm -r '{entry.path}'",
            note=True,
            size_bytes=freed,
        )


def _what(entry: SeenEntry, noun: str) -> str:
    what = {"image": "A file beside the images", "build": "An unfinished image", "daemon": "A file"}
    return what.get(noun, f"{'An' if noun[0] in 'aeiou' else 'A'} {noun}'s directory")


def _because(belonging: Belonging, entry: SeenEntry) -> str:
    alive = "; but a process runs in it" if entry.lives else ""
    outside = "; but its directory is reached by a link, and is not looked after" if entry.outside else ""
    return _sentence(belonging.reason + alive + outside)


def _by_hand(entry: SeenEntry) -> str:
    if entry.lives:
        return f"End its process (its number: cut -d' ' -f1 '{entry.path}/qemu.pid'), then: {PRUNE}"
    return f"rm -r '{entry.path}'"


def _mend_lost(entry: SeenEntry) -> str:
    remove = f"{PRUNE} --lost {entry.name}"
    if not any(entry.file(name) is not None for name in (MACHINE_DOCUMENT, VOLUME_DOCUMENT)):
        return f"Look what is in it; to remove it: {remove}"
    recover = "insula daemon stop && insula daemon start --recover-ledger"
    return f"To have it again: {recover}; to remove it with all that is on it: {remove}"


def _remove(uid: str, ledger: Ledger) -> str:
    """The command that removes what has this document."""
    if uid in ledger.snapshots:
        snapshot = ledger.snapshots[uid]
        return f"insula snapshot rm {snapshot.machine.name} {snapshot.name}"
    if uid in ledger.volumes:
        return f"insula volume rm {ledger.volumes[uid].name}"
    return f"insula rm -f {ledger.machines[uid].name}"


def _leftovers(
    entry: SeenEntry, belonging: Belonging, ledger: Ledger, began: float
) -> Iterator[StoreProblem]:
    for left in find_leftovers(entry, belonging, ledger, began):
        yield StoreProblem(
            code="leftover",
            what=f"The file '{left.file.base}' of {belonging.owner} is needed by nobody",
            path=f"{entry.path}/{left.file.name}",
            why=_sentence(left.reason),
            mend=PRUNE,
            remedy="prune",
            size_bytes=freed_by([left.file]),
        )


def _stray(stray: Stray) -> StoreProblem:
    if stray.keeper:
        return StoreProblem(
            code="stray-memory",
            what=f"Process {stray.pid} keeps memory that nobody can use",
            path=stray.directory,
            why="The directory of the template or capture that it keeps memory for was removed.",
            mend=PRUNE,
            remedy="prune",
            memory_bytes=stray.memory,
            pid=stray.pid,
        )
    return StoreProblem(
        code="stray-process",
        what=f"Process {stray.pid} runs a machine whose directory is gone",
        path=stray.directory,
        why="Its directory was removed while it ran; what its guest has on its disks ends with it.",
        mend=f"Save what you need from inside, then: kill {stray.pid}",
        pid=stray.pid,
    )


# -- what documents miss


def _of_machines(sight: Sight, ledger: Ledger, home: str, images: str) -> Iterator[StoreProblem]:
    for machine in ledger.machines.values():
        if machine.uid in ledger.busy:
            continue
        what = f"Machine '{machine.name}'"
        remove = _remove(machine.uid, ledger)
        mend = f"Restore its files, or: {remove}"
        digest = machine.image.digest.removeprefix("sha256:")
        entry = sight.find("machines", machine.uid)
        if entry is None:
            if sight.find("machines", REMOVING + machine.uid) is None:
                path = f"{home}/machines/{machine.uid}"
                yield _missing("missing-directory", f"{what} has no directory", path, mend)
            continue
        for disk in machine.devices:
            if isinstance(disk, Disk) and (disk.source == "seed" or disk.source in MADE_WITH_MACHINE):
                yield from _of_disk(entry, disk.file, what, remove)
        if sight.find("blobs", digest) is None and _needs_image(machine, entry):
            yield _missing(
                "missing-image",
                f"{what} was made from files of image '{machine.image.name}' that are gone",
                f"{images}/blobs/{digest}",
                f"Have the same image again (insula image pull or build), or: {remove}",
            )


def _needs_image(machine: Machine, entry: SeenEntry) -> bool:
    """It boots from the image's kernel; what its disks need of an image, their chains tell."""
    return machine.boot == "direct"


def _of_disk(entry: SeenEntry, name: str, what: str, remove: str) -> Iterator[StoreProblem]:
    """What is wrong with a disk and all that it stands on."""
    path = f"{entry.path}/{name}"
    chain = list(chain_of(entry, name))
    if entry.file(name) is None or not chain:
        yield _missing(
            "missing-disk", f"{what} has no file '{name}'", path, f"Restore the file, or: {remove}"
        )
    for file in chain:
        if file.damage:
            yield StoreProblem(
                code="damaged-disk",
                what=f"{what} has a disk that cannot be read, '{file.name}'",
                path=f"{entry.path}/{file.name}",
                why=file.damage,
                mend=f"Restore the file, or: {remove}",
            )
        elif not file.resolves:
            yield StoreProblem(
                code="missing-backing",
                what=f"{what} has a disk, '{file.name}', that stands on a file which is gone",
                path=f"{entry.path}/{file.name}",
                why=f"Its backing file is '{file.backing}', and that is not there.",
                mend=f"Restore that file, or: {remove}",
            )


def _of_volumes(sight: Sight, ledger: Ledger, home: str) -> Iterator[StoreProblem]:
    for volume in ledger.volumes.values():
        if volume.uid in ledger.busy:
            continue
        what, remove = f"Volume '{volume.name}'", _remove(volume.uid, ledger)
        entry = sight.find("volumes", volume.uid)
        if entry is not None:
            yield from _of_disk(entry, VOLUME_DISK, what, remove)
        elif sight.find("volumes", REMOVING + volume.uid) is None:
            path = f"{home}/volumes/{volume.uid}"
            yield _missing(
                "missing-directory", f"{what} has no directory", path, f"Restore its files, or: {remove}"
            )


def _of_snapshots(sight: Sight, ledger: Ledger, home: str) -> Iterator[StoreProblem]:
    for snapshot in ledger.snapshots.values():
        if snapshot.uid in ledger.busy or not snapshot.whole:
            continue
        what = f"Snapshot '{snapshot.name}' of machine '{snapshot.machine.name}'"
        remove = _remove(snapshot.uid, ledger)
        mend = f"Restore its files, or: {remove}"
        entry = sight.find("snapshots", snapshot.uid)
        if entry is None:
            if sight.find("snapshots", REMOVING + snapshot.uid) is None:
                path = f"{home}/snapshots/{snapshot.uid}"
                yield _missing("missing-directory", f"{what} has no directory", path, mend)
            continue
        for disk in snapshot.disks:
            yield from _of_disk(entry, disk.file, what, remove)
        if snapshot.memory is not None and entry.file(SNAPSHOT_STATE) is None:
            path = f"{entry.path}/{SNAPSHOT_STATE}"
            yield _missing("missing-disk", f"{what} has no file '{SNAPSHOT_STATE}'", path, mend)


def _of_templates(sight: Sight) -> Iterator[StoreProblem]:
    for entry in sight.of("templates"):
        if not entry.whole or entry.busy:
            continue
        broken = [file for file in entry.files if file.damage or not file.resolves]
        for file in broken:
            yield StoreProblem(
                code="damaged-disk" if file.damage else "missing-backing",
                what=f"Template '{entry.name}' has a disk that cannot be used, '{file.name}'",
                path=f"{entry.path}/{file.name}",
                why=file.damage or f"Its backing file is '{file.backing}', and that is not there.",
                mend=f"insula template rm {entry.name}",
            )


def _of_names(sight: Sight) -> Iterator[StoreProblem]:
    for entry in sight.of("names"):
        if not entry.whole and not entry.name.startswith("."):
            yield StoreProblem(
                code="missing-image",
                what=f"Image '{entry.name}' has lost its files",
                path=entry.path,
                why="Its name leads to a directory that is not there, or has no manifest.",
                mend=f"rm '{entry.path}', then pull, import or build it again",
            )


def _missing(code: str, what: str, path: str, mend: str) -> StoreProblem:
    return StoreProblem(code=code, what=what, path=path, why="It is not there.", mend=mend)


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}."


__all__ = ["PRUNE", "Section", "find_problems", "is_clean"]
