"""Disks that several machines stand on: frozen layers, by the same names in the directory of each.

    disk0.qcow2 -> disk0-a.qcow2  ──freeze──>  disk0.qcow2 -> disk0-b.qcow2 (new, empty, stands on it)
                                               disk0-a.qcow2 (never written again)

A layer has a name that no other has (`layers`), its backing file is named relatively, and every machine,
template or snapshot that stands on it has a hard link to each layer below. So a file stays exactly as long as
somebody needs it, whatever is removed, and nobody need count; and each directory has all that it needs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from insula.storage.layers import layers_below, read_layer, top_name
from insula.storage.volumes import create_overlay


def layer_name(file: str, tag: str) -> str:
    """What a layer of a disk is called. tag: unlike any other's, [0-9a-z]."""
    path = Path(file)
    return f"{path.stem}-{tag}{path.suffix}"


def new_tag() -> str:
    """One that nothing has."""
    return secrets.token_hex(6)


def settle(directory: Path, file: str) -> str:
    """The name for good of the disk's top, which it is given here if it has not got one.

    To be asked before anybody opens the disk. Raises OSError.
    """
    name = top_name(directory, file)
    if name == file:
        name = layer_name(file, new_tag())
        os.link(directory / file, directory / name)
        point(directory, file, name)
    return name


async def freeze(directory: Path, file: str, tag: str) -> str:
    """From now on whoever opens the disk writes into a new layer on the one that is its top now.

    Returns the name of the frozen one. Who has it open already goes on in it, until told otherwise. Should
    the host end before, nothing is lost: the new layer is empty and shows all that was written. tag: of the
    new layer; never used before. Raises FileExistsError for one that was, and what create_overlay does; the
    disk is then as it was.
    """
    frozen = settle(directory, file)
    fresh = layer_name(file, tag)
    size = read_layer(directory / frozen).size_bytes
    await create_layer(directory, file, fresh, frozen, size)
    point(directory, file, fresh)
    return frozen


async def create_layer(directory: Path, file: str, name: str, below: str, size: int) -> None:
    """Make an empty layer for the disk `file` on the one called `below`, and nothing of it until it is whole.

    Raises what create_overlay does.
    """
    made_as = directory / _new(file)
    await create_overlay(directory / name, directory / below, "qcow2", size, beside=True, made_as=made_as)


def clear(directory: Path, file: str) -> None:
    """Remove what whoever died at a new layer of the disk has left. Idempotent."""
    (directory / _new(file)).unlink(missing_ok=True)


def _new(file: str) -> str:
    """What the disk's next layer, or next name, is called until it is whole."""
    return f".{file}.new"


def thaw(directory: Path, file: str, tag: str) -> None:
    """Take back a freeze whose new layer nobody has opened. Done again, it changes nothing."""
    fresh = directory / layer_name(file, tag)
    if not fresh.exists():
        return
    below = read_layer(fresh).backing
    if top_name(directory, file) == fresh.name and below is not None:
        point(directory, file, below)
    fresh.unlink()


def link(source: Path, target: Path, name: str) -> None:
    """Give another directory the layer `name` and all it stands on. Done again, it changes nothing."""
    for layer in layers_below(source, name):
        with contextlib.suppress(FileExistsError):
            os.link(source / layer.name, target / layer.name)


async def fork(source: Path, target: Path, file: str, name: str) -> None:
    """A disk in `target` that begins as the layer `name` of `source`; one there is kept.

    Raises FileNotFoundError when that layer is gone.
    """
    link(source, target, name)
    if not (target / file).exists():
        size = read_layer(target / name).size_bytes
        await create_overlay(target / file, target / name, "qcow2", size, beside=True)


def name_top(directory: Path, file: str, tag: str) -> None:
    """The disk of a template that has ended is known by its layer alone, under that tag.

    Done again, it changes nothing.
    """
    named = directory / layer_name(file, tag)
    if not named.exists():
        (directory / settle(directory, file)).rename(named)
    (directory / file).unlink(missing_ok=True)


def sweep(directory: Path, file: str, *kept: str) -> None:
    """Remove the layers of a disk that neither its top nor those of `kept` stand on."""
    tops = [top_name(directory, file)] if (directory / file).exists() else []
    needed = {layer.name for top in (*tops, *kept) for layer in layers_below(directory, top)}
    path = Path(file)
    for layer in directory.glob(f"{path.stem}-*{path.suffix}"):
        if layer.name not in needed:
            layer.unlink()


def point(directory: Path, file: str, name: str) -> None:
    """From now on the disk is the layer of that name, on which nobody may stand. Idempotent."""
    if top_name(directory, file) == name:
        return
    temporary = directory / _new(file)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    temporary.replace(directory / file)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
