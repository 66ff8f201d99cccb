"""What is in a directory of images: its names, files, claims, builds and downloads, and who is at them.

The other half of `images`, whose layout and locks it knows: that one changes what is there, this one looks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from insula.storage.images import (
    _BLOBS,
    _BUILDS,
    _CLAIMS,
    _DOWNLOADS,
    _LOCK,
    MANIFEST,
    ImageStore,
    _is_locked,
)

Room = Literal["blobs", "claims", "names", "builds", "downloads", "images"]


@dataclass(frozen=True)
class Kept:
    """Something there. busy: somebody holds its lock. whole: a name, a claim: its blob is there.

    title: what an image's manifest calls it. holders: living claims. names: that lead to it.
    """

    room: Room
    path: Path
    busy: bool = False
    whole: bool = False
    title: str = ""
    holders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def survey(store: ImageStore) -> list[Kept]:
    """Everything there. The store's lock is held for a moment, so that nothing is seen half made."""
    if not store.root.is_dir():
        return []
    with store._locked():
        return [*_names(store), *_blobs(store), *_claims(store), *_works(store), *_rest(store)]


def _names(store: ImageStore) -> Iterator[Kept]:
    for path in sorted(store.root.iterdir()):
        if path.is_symlink():
            yield Kept("names", path, whole=(path / MANIFEST).is_file())


def _blobs(store: ImageStore) -> Iterator[Kept]:
    leading: dict[Path, list[str]] = {}
    for name in store._names():
        leading.setdefault((store.root / name).resolve(), []).append(name)
    for path in _list(store.root / _BLOBS):
        yield Kept(
            "blobs",
            path,
            whole=(path / MANIFEST).is_file(),
            title=_title(path),
            holders=tuple(_holders(store, path.name)),
            names=tuple(leading.get(path.resolve(), ())),
        )


def _title(blob: Path) -> str:
    try:
        return str(json.loads((blob / MANIFEST).read_bytes())["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _holders(store: ImageStore, digest: str) -> Iterator[str]:
    for claim in _list(store.root / _CLAIMS / digest):
        holder = Path(claim.read_text())
        if holder.is_dir():
            yield str(holder)


def _claims(store: ImageStore) -> Iterator[Kept]:
    for path in _list(store.root / _CLAIMS):
        yield Kept("claims", path, whole=(store.root / _BLOBS / path.name).is_dir())


def _works(store: ImageStore) -> Iterator[Kept]:
    for path in _list(store.root / _BUILDS):
        yield Kept("builds", path, busy=_is_locked(path / _LOCK))
    for path in _list(store.root / _DOWNLOADS):
        yield Kept("downloads", path, busy=_is_locked(path / _LOCK))


def _rest(store: ImageStore) -> Iterator[Kept]:
    rooms = (_BLOBS, _CLAIMS, _BUILDS, _DOWNLOADS)
    for path in sorted(store.root.iterdir()):
        if not path.is_symlink() and path.name not in rooms:
            yield Kept("images", path)


def _list(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() and not os.path.islink(directory) else []  # noqa: PTH114
