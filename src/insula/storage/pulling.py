"""Pulling an image that a catalogue lists: checksum, download, unpack, import.

    catalogue entry --publisher's checksums--> expected digest --Download--> file, verified --unpack-->
    --import--> image

What came of a file before a failure, a cancellation or a crash is kept for a day and gone on with.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from insula.kit.errors import InsulaError
from insula.kit.units import format_size
from insula.model.image import Image
from insula.model.operation import Progress
from insula.storage.catalogue import CatalogueEntry
from insula.storage.checksums import Checksum, checksum, find_checksum
from insula.storage.download import DATA, Download, fetch_text
from insula.storage.errors import (
    ChecksumMismatch,
    ConversionFailed,
    DiskFull,
    DownloadFailed,
    ImageRefused,
)
from insula.storage.images import ImageStore
from insula.storage.importing import import_file
from insula.storage.packages import Report
from insula.storage.unpacking import unpack

# What says nothing against the file that came: it need not come again.
_MENDABLE = (DownloadFailed, ConversionFailed, DiskFull)
T = TypeVar("T")


def check_entry(entry: CatalogueEntry) -> None:
    """Raises ImageRefused for an architecture that no machine here has."""
    if entry.architecture != "x86_64":
        raise ImageRefused(
            f"The image '{entry.name}' is refused: it is for {entry.architecture}.",
            hint="Machines here are x86_64.",
        )


async def pull(
    entry: CatalogueEntry,
    name: str,
    store: ImageStore,
    report: Report,
    whole: Callable[[Image], Awaitable[None]] | None = None,
) -> Image:
    """Put the catalogue's image into the store as `name`, in the place of one that has it.

    whole: awaited with the image before it is published. Raises DownloadFailed, ChecksumMismatch, DiskFull
    and what `import_file` does.
    """
    check_entry(entry)
    expected = await asyncio.to_thread(find_expected, entry)
    key = hashlib.sha256(f"{entry.url}\n{expected}".encode()).hexdigest()[:16]
    loop = asyncio.get_running_loop()

    def tell(progress: Progress) -> None:
        loop.call_soon_threadsafe(report, progress)

    with store.download(key) as directory:
        stop = threading.Event()
        try:
            path = await _in_thread(stop, lambda: _fetch(entry, expected, directory, stop, tell))
            image = await import_file(
                path,
                name,
                entry.properties(),
                store,
                report,
                format=entry.format,
                whole=whole,
                replace=True,
                origin=entry.url,
            )
        except InsulaError as error:
            if not isinstance(error, _MENDABLE):
                await asyncio.to_thread(shutil.rmtree, directory)
            raise
        await asyncio.to_thread(shutil.rmtree, directory)
        return image


def find_expected(entry: CatalogueEntry) -> Checksum:
    """The digest that the file must have. Raises DownloadFailed and ChecksumMismatch."""
    if entry.sha512 or entry.sha256:
        return checksum(entry.sha512 or entry.sha256 or "")
    assert entry.checksum_url is not None, "the catalogue sees to it"
    file = PurePosixPath(unquote(urlsplit(entry.url).path)).name
    found = find_checksum(fetch_text(entry.checksum_url), file)
    if found is None:
        raise ChecksumMismatch(
            f"The publisher's checksums at {entry.checksum_url} do not say one thing of '{file}'.",
            hint="The catalogue may be out of date.",
        )
    return found


def _fetch(
    entry: CatalogueEntry,
    expected: Checksum,
    directory: Path,
    stop: threading.Event,
    report: Report,
) -> Path:
    """The file as it is to be imported."""

    def came(url: str, size: int, total: int | None) -> None:
        host = urlsplit(url).hostname
        known = total or entry.size
        of = f" of {format_size(known)}" if known else ""
        report(
            Progress(
                message=f"Downloading {entry.name} from {host}: {format_size(size)}{of}",
                fraction=min(1.0, size / known) if known else None,
            )
        )

    path = Download(directory, (entry.url, *entry.mirrors), expected, entry.size, came, stop).run()
    target = directory / f"{entry.name}.image"  # what is said of the file then says what it is
    target.unlink(missing_ok=True)
    if entry.compression == "none":
        target.hardlink_to(path)
        return target
    unpack(
        directory / DATA,
        entry.compression,
        target,
        entry.name,
        stop,
        lambda fraction: report(Progress(message=f"Unpacking {entry.name}", fraction=fraction)),
    )
    return target


async def _in_thread(stop: threading.Event, work: Callable[[], T]) -> T:
    """Run it in a thread. A cancellation stops it and waits for its end, so that nobody writes when we are
    gone."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # Stopped, which nobody else hears
        raise
