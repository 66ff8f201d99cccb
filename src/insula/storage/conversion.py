"""Converting disks with qemu-img: formats by name, never by guess, and in confinement.

What comes in becomes a sparse raw disk. Such a disk has no header, so nothing of what a stranger wrote into
one survives; machines overlay it like any other.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from insula.kit.run import CommandFailed, stream
from insula.model.operation import Progress
from insula.storage.confinement import Confinement, choose_confinement
from insula.storage.content import Follower
from insula.storage.errors import ConversionFailed, ImageDamaged, ImageRefused, disk_full, free_bytes
from insula.storage.formats import FORMATS
from insula.storage.packages import Report
from insula.storage.source import Source, SourceFile

# Left free on the images' file system: an image that unpacks to more than there is room for stops before
# others on this host have no room either.
RESERVE = 2**29
_PIECE = 2**20
_WRITE_OUT = 0.2  # seconds between two times that what is there so far is sent to the medium
_PERCENT = re.compile(r"\((\d+(?:\.\d+)?)/100%\)")
_DAMAGED = re.compile(
    r"corrupt|[Ii]nvalid|[Cc]ould not open|malformed|Input/output error|error while reading|inflate"
)


async def convert_to_raw(source: Source, target: Path, place: Path, report: Report) -> str:
    """Make `target` the disk of the source, sparse and raw; the digest of its content (see `content`).

    place: what people know its file system by. Raises ImageRefused, ImageDamaged, DiskFull and
    ConversionFailed. What was begun of the target is the caller's to remove.
    """
    size = source.facts.virtual_size
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _set_size(source, descriptor, size)
        confinement = choose_confinement(descriptor)
        async with _sources(source, confinement, target.parent) as (options, descriptors):
            argv = ["qemu-img", "convert", "-p", "-n", "--target-is-zero", "-O", "raw"]
            argv += [f"json:{json.dumps(options)}", _path(descriptor)]
            command = await confinement.wrap(argv, most_file=size, disk=size)
            work = asyncio.ensure_future(_run(command, [descriptor, *descriptors], source.main.name, report))
            digest = await _digest_meanwhile(work, descriptor, source.main, place)
        confinement.take_back(descriptor)
        return digest
    finally:
        os.close(descriptor)


async def _digest_meanwhile(work: asyncio.Future[None], target: int, file: SourceFile, place: Path) -> str:
    """Wait for the work, which is stopped when it leaves the host too little room; the digest of what it
    wrote, which is on the medium then."""
    loop = asyncio.get_running_loop()
    ended, full = threading.Event(), threading.Event()
    follower = Follower(target, os.fstat(target).st_size)

    def look() -> None:
        if free_bytes(place) < RESERVE and not full.is_set():
            full.set()
            loop.call_soon_threadsafe(work.cancel)

    # The two do not wait for each other: one needs a processor, the other the medium.
    digest = asyncio.ensure_future(asyncio.to_thread(follower.follow, ended, look))
    written = asyncio.ensure_future(asyncio.to_thread(_write_out, target, ended, follower))
    threads = (digest, written)
    try:
        await work
        ended.set()
        await asyncio.shield(asyncio.gather(*threads))
        return digest.result()
    except asyncio.CancelledError:
        follower.give_up()
        if full.is_set():
            raise disk_full(place, RESERVE, f"image '{file.name}'") from None
        raise
    except CommandFailed as error:
        follower.give_up()
        raise _explain(error, file, place) from error
    finally:
        ended.set()
        await asyncio.wait(threads)  # a thread must not be left with a descriptor that is closed
        written.exception()  # heard above, unless the work had failed already


def _write_out(descriptor: int, ended: threading.Event, follower: Follower) -> None:
    """Have the file on its medium once it is whole. Begun early, so that little is left to wait for then."""
    whole = False
    while not whole and not follower.given_up:
        whole = ended.wait(_WRITE_OUT)
        os.fdatasync(descriptor)


def _set_size(source: Source, descriptor: int, size: int) -> None:
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        raise source.main.header().refused(
            "the file system of the images cannot hold a disk of its size",
            hint="Keep images elsewhere: INSULA_IMAGES.",
        ) from error


async def convert_disk(
    source: int,
    source_driver: str,
    target: int,
    format: str,
    options: str,
    size: int,
    what: str,
    report: Report,
) -> None:
    """Write a disk of our own into `target` in another format. Both are descriptors; size: of the disk, in
    bytes.

    Raises DiskFull and ConversionFailed.
    """
    confinement = choose_confinement(target)
    driver = {"driver": source_driver, "file": {"driver": "file", "filename": _path(source)}}
    argv = ["qemu-img", "convert", "-p", "-O", FORMATS[format].DRIVER, *(["-o", options] if options else [])]
    argv += [f"json:{json.dumps(driver)}", _path(target)]
    # A format's own tables come on top of the data.
    command = await confinement.wrap(argv, most_file=size + size // 64 + 2**28, disk=size)
    try:
        await _run(command, [source, target], what, report)
    except CommandFailed as error:
        if _is_full(error):
            raise disk_full(Path(f"/proc/self/fd/{target}"), size, f"exporting '{what}'") from error
        raise ConversionFailed(
            f"Image '{what}' could not be written as {format}.", evidence=error.evidence
        ) from error
    confinement.take_back(target)


@asynccontextmanager
async def _sources(
    source: Source, confinement: Confinement, work: Path
) -> AsyncIterator[tuple[dict[str, Any], list[int]]]:
    """The driver's options for the source, and the descriptors that they name."""
    opened: list[int] = []
    try:
        readable = {file.name: await _readable(file, confinement, work, opened) for file in source.files}
        main = readable[source.main.name]
        if source.facts.extents:
            main = _own_descriptor(source, readable)
            opened.append(main)
        options: dict[str, Any] = {"driver": source.facts.driver, **dict(source.facts.options)}
        if source.facts.driver in ("qcow2", "qed", "vmdk"):
            options["backing"] = None  # whatever the file says
        options["file"] = {"driver": "file", "filename": _path(main)}
        yield options, list({main, *readable.values()})
    finally:
        for descriptor in opened:
            os.close(descriptor)


