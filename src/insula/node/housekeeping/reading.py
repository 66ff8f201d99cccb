"""Looking at a home in the order that `planner.housekeeping` relies on: directories, then the ledger."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal, cast

from insula.engine.process import is_locked
from insula.engine.protocol import Engine
from insula.engine.strays import find_strays
from insula.kit.errors import InsulaError
from insula.kit.paths import PID_FILE, Home
from insula.model.machine import Machine
from insula.model.operation import Operation
from insula.model.snapshot import Snapshot
from insula.model.volume import Volume
from insula.node.rooms import Rooms
from insula.planner.housekeeping.sight import Ledger, Section, SeenEntry, SeenFile, Sight, Stray
from insula.storage.image_survey import Kept, survey
from insula.storage.images import ImageStore
from insula.storage.layers import read_layer
from insula.store.protocol import Store

DISK_SECTIONS: tuple[Section, ...] = ("machines", "volumes", "snapshots", "templates", "captures")
CLOCK_GRAIN = 0.02  # seconds by which the times of files may be behind the clock (a kernel's tick)


async def look(rooms: Rooms) -> tuple[Sight, Ledger]:
    """What is in the home, and what the ledger remembers of it a moment later."""
    began = time.time() - CLOCK_GRAIN
    scanned = await asyncio.to_thread(_scan, rooms.home, rooms.images, rooms.engine)
    strays = await asyncio.to_thread(_find_strays, rooms.home)
    # From here on nothing else of this daemon runs until we are done.
    ledger = read_ledger(rooms.store)
    entries = tuple(_as_now(entry, rooms) for entry in scanned if _is_there(entry))
    return Sight(began, entries, strays), ledger


async def look_at(rooms: Rooms, section: Section, name: str) -> SeenEntry | None:
    """One entry of the home itself as it is now; None when it is gone. Not for what the images' store has."""
    directory = room_of(rooms.home, section)
    found = await asyncio.to_thread(_see_if_there, rooms.engine, section, directory / name)
    return None if found is None else _as_now(found, rooms)


def read_ledger(store: Store) -> Ledger:
    """What is remembered now. A kind that this ledger does not hold has no documents."""
    return Ledger.of(
        [stored.document for stored in store.all(Machine)],
        [stored.document for stored in store.all(Volume)],
        [stored.document for stored in store.all(Snapshot)],
        [stored.document for stored in store.all(Operation)],
    )


def room_of(home: Home, section: Section) -> Path:
    """The directory whose entries a section has."""
    rooms = {
        "machines": home.machines,
        "volumes": home.volumes,
        "snapshots": home.snapshots,
        "templates": home.templates,
        "captures": home.captures,
        "home": home.root,
    }
    return rooms[section]


# -- in a thread: nothing of this touches the ledger


def _scan(home: Home, images: ImageStore, engine: Engine) -> list[SeenEntry]:
    found: list[SeenEntry] = []
    for section in DISK_SECTIONS:
        for path in _names_in(room_of(home, section)):
            entry = _see_if_there(engine, section, path)
            if entry is not None:
                found.append(entry)
    found += _scan_images(images)
    found += _scan_home(home)
    return found


def _scan_home(home: Home) -> Iterator[SeenEntry]:
    ours = {room_of(home, section) for section in DISK_SECTIONS} | {home.images}
    for path in _names_in(home.root):
        if path not in ours and (entry := _see("home", path)) is not None:
            yield entry


def _scan_images(images: ImageStore) -> Iterator[SeenEntry]:
    for kept in survey(images):
        entry = _see(cast(Section, kept.room), kept.path)
        if entry is not None:
            yield _as_kept(entry, kept)


def _as_kept(entry: SeenEntry, kept: Kept) -> SeenEntry:
    return replace(
        entry,
        busy=kept.busy,
        whole=kept.whole,
        title=kept.title,
        holders=kept.holders,
        names=kept.names,
    )


