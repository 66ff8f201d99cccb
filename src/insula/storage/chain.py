"""Disks that several machines stand on: frozen files, by the same names in the directory of each.

    disk0.qcow2 ──freeze──> disk0-TAG.qcow2 (never written again)
                            disk0.qcow2 (new, empty, stands on it)

A frozen file has a name that no other has, its backing file is named relatively, and every machine that
stands on it has a hard link to each file of the chain. So a file stays exactly as long as some machine needs
it, whatever is removed, and nobody need count; and a machine's directory has all that it needs.
"""

from __future__ import annotations

import os
from pathlib import Path

from insula.storage.volumes import create_overlay


def frozen_name(file: str, tag: str) -> str:
    """What a disk's file is called once it was frozen. tag: unlike any other's, [0-9a-z]."""
    path = Path(file)
    return f"{path.stem}-{tag}{path.suffix}"


async def freeze(directory: Path, file: str, tag: str, size: int) -> None:
    """From now on whoever opens the disk writes into a new file that stands on the frozen one.

    Who has it open already goes on in what is now the frozen file, until it is told otherwise. Should the
    host end before, nothing is lost: the new file is empty and shows all that was written. tag: never used
    before. Raises FileExistsError for one that was, and what create_overlay does; the disk is then as it was.
    """
    frozen = directory / frozen_name(file, tag)
    fresh = directory / f".{file}.new"
    os.link(directory / file, frozen)
    try:
        fresh.unlink(missing_ok=True)
        await create_overlay(fresh, frozen, "qcow2", size, beside=True)
    except BaseException:
        frozen.unlink(missing_ok=True)
        raise
    fresh.replace(directory / file)


def link(source: Path, target: Path, file: str) -> None:
    """Give another directory all frozen files that the disk may stand on. Done again, it changes nothing."""
    path = Path(file)
    for frozen in source.glob(f"{path.stem}-*{path.suffix}"):
        if not (target / frozen.name).exists():
            os.link(frozen, target / frozen.name)


async def fork(source: Path, target: Path, file: str, tag: str, size: int) -> None:
    """A disk in `target` that begins as the one frozen under the tag in `source`; one there is kept.

    Raises FileNotFoundError when the frozen one is gone.
    """
    link(source, target, file)
    if not (target / frozen_name(file, tag)).exists():
        raise FileNotFoundError(target / frozen_name(file, tag))
    if not (target / file).exists():
        await create_overlay(target / file, target / frozen_name(file, tag), "qcow2", size, beside=True)
