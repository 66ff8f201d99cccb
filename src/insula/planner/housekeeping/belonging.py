"""Whom an entry of a home belongs to, and why it may be nobody's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from insula.kit.paths import RESUMING_DOCUMENT, SUSPENDED_DOCUMENT
from insula.model.base import Document
from insula.model.device.disk import MADE_WITH_MACHINE, Disk
from insula.model.housekeeping import PartKind, PartState
from insula.model.snapshot import Snapshot
from insula.planner.housekeeping.sight import Ledger, SeenEntry, SeenFile, Sight

REMOVING = ".removing-"  # a directory on its way out
# Seconds after which a file that was about to be renamed is not going to be: nobody takes so long for one,
# but operations, and those are known.
NEW_PATIENCE = 60.0
KEEP_DOWNLOADS = 86400.0  # seconds that a part of a download waits, as storage has it
LEDGER = "insula.db"
_SUSPENDED = (SUSPENDED_DOCUMENT, RESUMING_DOCUMENT)

_UID = re.compile(r"[0-9a-f]{16}")
_KEY = re.compile(r"[0-9a-f]{12}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

KINDS: dict[str, PartKind] = {
    "machines": "machine",
    "volumes": "volume",
    "snapshots": "snapshot",
    "templates": "template",
    "captures": "capture",
    "blobs": "image",
    "claims": "image",
    "names": "image",
    "images": "image",
    "builds": "build",
    "downloads": "download",
}


@dataclass(frozen=True)
class Belonging:
    """What is said of an entry. owner, reason: in words, without a full stop."""

    kind: PartKind
    state: PartState
    owner: str
    reason: str


def judge(entry: SeenEntry, ledger: Ledger, began: float) -> Belonging:
    """Whom the entry belongs to. began: when the look at the home began, seconds since 1970."""
    kind = KINDS.get(entry.section, "other")
    rule = _RULES[entry.section]
    found = rule(entry, ledger, began)
    if isinstance(found, Belonging):
        return found
    state, owner, reason = found
    if state in ("orphan", "lost") and entry.changed >= began:
        state, reason = "making", "it has changed since the look began"
    return Belonging("other" if state == "foreign" else kind, state, owner, reason)


_Said = tuple[PartState, str, str]
_FOREIGN: _Said = ("foreign", "nobody of Insula's", "Insula makes nothing of this name here")


def _documented(documents: Mapping[str, Document], entry: SeenEntry, ledger: Ledger) -> _Said:
    """A directory named by the uid of a document, which is there before it and after it."""
    uid = entry.name.removeprefix(REMOVING)
    if _UID.fullmatch(uid) is None or not entry.is_directory:
        return _FOREIGN
    document = documents.get(uid)
    owner = f"{KINDS[entry.section]} '{document.name}'" if document is not None else "nobody"
    if isinstance(document, Snapshot):
        owner += f" of machine '{document.machine.name}'"
    if uid in ledger.busy:
        return "making", owner, f"an operation is at it: {ledger.busy[uid]}"
    if document is not None:
        removing = entry.name != uid
        return "needed", owner, "its removal began, and did not end" if removing else "its document is there"
    if entry.name != uid:
        return "orphan", owner, "its removal began, and a daemon that died did not end it"
    if uid in ledger.gone:
        return "orphan", owner, f"no document names it; the last that is known of it: {ledger.gone[uid]}"
    return "lost", owner, "no document names it, and the ledger remembers nothing of it"


def _machine(entry: SeenEntry, ledger: Ledger, _: float) -> _Said:
    return _documented(ledger.machines, entry, ledger)


def _volume(entry: SeenEntry, ledger: Ledger, _: float) -> _Said:
    return _documented(ledger.volumes, entry, ledger)


def _snapshot(entry: SeenEntry, ledger: Ledger, _: float) -> _Said:
    return _documented(ledger.snapshots, entry, ledger)


def _template(entry: SeenEntry, ledger: Ledger, _: float) -> _Said:
    if _KEY.fullmatch(entry.name) is None or not entry.is_directory:
        return _FOREIGN
    owner = f"template of '{entry.title}'" if entry.title else "a template"
    if entry.busy:
        return "making", owner, "it is being made or removed"
    if entry.whole:
        return "cache", owner, "launches are forked from it"
    return "orphan", owner, "it was left half made, or its memory went with the host's last boot"


def _capture(entry: SeenEntry, ledger: Ledger, _: float) -> _Said:
    if _UID.fullmatch(entry.name) is None or not entry.is_directory:
        return _FOREIGN
    if entry.name in ledger.busy:
        return "making", "a fork", f"an operation needs it: {ledger.busy[entry.name]}"
    return "orphan", "nobody", "the fork that it was made for has ended"


def _blob(entry: SeenEntry, ledger: Ledger, _: float) -> _Said:
    if _DIGEST.fullmatch(entry.name) is None or not entry.is_directory:
        return _FOREIGN
    if entry.names:
        return "needed", f"image '{entry.names[0]}'", "its name leads to it"
    machines = ledger.digests.get(f"sha256:{entry.name}", [])
    called = f"image once called '{entry.title}'" if entry.title else "an image"
    if machines:
        return "needed", called, f"machine '{machines[0]}' was made from it"
    if entry.holders:
        return "needed", called, f"it is claimed for {entry.holders[0]}"
    return "unused", called, "no name leads to it, and nothing here was made from it"


def _claims(entry: SeenEntry, ledger: Ledger, _: float) -> _Said:
    if _DIGEST.fullmatch(entry.name) is None or not entry.is_directory:
        return _FOREIGN
    if entry.whole:
        return "needed", "an image", "it says which machines need the image's files"
    return "orphan", "nobody", "it is of an image that is gone"


def _name(entry: SeenEntry, ledger: Ledger, _: float) -> _Said:
    if entry.name.startswith("."):
        return "orphan", "nobody", "an image was about to get this name when its daemon died"
    return "needed", f"image '{entry.name}'", "it is the image's name"


def _build(entry: SeenEntry, ledger: Ledger, _: float) -> _Said:
    if entry.busy:
        return "making", "a build or import", "somebody is at it"
    return "orphan", "nobody", "who was making an image here has ended"


def _download(entry: SeenEntry, ledger: Ledger, began: float) -> _Said:
    if entry.busy:
        return "making", "a pull", "somebody is at it"
    if entry.changed <= began - KEEP_DOWNLOADS:
        return "orphan", "nobody", "nobody went on with this download for a day"
    return "cache", "a pull that was cut short", "pulling again goes on here; it is kept for a day"


def _images(entry: SeenEntry, ledger: Ledger, _: float) -> _Said:
    if entry.name == ".lock":
        return "needed", "the images", "it keeps those who change them apart"
    return _FOREIGN


_OWN: dict[str, tuple[PartKind, str]] = {
    LEDGER: ("ledger", "the ledger"),
    f"{LEDGER}-wal": ("ledger", "the ledger"),
    f"{LEDGER}-shm": ("ledger", "the ledger"),
    f"{LEDGER}-journal": ("ledger", "the ledger"),
    "host.json": ("daemon", "what was probed about this host"),
    "daemon": ("daemon", "the daemon"),
    "catalogues": ("settings", "whoever wrote the catalogues"),
    "recipes": ("settings", "whoever wrote the recipes"),
    # With $INSULA_IMAGES set these are not the images now, and may be again.
    "images": ("settings", "whoever made images before INSULA_IMAGES named another place"),
}


def _home(entry: SeenEntry, ledger: Ledger, began: float) -> Belonging | _Said:
    if entry.name in _OWN:
        kind, owner = _OWN[entry.name]
        return Belonging(kind, "needed", owner, "it is always there")
    if entry.name.startswith(f"{LEDGER}.damaged-"):
        return Belonging("ledger", "kept", "you", "a damaged ledger, set aside when a new one was made")
    if is_new(entry.name):
        owner = "the daemon"
        if entry.changed < began - NEW_PATIENCE:
            return Belonging("daemon", "orphan", owner, "it was to be renamed when a daemon died")
        return Belonging("daemon", "making", owner, "it is about to be renamed")
    return _FOREIGN


_RULES: dict[str, Callable[[SeenEntry, Ledger, float], Belonging | _Said]] = {
    "machines": _machine,
    "volumes": _volume,
    "snapshots": _snapshot,
    "templates": _template,
    "captures": _capture,
    "blobs": _blob,
    "claims": _claims,
    "names": _name,
    "builds": _build,
    "downloads": _download,
    "images": _images,
    "home": _home,
}


def is_new(name: str) -> bool:
    """Whether a file of this name is about to be renamed (docs/reference/run-directory.md)."""
    return name.startswith(".") and name.endswith(".new")


@dataclass(frozen=True)
class Leftover:
    """A file of an entry that nobody needs, though the entry is needed. reason: without a full stop."""

    file: SeenFile
    reason: str


def find_leftovers(
    entry: SeenEntry, belonging: Belonging, ledger: Ledger, began: float
) -> Iterator[Leftover]:
    """Files in an entry that is needed which a crash has left there."""
    if belonging.state not in ("needed", "cache") or entry.outside:
        return
    for file in entry.files[1:]:
        if file.kind in ("file", "link") and is_new(file.base) and file.changed < began - NEW_PATIENCE:
            yield Leftover(file, "it was to be renamed when a daemon died")
    if not entry.lives:  # what a live machine has open, its monitor knows better
        for file in _dead_layers(entry, ledger):
            yield Leftover(file, "no disk of the machine stands on this frozen one any more")


def _dead_layers(entry: SeenEntry, ledger: Ledger) -> Iterator[SeenFile]:
    """Frozen disks that none of a machine's disks stands on: a freeze that was cut short has left them."""
    machine = ledger.machines.get(entry.name) if entry.section == "machines" else None
    if machine is None or any(entry.file(name) is not None for name in _SUSPENDED):
        return  # what is suspended knows its disks by what they were then
    for disk in machine.devices:
        if (
            not isinstance(disk, Disk)
            or disk.source not in MADE_WITH_MACHINE
            or entry.file(disk.file) is None
        ):
            continue
        chain = list(chain_of(entry, disk.file))
        if not chain or any(file.damage or not file.resolves for file in chain):
            continue  # what is below the break may be what mends it
        stem, dot, suffix = disk.file.rpartition(".")
        layer = re.compile(rf"{re.escape(stem)}-[0-9a-z]+{re.escape(dot + suffix)}")
        reached = {file.name for file in chain}
        for file in entry.files:
            if layer.fullmatch(file.name) and file.name not in reached:
                yield file


def chain_of(entry: SeenEntry, name: str) -> Iterator[SeenFile]:
    """The files in the entry that a disk stands on, its top first. The disk's name may be a link to that."""
    seen: set[str] = set()
    file = entry.file(name)
    if file is not None and file.kind == "link":
        file = entry.file(file.target) if file.target is not None else None
    while file is not None and file.name not in seen:
        seen.add(file.name)
        yield file
        file = entry.file(file.backing) if file.backing is not None else None


def judge_all(sight: Sight, ledger: Ledger) -> list[tuple[SeenEntry, Belonging]]:
    """Every entry with whom it belongs to."""
    return [(entry, judge(entry, ledger, sight.began)) for entry in sight.entries]