def _names_in(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def _see_if_there(engine: Engine, section: Section, path: Path) -> SeenEntry | None:
    entry = _see(section, path)
    if entry is None or not entry.is_directory:
        return entry
    outside = entry.outside or (section != "home" and path.parent.is_symlink())
    return replace(entry, outside=outside, memory=engine.frozen_bytes(path))


def _see(section: Section, path: Path) -> SeenEntry | None:
    """The entry with all files in it. What is mounted in it is outside, and then so is it."""
    try:
        files = tuple(_walk(path, "", with_disks=section in DISK_SECTIONS))
    except FileNotFoundError:
        return None
    devices = {file.inode[0] for file in files if file.kind == "directory"}
    return SeenEntry(section, path.name, str(path), files, outside=len(devices) > 1)


def _walk(path: Path, name: str, *, with_disks: bool) -> Iterator[SeenFile]:
    """A file, or a directory and what is in it; links are seen and not followed."""
    status = path.lstat()
    yield _as_seen(path, name, status, with_disks=with_disks)
    if not stat.S_ISDIR(status.st_mode):
        return
    try:
        inside = sorted(entry.name for entry in os.scandir(path))
    except (PermissionError, FileNotFoundError):
        return  # a build's files may be another user's
    for inner in inside:
        try:
            yield from _walk(path / inner, f"{name}/{inner}".lstrip("/"), with_disks=with_disks)
        except FileNotFoundError:
            continue  # it went meanwhile


def _as_seen(path: Path, name: str, status: os.stat_result, *, with_disks: bool) -> SeenFile:
    kind: Literal["file", "directory", "link", "other"] = "other"
    target = None
    if stat.S_ISDIR(status.st_mode):
        kind = "directory"
    elif stat.S_ISREG(status.st_mode):
        kind = "file"
    elif stat.S_ISLNK(status.st_mode):
        kind, target = "link", str(path.readlink())
        # A disk's name leads to its top layer, beside it; no other link is ours.
        target = str(PurePosixPath(name).with_name(target)) if name and "/" not in target else None
    seen = SeenFile(
        name=name,
        kind=kind,
        inode=(status.st_dev, status.st_ino),
        allocated=status.st_blocks * 512,
        links=status.st_nlink,
        changed=status.st_mtime,
        target=target,
    )
    is_disk = with_disks and kind == "file" and path.suffix == ".qcow2" and name
    return _with_backing(path, seen) if is_disk else seen


def _with_backing(path: Path, seen: SeenFile) -> SeenFile:
    try:
        backing = read_layer(path).backing
    except FileNotFoundError:
        raise
    except InsulaError as error:
        return replace(seen, damage=error.message)
    except OSError as error:
        return replace(seen, damage=f"It cannot be read: {error.strerror}.")
    if backing is None:
        return seen
    place = path.parent / backing  # a whole path takes the place of what is before it
    beside = place.parent == path.parent
    name = str(PurePosixPath(seen.name).with_name(place.name)) if beside else str(place)
    return replace(seen, backing=name, resolves=place.is_file())


def _find_strays(home: Home) -> tuple[Stray, ...]:
    # The kernel knows directories by where they are, whatever links a person goes there by.
    rooms = [room_of(home, section).resolve() for section in DISK_SECTIONS]
    return tuple(
        Stray(found.pid, found.start_time, str(found.directory), found.keeper, found.held_bytes)
        for found in find_strays(rooms)
    )


# -- in the loop


def _is_there(entry: SeenEntry) -> bool:
    try:
        status = os.lstat(entry.path)
    except FileNotFoundError:
        return False
    return (status.st_dev, status.st_ino) == entry.files[0].inode


def _as_now(entry: SeenEntry, rooms: Rooms) -> SeenEntry:
    if entry.section == "machines" and entry.is_directory:
        return replace(entry, lives=_lives(Path(entry.path), rooms.engine))
    if entry.section != "templates":
        return entry
    # A template is made without a record of its own: only who makes templates knows how it stands.
    templates = rooms.templates
    title = next((view.image.name for view in templates.all() if view.key == entry.name), "")
    return replace(
        entry, busy=templates.is_busy(entry.name), whole=templates.is_whole(entry.name), title=title
    )


def _lives(directory: Path, engine: Engine) -> bool:
    """Whether a process runs in it. To ask takes its lock for a moment: in the loop, where no launch is just
    about to."""
    return is_locked(directory) or ((directory / PID_FILE).exists() and engine.read_exit(directory) is None)
