"""Importing a disk that somebody made elsewhere: checked, converted, described, published all at once."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from insula.kit.clock import utc_now
from insula.model.device.nic import NetworkMode
from insula.model.image import Image, ImageDefaults, ImageDisk, ImageProperties
from insula.model.operation import Progress
from insula.storage.conversion import RESERVE, convert_to_raw
from insula.storage.errors import disk_full, require_space
from insula.storage.images import ImageStore
from insula.storage.packages import Report
from insula.storage.source import Source, open_source

DISK_FILE = "disk.raw"


def check_file(path: Path, format: str | None) -> None:
    """Refuse what can be refused before anything is done. Raises SourceUnreadable, UnknownFormat,
    ImageDamaged and ImageRefused."""
    with open_source(path, format):
        pass


async def import_file(
    path: Path,
    name: str,
    properties: ImageProperties,
    store: ImageStore,
    report: Report,
    *,
    format: str | None = None,
    replace: bool = False,
    origin: str = "",
    whole: Callable[[Image], Awaitable[None]] | None = None,
) -> Image:
    """Put the disk into the store as an image that boots from it.

    format: as in `formats.FORMATS`, None to go by the header. whole: awaited with the image before it is
    published. An import that is cancelled or killed leaves nothing in the store but what `ImageStore.sweep`
    takes away. Raises the errors of `check_file`, ImageNameTaken, DiskFull and ConversionFailed.
    """
    if not replace:
        store.require_free_name(name)
    try:
        with open_source(path, format) as source, store.new_build() as work:
            need = sum(os.fstat(file.descriptor).st_blocks * 512 for file in source.files)
            require_space(store.root, need + RESERVE, f"importing '{path.name}'")
            content = await convert_to_raw(source, work / "image" / DISK_FILE, store.root, report)
            source.verify_unchanged()
            report(Progress(message="Writing it down"))
            image = _describe(
                name, properties, source, content, work / "image", origin or f"import of {path.name}"
            )
            if whole is not None:
                await whole(image)
            return await asyncio.to_thread(store.publish, image, work / "image", replace=replace)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(store.root, RESERVE, f"importing '{path.name}'") from error
        raise


def _describe(
    name: str, properties: ImageProperties, source: Source, content: str, files: Path, origin: str
) -> Image:
    """The manifest. Its digest covers what the manifest says and what the disk holds."""
    agent = None if properties.agent == "none" else properties.agent
    fields = {
        "name": name,
        "summary": properties.summary or f"imported from {source.facts.format}",
        "os": properties.os,
        "disk": ImageDisk(file=DISK_FILE, format="raw", virtual_size_bytes=source.facts.virtual_size),
        "boots": ("disk",),
        "agents": () if agent is None else (agent,),
        "cloud_init": properties.cloud_init,
        "default_user": properties.default_user,
        "defaults": ImageDefaults(
            memory_bytes=properties.memory,
            network=NetworkMode.NONE,
            boot="disk",
            firmware=properties.firmware,
            agent=agent,
            rng=True,
        ),
        "origin": origin,
    }
    image = Image.model_validate(
        {
            **fields,
            "digest": "",
            "created": utc_now(),
            "size_bytes": (files / DISK_FILE).stat().st_blocks * 512,
        }
    )
    said = image.model_dump(mode="json", exclude={"digest", "created", "size_bytes", "origin"})
    digest = hashlib.sha256(json.dumps([said, content], sort_keys=True).encode()).hexdigest()
    return image.changed(digest=f"sha256:{digest}")
