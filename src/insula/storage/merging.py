"""Merging layers that nobody needs for themselves any more into the ones that stand on them.

    top ──> c ──> b ──> a ──> image          snapshots on c and a:  b merges into c
                  └ nobody's own              none, and no fork:     c, b, a merge into the top

A layer is needed for itself by whoever has it as a top: a snapshot, a fork, a template. Whoever stands on it
has a link to it, so what has more links than are known here is left alone, and so is what several stand on.
The layer that takes over shows the same before, during and after; only then do the others lose their names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from insula.kit.run import CommandFailed, stream
from insula.storage.errors import disk_full
from insula.storage.layers import Layer, layers_below, top_name
from insula.storage.volumes import free_lost_clusters, says_full

Report = Callable[[float], None]


@dataclass(frozen=True)
class Stand:
    """A directory in which a disk, or a snapshot of it, stands on layers. top: the name of the first."""

    directory: Path
    top: str


@dataclass(frozen=True)
class Found:
    """A layer, in how many places it has a name, and the directories of ours among them."""

    layer: Layer
    links: int
    homes: frozenset[Path]


@dataclass(frozen=True)
class Merge:
    """Layer `onto` takes over what is in `gone` (the upper one first), and then stands on `base`.

    directory: one that has them. base: as the lowest of them names it; None: it stood on nothing.
    """

    directory: Path
    onto: str
    gone: tuple[str, ...]
    base: str | None
    base_format: str | None


def stand_of(directory: Path, file: str) -> Stand:
    """Where a disk stands now."""
    return Stand(directory, top_name(directory, file))


def survey(stands: Sequence[Stand]) -> dict[str, Found]:
    """All layers that these stand on, by name. Raises OSError, ImageDamaged."""
    found: dict[str, Found] = {}
    for stand in stands:
        for layer in layers_below(stand.directory, stand.top):
            known = found.get(layer.name)
            homes = known.homes if known is not None else frozenset()
            links = (stand.directory / layer.name).stat().st_nlink
            found[layer.name] = Found(layer, links, homes | {stand.directory})
    return found


def plan_merges(found: dict[str, Found], stands: Sequence[Stand]) -> list[Merge]:
    """What can be merged, as few merges as it takes. Pure."""
    tops = {stand.top for stand in stands}
    above: dict[str, list[str]] = {}
    for name, entry in found.items():
        if entry.layer.stands_on_layer and entry.layer.backing in found:
            above.setdefault(entry.layer.backing, []).append(name)

    def is_free(name: str) -> bool:
        """Whether only the one layer that stands on it needs it, wherever it is."""
        entry, upper = found[name], above.get(name, [])
        if name in tops or len(upper) != 1 or entry.links != len(entry.homes):
            return False
        return entry.homes <= found[upper[0]].homes

    merges = []
    for onto, entry in found.items():
        if is_free(onto):
            continue
        gone, lowest = [], entry.layer
        while lowest.stands_on_layer and lowest.backing in found and is_free(lowest.backing):
            gone.append(lowest.backing)
            lowest = found[lowest.backing].layer
        if gone:
            directory = min(entry.homes)
            merges.append(Merge(directory, onto, tuple(gone), lowest.backing, lowest.backing_format))
    return merges


async def merge_at_rest(merge: Merge, report: Report) -> None:
    """Merge layers that no machine has open. Raises DiskFull, CommandFailed; nothing is lost then.

    QEMU's locks keep it from what some machine has open after all.
    """
    path = merge.directory / merge.onto
    # -t writethrough: what is copied must be in the file, with the tables that find it, before the header
    # says that the layers below are not needed; qemu-img keeps tables in its own memory, and may be killed.
    argv = ["qemu-img", "rebase", "-p", "-t", "writethrough", "-f", "qcow2", "-b", merge.base or ""]
    argv += ["-F", merge.base_format] if merge.base is not None and merge.base_format else []
    try:
        async for line in stream(
            [*argv, merge.onto], cwd=merge.directory, env={**os.environ, "LC_ALL": "C"}, separator=b"\r"
        ):
            fraction = line.strip().lstrip("(").partition("/100%")[0]
            if fraction.replace(".", "", 1).isdigit():
                report(float(fraction) / 100)
    except CommandFailed as error:
        if says_full(error):
            needed = sum((merge.directory / name).stat().st_blocks * 512 for name in merge.gone)
            raise disk_full(path, needed, f"merging what the disk layer '{merge.onto}' stands on") from error
        raise
    finally:
        await free_lost_clusters(path)  # also what a killed one, an earlier daemon's, has left