async def _readable(file: SourceFile, confinement: Confinement, work: Path, opened: list[int]) -> int:
    """A descriptor that the tool's user may open anew: the file's own, else that of a copy nobody sees."""
    if confinement.may_read(file.descriptor):
        return file.descriptor
    copy = os.open(work, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    opened.append(copy)
    stop = threading.Event()
    # The thread has descriptors of its own: when we are cancelled it may still be at a piece.
    reader, writer = os.dup(file.descriptor), os.dup(copy)
    try:
        await asyncio.to_thread(_copy, reader, writer, file.name, work, stop)
    finally:
        stop.set()
    confinement.lend(copy)
    return copy


def _copy(reader: int, writer: int, name: str, work: Path, stop: threading.Event) -> None:
    """Copy a file, and close both descriptors. Raises DiskFull."""
    with open(reader, "rb") as source, open(writer, "wb") as target:
        at = 0
        while not stop.is_set() and (data := os.pread(source.fileno(), _PIECE, at)):
            if free_bytes(work) < RESERVE:
                raise disk_full(work, RESERVE, f"image '{name}'")
            target.write(data)
            at += len(data)


def _own_descriptor(source: Source, readable: dict[str, int]) -> int:
    """A VMDK descriptor of ours for a split disk, in memory: the same extents, by descriptor and not by
    name."""
    lines = ["# Disk DescriptorFile", "version=1", "CID=fffffffe", "parentCID=ffffffff"]
    sparse = any(extent.sparse for extent in source.facts.extents)
    lines.append(f'createType="twoGbMaxExtent{"Sparse" if sparse else "Flat"}"')
    for extent in source.facts.extents:
        if extent.file is None:
            lines.append(f"RW {extent.sectors} ZERO")
        elif extent.sparse:
            lines.append(f'RW {extent.sectors} SPARSE "{_path(readable[extent.file])}"')
        else:
            lines.append(f'RW {extent.sectors} FLAT "{_path(readable[extent.file])}" {extent.offset}')
    descriptor = os.memfd_create("descriptor", os.MFD_CLOEXEC)
    os.write(descriptor, ("\n".join(lines) + "\n").encode())
    os.fchmod(descriptor, 0o444)
    return descriptor


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


async def _run(command: list[str], descriptors: list[int], what: str, report: Report) -> None:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    lines = stream(command, env=environment, cwd=Path("/"), pass_fds=descriptors, separator=b"\r")
    async for line in lines:
        if found := _PERCENT.search(line):
            report(Progress(message=f"Converting {what}", fraction=min(1.0, float(found[1]) / 100)))


def _is_full(error: CommandFailed) -> bool:
    said = str(error.evidence.get("stderr", ""))
    return "No space left on device" in said or "Disk quota exceeded" in said


def _explain(error: CommandFailed, file: SourceFile, work: Path) -> ImageDamaged | ImageRefused | Exception:
    if _is_full(error):
        return disk_full(work, RESERVE, f"image '{file.name}'")
    if error.evidence.get("exit_status") in (-24, -25, 152, 153):  # SIGXCPU, SIGXFSZ
        return file.header().refused("its conversion took more than any honest image needs")
    if _DAMAGED.search(str(error.evidence.get("stderr", ""))):
        damaged = file.header().damaged("its contents cannot be read; qemu-img says why")
        damaged.evidence.update(error.evidence)
        return damaged
    return ConversionFailed(
        f"Image '{file.name}' could not be converted.",
        hint="Try again; its file may be whole.",
        evidence=error.evidence,
    )


__all__ = ["RESERVE", "convert_disk", "convert_to_raw"]
