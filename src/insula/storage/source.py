"""A file to import, held open: what is checked are the bytes that are converted.

    path --open_source--> descriptors --inspect--> facts --convert--> ... --verify_unchanged--> they were the
    same

A path is followed once, to a regular file and through no symbolic link at its end; after that only the
descriptor is used, so a name that is turned to another file changes nothing. Who may write the file can still
write into it; that moves its change time (which nobody can set back), and `verify_unchanged` refuses the
result.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from insula.kit.units import format_size
from insula.storage.errors import SourceUnreadable
from insula.storage.formats import DiskFacts, Header, inspect
from insula.storage.formats.header import SECTOR
from insula.storage.formats.vmdk import MAGIC, inspect_sparse

# Change times have the grain of the kernel's tick (10 ms at most); two changes closer than that look like
# one.
_TICK = 0.02


@dataclass(frozen=True)
class SourceFile:
    """One open file. identity: what would be different if it were changed."""

    descriptor: int
    name: str
    identity: tuple[int, ...]

    def header(self) -> Header:
        return Header(self.descriptor, self.name)


@dataclass
class Source:
    """A disk image that is open, with the files beside it that hold its data (by name)."""

    main: SourceFile
    facts: DiskFacts
    extents: dict[str, SourceFile] = field(default_factory=dict)

    @property
    def files(self) -> list[SourceFile]:
        return [self.main, *self.extents.values()]

    def verify_unchanged(self) -> None:
        """Raises ImageRefused when a file is not any more what was checked."""
        for file in self.files:
            if _identity(file.descriptor) != file.identity:
                raise file.header().refused(
                    "it was changed while it was read", hint="Stop what writes it, or import a copy."
                )


@contextmanager
def open_source(path: Path, named_format: str | None = None) -> Iterator[Source]:
    """The image at `path`, checked. Raises SourceUnreadable, UnknownFormat, ImageDamaged and ImageRefused."""
    with ExitStack() as stack:
        main = _open(stack, path, None)
        _let_settle([main])
        facts = inspect(main.header(), named_format)
        source = Source(main, facts)
        if facts.extents:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            _open_extents(stack, source, directory)
        yield source


def _open_extents(stack: ExitStack, source: Source, directory: int) -> None:
    for extent in source.facts.extents:
        if extent.file is not None and extent.file not in source.extents:
            source.extents[extent.file] = _open(stack, Path(extent.file), directory)
    _let_settle(list(source.extents.values()))
    for extent in source.facts.extents:
        if extent.file is None:
            continue
        file = source.extents[extent.file]
        header = file.header()
        if extent.sparse:
            if not header.starts_with(MAGIC):
                raise header.damaged("it is no part of a split disk")
            if inspect_sparse(header) != extent.sectors or extent.offset:
                raise header.damaged("it has another size than the descriptor says")
        elif SECTOR * (extent.offset + extent.sectors) > header.size:
            raise header.damaged(f"it has {format_size(header.size)}, less than the descriptor says")


def _open(stack: ExitStack, path: Path, directory: int | None) -> SourceFile:
    try:
        # O_PATH only finds the file: a device or a FIFO is not even opened.
        found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            _require_regular(path, os.fstat(found))
            descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(found)
    except OSError as error:
        raise _unreadable(path, error) from error
    stack.callback(os.close, descriptor)
    return SourceFile(descriptor, path.name, _identity(descriptor))


def _let_settle(files: list[SourceFile]) -> None:
    """Wait until a change, before which nothing is looked at, would have another time than the last one
    had."""
    if any(time.time() - file.identity[-1] / 1e9 < _TICK for file in files):
        time.sleep(_TICK)


def _identity(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _require_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise SourceUnreadable(
            f"'{path}' is a symbolic link, so it is not read.", hint="Name the file it leads to."
        )
    if not stat.S_ISREG(status.st_mode):
        raise SourceUnreadable(
            f"'{path}' is no regular file, so it is not read.",
            hint="Copy its contents to a file, and import that.",
        )


def _unreadable(path: Path, error: OSError) -> SourceUnreadable:
    if error.errno == errno.ENOENT:
        why, hint = "there is no such file", "The path is one on the daemon's host."
    elif error.errno in (errno.EACCES, errno.EPERM):
        why, hint = "the daemon's user may not read it", "Make it readable: chmod a+r FILE"
    else:
        why, hint = os.strerror(error.errno or errno.EIO).lower(), ""
    return SourceUnreadable(f"'{path}' cannot be read: {why}.", hint=hint)
