"""Building an image from a recipe: what both kinds share, from the preconditions to the finished manifest."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import shutil
from pathlib import Path

from insula.kit.clock import utc_now
from insula.kit.errors import InsulaError
from insula.kit.run import PACKAGES, CommandMissing, find_program
from insula.model.image import Image, ImageDisk, Kernel
from insula.model.operation import Progress
from insula.storage.disk_image import build_disk
from insula.storage.errors import BuildFailed, BuildToolsMissing, disk_full, require_space
from insula.storage.guest_agent import SOURCE, compile_agent, find_compiler
from insula.storage.images import ImageStore
from insula.storage.initramfs import build_initramfs
from insula.storage.packages import Report, can_unshare
from insula.storage.recipe import DiskRecipe, InitramfsRecipe, Recipe

_CHUNK = 2**20
_PACKAGES = {"dpkg-deb": "dpkg", "debugfs": "e2fsprogs"}  # beside those that kit.run knows
# How much a build writes at its peak: the packages' tar, and for a disk the file system made from it.
_INITRAMFS_SPACE = 2**30
_DISK_SPACE = 4 * 2**30


async def build(recipe: Recipe, store: ImageStore, report: Report, *, agent_source: Path = SOURCE) -> Image:
    """Build the image and put it into the store, replacing one of the same name at once and completely.

    report is called with what is going on, from the event loop's thread. A build that is cancelled or killed
    leaves nothing in the store but what `ImageStore.sweep` takes away.
    Raises BuildToolsMissing, DiskFull (both before anything is done) and BuildFailed.
    """
    check_host(recipe, store)
    with store.new_build() as work:
        try:
            agent = None
            if "insula" in recipe.agents:
                agent = work / "insula-agent"
                await compile_agent(agent_source, agent)
            kernel, disk = await _build_files(recipe, agent, work, report)
            image = await _describe(recipe, kernel, disk, work / "image", report)
            return store.publish(image, work / "image")
        except OSError as error:
            if error.errno in (28, 122):  # ENOSPC, EDQUOT
                raise disk_full(store.root, _space(recipe), f"building image '{recipe.name}'") from error
            raise BuildFailed(f"Image '{recipe.name}' could not be built.") from error


async def _build_files(
    recipe: Recipe, agent: Path | None, work: Path, report: Report
) -> tuple[Kernel, ImageDisk | None]:
    if isinstance(recipe, InitramfsRecipe):
        return await build_initramfs(recipe, agent, work, report), None
    return await build_disk(recipe, agent, work, report)


def check_host(recipe: Recipe, store: ImageStore) -> None:
    """Raises BuildToolsMissing with everything that is missing at once, BuildFailed and DiskFull."""
    if platform.machine() != "x86_64":
        raise BuildFailed(
            f"Image '{recipe.name}' cannot be built on {platform.machine()}.",
            hint="Build it on an x86_64 host and copy the images directory.",
        )
    missing = missing_packages(recipe)
    if missing:
        raise BuildToolsMissing(
            f"Building image '{recipe.name}' needs programs that are not installed: {', '.join(missing)}.",
            hint=f"Install them: sudo apt-get install {' '.join(missing)}",
            evidence={"packages": missing},
        )
    require_space(store.root, _space(recipe), f"building image '{recipe.name}'")


def missing_packages(recipe: Recipe) -> list[str]:
    """Debian packages that this host lacks for building the recipe, for `insula doctor` too."""
    programs = ["mmdebstrap", "dpkg-deb"]
    if isinstance(recipe, DiskRecipe):
        programs += ["mke2fs", "debugfs", "mformat", "tar", "qemu-img"]
        programs += [] if os.geteuid() == 0 else ["fakeroot"]
    if isinstance(recipe, InitramfsRecipe) and recipe.compression == "zstd":
        programs.append("zstd")
    missing = []
    for program in programs:
        try:
            find_program(program)
        except CommandMissing:
            missing.append(_PACKAGES.get(program, PACKAGES.get(program, program)))
    if "insula" in recipe.agents and find_compiler() is None:
        missing.append(PACKAGES["gcc"])
    if isinstance(recipe, DiskRecipe) and not _can_change_root():
        missing.append("uidmap")
    return list(dict.fromkeys(missing))


def _can_change_root() -> bool:
    """Whether mmdebstrap can run a package's scripts as if it were root."""
    return os.geteuid() == 0 or can_unshare() or shutil.which("fakechroot") is not None


def _space(recipe: Recipe) -> int:
    return _DISK_SPACE if isinstance(recipe, DiskRecipe) else _INITRAMFS_SPACE


async def _describe(
    recipe: Recipe, kernel: Kernel, disk: ImageDisk | None, files: Path, report: Report
) -> Image:
    size = sum(path.stat().st_size for path in files.iterdir())
    identity = {"kernel": kernel.model_dump(), "disk": disk.model_dump() if disk else None}
    fields = {
        "name": recipe.name,
        "summary": recipe.summary,
        "os": recipe.os,
        "kernel": kernel,
        "disk": disk,
        "boots": recipe.boots,
        "agents": recipe.agents,
        "cloud_init": isinstance(recipe, DiskRecipe) and recipe.cloud_init,
        "default_user": recipe.default_user,
        "minimum_memory_bytes": recipe.minimum_memory,
        "defaults": recipe.defaults,
    }
    digest = hashlib.sha256()
    described = {key: value for key, value in fields.items() if key not in identity} | identity
    digest.update(json.dumps(described, sort_keys=True, default=_as_json).encode())
    done = 0
    for path in sorted(files.iterdir()):
        digest.update(f"\0{path.name}\0".encode())
        with path.open("rb") as stream:
            while chunk := await asyncio.to_thread(stream.read, _CHUNK * 16):
                await asyncio.to_thread(digest.update, chunk)
                done += len(chunk)
                report(Progress(message="Computing the digest", fraction=done / size))
    return Image(
        **fields, digest=f"sha256:{digest.hexdigest()}", created=utc_now(), size_bytes=_allocated(files)
    )


def _as_json(value: object) -> object:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def _allocated(files: Path) -> int:
    """What the files take on disk: a sparse one less than its length."""
    return sum(path.stat().st_blocks * 512 for path in files.iterdir())


__all__ = ["InsulaError", "build", "check_host", "missing_packages"]
