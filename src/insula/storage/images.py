"""The images of a host, or of several homes that share a directory.

DIRECTORY/
  NAME -> blobs/DIGEST      which image a name means now; replaced by rename, so there is always one
  blobs/DIGEST/             manifest.json and the files; never changed once it is here
  claims/DIGEST/UID         holds the path of a machine's directory; counts while that directory exists
  builds/ID/                an image in the making, with a lock held by whoever makes it
  downloads/ID/             a file that is being pulled, with such a lock; a part of one is kept for a day
  .lock                     held for moments, whenever one of the above comes or goes

A rebuilt image gets a new digest, and machines keep the files of the old one: a blob goes only when no name
leads to it, no living claim holds it and the caller does not call it in use.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from insula.kit.errors import nearest
from insula.kit.paths import write_atomically
from insula.model.image import Image
from insula.storage.errors import DownloadFailed, ImageNameTaken, ImageNotFound
from insula.storage.packages import SCRATCH_LINK, remove_tree

MANIFEST = "manifest.json"
_BLOBS, _CLAIMS, _BUILDS, _DOWNLOADS = "blobs", "claims", "builds", "downloads"
KEEP_DOWNLOADS = 86400.0  # seconds that a part of a download waits for somebody to go on with it
_LOCK = ".lock"


class ImageStore:
    """See the module. Cheap to make; creates its directories when something is stored.

    buildable: names of recipes, for the hint of ImageNotFound.
    """

    def __init__(self, directory: Path, buildable: Collection[str] = ()) -> None:
        self.root = directory.absolute()
        self._buildable = tuple(buildable)

    def list(self) -> list[Image]:
        """Every image by name, sorted."""
        return [self._read(self.root / name) for name in self._names()]

    def get(self, name: str) -> Image:
        """The image that the name means now. Raises ImageNotFound."""
        if name not in self._names():
            raise self._unknown(name)
        return self._read(self.root / name)

    def directory(self, name: str) -> Path:
        """Where the files of the image are that the name means now. The path is the blob's: it stays valid
        for this digest when the name moves on. Raises ImageNotFound."""
        return self.blob(self.get(name).digest)

    def blob(self, digest: str) -> Path:
        """Where the files of the image with this digest are, whatever its name. Raises ImageNotFound."""
        path = self._blob(digest)
        if not (path / MANIFEST).is_file():
            raise ImageNotFound(
                f"There is no image with digest {digest[:19]}.",
                hint="It was removed or lives in another directory; see INSULA_IMAGES.",
            )
        return path

    def claim(self, digest: str, holder: Path) -> None:
        """Keep the image's files for as long as the directory `holder` (a machine's) exists.

        Asking twice changes nothing; nobody need release it. Raises ImageNotFound.
        """
        with self._locked():
            self.blob(digest)
            claims = self.root / _CLAIMS / self._blob(digest).name
            claims.mkdir(parents=True, exist_ok=True)
            write_atomically(claims / holder.name, str(holder.absolute()), mode=0o644)

    def hold(self, digests: Collection[str], holder: Path) -> None:
        """Keep the files of these images, and of no others, for the directory `holder`. Idempotent.

        Raises ImageNotFound; then the holder keeps what it had.
        """
        with self._locked():
            wanted = {self.blob(digest).name for digest in digests}
            for name in sorted(wanted):
                claim = self.root / _CLAIMS / name / holder.name
                if not claim.exists() or claim.read_text() != str(holder.absolute()):
                    claim.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(claim, str(holder.absolute()), mode=0o644)
            for claim in (self.root / _CLAIMS).glob(f"*/{holder.name}"):
                if claim.parent.name not in wanted and claim.read_text() == str(holder.absolute()):
                    claim.unlink()

    def remove(self, name: str, in_use: Collection[str] = ()) -> bool:
        """Forget the name, and the files too unless a machine uses them; True if those are gone.

        in_use: digests that this home's machines use. Raises ImageNotFound.
        """
        with self._locked():
            digest = self.get(name).digest
            (self.root / name).unlink()
            return self._drop_if_unused(digest, in_use)

    def prune(self, in_use: Collection[str] = ()) -> tuple[str, ...]:
        """Remove the files of images that no name means and nobody uses; their digests. Parts of downloads
        go too."""
        self._drop_downloads(0.0)
        if not (self.root / _BLOBS).is_dir():
            return ()
        with self._locked():
            digests = [self._digest(path.name) for path in sorted((self.root / _BLOBS).iterdir())]
            return tuple(digest for digest in digests if self._drop_if_unused(digest, in_use))

    @contextmanager
    def new_build(self) -> Iterator[Path]:
        """A directory for an image in the making, removed at the end unless `publish` took it away.

        It lives as long as we do: a lock tells other processes so, which the kernel gives up when we die.
        """
        with self._locked():
            work = self.root / _BUILDS / secrets.token_hex(6)
            (work / "image").mkdir(parents=True)
            descriptor = os.open(work / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
            os.close(descriptor)

    @contextmanager
    def download(self, key: str) -> Iterator[Path]:
        """The directory of a file that is being pulled, with what came of it before. Remove it when it is
        done with.

        Raises DownloadFailed when another process is at it.
        """
        directory = self.root / _DOWNLOADS / key
        with self._locked():
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise DownloadFailed(
                    "Another daemon that shares these images is downloading this file.",
                    hint="Wait for it, then try again.",
                    retry_after=60,
                ) from None
        try:
            yield directory
        finally:
            if directory.exists():
                os.utime(directory)
            os.close(descriptor)

    def require_free_name(self, name: str) -> None:
        """Raises ImageNameTaken."""
        if name in self._names():
            raise ImageNameTaken(
                f"There is an image '{name}' already.",
                hint="Choose another name with --name, or put this one in its place with --replace; "
                "machines keep "
                "what they were made from.",
            )

    def publish(self, image: Image, files: Path, *, replace: bool = True) -> Image:
        """Take a directory with the image's files into the store under its name, all at once.

        files is on the store's file system (work/"image" of `new_build`). The same digest may be there
        already: then those files stay. Returns what the store now says. Raises ImageNameTaken unless
        `replace`.
        """
        write_atomically(files / MANIFEST, image.model_dump_json(indent=2) + "\n", mode=0o644)
        for path in files.iterdir():
            path.chmod(0o444)
            _sync(path)
        _sync(files)
        with self._locked():
            if not replace:
                self.require_free_name(image.name)
            blob = self._blob(image.digest)
            blob.parent.mkdir(exist_ok=True)
            if not (blob / MANIFEST).is_file():
                files.rename(blob)
            link = self.root / f".{image.name}.{secrets.token_hex(4)}"
            link.symlink_to(blob.relative_to(self.root))
            link.replace(self.root / image.name)
            _sync(self.root)
        return self.get(image.name)

    async def sweep(self) -> tuple[Path, ...]:
        """Remove what killed builds left, and old parts of downloads; never a living build, never an image.
        The directories removed.

        What a build's programs still write while they die is left for the next sweep.
        """
        dropped = self._drop_downloads(KEEP_DOWNLOADS)
        if not (self.root / _BUILDS).is_dir():
            return dropped
        dead = []
        with self._locked():
            for work in sorted((self.root / _BUILDS).iterdir()):
                if not _is_locked(work / _LOCK):
                    dead.append(work)
            for link in self.root.glob(".*"):
                if link.is_symlink():
                    link.unlink()
        for work in dead:
            scratch = work / SCRATCH_LINK
            if scratch.is_symlink():
                await remove_tree(scratch.resolve())
            await remove_tree(work)
        return (*dropped, *(work for work in dead if not work.exists()))

    def drop_dead_claims(self) -> tuple[Path, ...]:
        """Remove the claims on images that are gone: their removal was cut short. What was removed."""
        if not (self.root / _CLAIMS).is_dir():
            return ()
        with self._locked():
            claims = sorted((self.root / _CLAIMS).iterdir())
            dead = [path for path in claims if not (self.root / _BLOBS / path.name).is_dir()]
            for path in dead:
                shutil.rmtree(path)
        return tuple(dead)

    def _drop_downloads(self, age: float) -> tuple[Path, ...]:
        """Remove the parts of downloads that nobody is at and that are older than `age` seconds."""
        if not (self.root / _DOWNLOADS).is_dir():
            return ()
        with self._locked():
            old = [
                path
                for path in sorted((self.root / _DOWNLOADS).iterdir())
                if path.stat().st_mtime <= time.time() - age and not _is_locked(path / _LOCK)
            ]
            for path in old:
                shutil.rmtree(path)
        return tuple(old)

    def _names(self) -> tuple[str, ...]:
        if not self.root.is_dir():
            return ()
        links = [path.name for path in self.root.iterdir() if path.is_symlink()]
        return tuple(sorted(name for name in links if not name.startswith(".")))

    def _read(self, directory: Path) -> Image:
        return Image.model_validate_json((directory / MANIFEST).read_bytes())

    def _blob(self, digest: str) -> Path:
        return self.root / _BLOBS / digest.removeprefix("sha256:")

    def _digest(self, name: str) -> str:
        return f"sha256:{name}"

    def _unknown(self, name: str) -> ImageNotFound:
        names = self._names()
        recipe = name in self._buildable
        guess = None if recipe else nearest(name, sorted({*names, *self._buildable}))
        hint = f"Build it: insula image build {name}" if recipe else ""
        if guess is not None:
            hint = f"Did you mean '{guess}'?"
        elif not recipe:
            hint = f"Images: {', '.join(names) or 'none'}."
            if self._buildable:
                hint += f" Recipes: {', '.join(sorted(self._buildable))}."
        return ImageNotFound(f"There is no image '{name}'.", hint=hint)

    def _drop_if_unused(self, digest: str, in_use: Collection[str]) -> bool:
        blob = self._blob(digest)
        named = any((self.root / name).resolve() == blob.resolve() for name in self._names())
        if named or digest in in_use or self._is_claimed(blob.name):
            return False
        # Out of sight in one step, so that a crash leaves a dead build for `sweep` and never half an image.
        grave = self.root / _BUILDS / secrets.token_hex(6)
        grave.parent.mkdir(exist_ok=True)
        blob.rename(grave)
        shutil.rmtree(grave)
        shutil.rmtree(self.root / _CLAIMS / blob.name, ignore_errors=True)
        return True

    def _is_claimed(self, name: str) -> bool:
        claims = self.root / _CLAIMS / name
        return claims.is_dir() and any(Path(claim.read_text()).is_dir() for claim in claims.iterdir())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
