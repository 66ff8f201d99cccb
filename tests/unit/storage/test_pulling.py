"""Pulling: checksums, resume, mirrors, and servers that mean harm; everything on loopback."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import lzma
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest

from insula.model.operation import Progress
from insula.storage import download, pulling, unpacking
from insula.storage.catalogue import (
    SHIPPED,
    CatalogueEntry,
    find_entry,
    list_catalogue,
    load_catalogue,
)
from insula.storage.checksums import checksum, find_checksum
from insula.storage.download import Download, Stopped
from insula.storage.errors import (
    BadCatalogue,
    ChecksumMismatch,
    ConversionFailed,
    DiskFull,
    DownloadFailed,
    ImageDamaged,
    ImageRefused,
    NotInCatalogue,
)
from insula.storage.images import KEEP_DOWNLOADS, ImageStore
from insula.storage.pulling import pull
from insula.storage.unpacking import unpack
from tests.support.hostile import MIB, qcow2
from tests.support.mirror import Mirror

DISK = bytes(510) + b"\x55\xaa" + os.urandom(3 * MIB) + bytes(2 * MIB - 512)
A, B = "a" * 64, "b" * 128
needs_tool = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setattr(download, "_opener", build_opener(ProxyHandler({}), download._Redirects))
    monkeypatch.setattr(download, "ROUNDS", 1)
    with Mirror({"/disk.raw": DISK}) as mirror:
        mirror.files["/SHA256SUMS"] = f"{hashlib.sha256(DISK).hexdigest()} *disk.raw\n".encode()
        yield mirror


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def entry(mirror: Mirror, **fields: Any) -> CatalogueEntry:
    return CatalogueEntry.model_validate(
        {
            "name": "test",
            "version": "1",
            "os": "Test 1",
            "format": "raw",
            "url": mirror.url("/disk.raw"),
            "checksum_url": mirror.url("/SHA256SUMS"),
            **fields,
        }
    )


def fetch(mirror: Mirror, directory: Path, *paths: str, **fields: Any) -> Download:
    directory.mkdir(exist_ok=True)
    urls = [mirror.url(path) for path in paths or ("/disk.raw",)]
    expected = checksum(hashlib.sha512(DISK).hexdigest())
    return Download(directory, urls, fields.pop("expected", expected), None, lambda *_: None, **fields)


def parts(store: ImageStore) -> list[Path]:
    return sorted((store.root / "downloads").iterdir())


@needs_tool
async def test_pull(mirror: Mirror, store: ImageStore) -> None:
    seen: list[Progress] = []
    image = await pull(entry(mirror, default_user="tester"), "mine", store, seen.append)
    assert store.get("mine") == image
    assert (store.directory("mine") / "disk.raw").read_bytes() == DISK
    assert (image.os, image.default_user, image.cloud_init) == ("Test 1", "tester", True)
    assert image.origin == mirror.url("/disk.raw")
    assert any("Downloading test from 127.0.0.1" in progress.message for progress in seen)
    assert seen[-1].message == "Writing it down"
    assert parts(store) == []
    # Once more is the same image, and nothing but that.
    assert (await pull(entry(mirror), "mine", store, seen.append)).digest != image.digest
    assert [image.name for image in store.list()] == ["mine"]


def test_a_broken_download_goes_on_where_it_was(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut["/disk.raw"] = 2 * MIB
    with pytest.raises(DownloadFailed) as failed:
        fetch(mirror, tmp_path / "d").run()
    assert "2MiB of" in failed.value.evidence["attempts"][0]
    assert fetch(mirror, tmp_path / "d").run().read_bytes() == DISK
    assert [wanted for _, wanted in mirror.seen] == ["", f"bytes={2 * MIB}-"]


def test_what_is_complete_already_is_not_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    fetch(mirror, tmp_path / "d").run()
    assert fetch(mirror, tmp_path / "d").run().read_bytes() == DISK
    assert mirror.seen[-1] == ("/disk.raw", f"bytes={len(DISK)}-")


def test_a_file_that_changed_at_the_server_begins_anew(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/disk.raw"] = b"x" * len(DISK)
    mirror.cut["/disk.raw"] = MIB
    with pytest.raises(DownloadFailed):
        fetch(mirror, tmp_path / "d").run()
    mirror.files["/disk.raw"] = DISK
    assert fetch(mirror, tmp_path / "d").run().read_bytes() == DISK
    assert len(mirror.seen) == 2


def test_a_server_without_ranges_gives_all_of_it(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut["/disk.raw"] = MIB
    with pytest.raises(DownloadFailed):
        fetch(mirror, tmp_path / "d").run()
    mirror.no_ranges.add("/disk.raw")
    assert fetch(mirror, tmp_path / "d").run().read_bytes() == DISK


def test_mirrors_are_tried_in_turn_and_share_a_part(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/other.raw"] = DISK
    mirror.cut["/disk.raw"] = 3 * MIB
    assert fetch(mirror, tmp_path / "d", "/gone", "/disk.raw", "/other.raw").run().read_bytes() == DISK
    assert mirror.seen == [("/gone", ""), ("/disk.raw", ""), ("/other.raw", f"bytes={3 * MIB}-")]


def test_a_part_that_does_not_fit_is_fetched_once_more(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "data").write_bytes(b"of something else")
    assert fetch(mirror, tmp_path / "d").run().read_bytes() == DISK
    assert [wanted for _, wanted in mirror.seen] == ["bytes=17-", ""]


def test_a_wrong_checksum_keeps_nothing_and_the_next_mirror_is_asked(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/evil"] = DISK[:-1] + b"!"
    assert fetch(mirror, tmp_path / "d", "/evil", "/disk.raw").run().read_bytes() == DISK
    with pytest.raises(ChecksumMismatch) as wrong:
        fetch(mirror, tmp_path / "e", "/evil").run()
    assert mirror.url("/evil") in wrong.value.evidence["attempts"][0]
    assert not (tmp_path / "e" / "data").exists()


def test_a_server_that_never_ends_is_left(mirror: Mirror, tmp_path: Path) -> None:
    mirror.lengthless.add("/disk.raw")
    small = fetch(mirror, tmp_path / "d")
    small.size = MIB
    with pytest.raises(ImageRefused, match="more than 1MiB"):
        small.run()
    assert not small.data.exists()


def test_a_download_that_would_fill_the_host(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "free_bytes", lambda _: download.RESERVE + MIB)
    with pytest.raises(DiskFull):
        fetch(mirror, tmp_path / "d").run()


def test_redirects_never_lead_to_something_less(mirror: Mirror, tmp_path: Path) -> None:
    mirror.redirects["/moved"] = mirror.url("/disk.raw")
    assert fetch(mirror, tmp_path / "d", "/moved").run().read_bytes() == DISK
    mirror.redirects["/file"] = "file:///etc/passwd"
    with pytest.raises(DownloadFailed):
        fetch(mirror, tmp_path / "e", "/file").run()
    from http.client import HTTPMessage
    from io import BytesIO
    from urllib.request import Request

    with pytest.raises(HTTPError):
        download._Redirects().redirect_request(
            Request("https://a.invalid/x"), BytesIO(), 302, "Found", HTTPMessage(), "http://a.invalid/x"
        )


async def test_a_file_that_came_stays_when_its_conversion_is_ended(
    mirror: Mirror, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = hashlib.sha256(DISK).hexdigest()
    named: list[str] = []

    async def ended(path: Path, *_: object, **__: object) -> None:
        named.append(path.name)
        raise ConversionFailed("qemu-img was killed.")

    what = entry(mirror, checksum_url=None, sha256=sums)
    with monkeypatch.context() as patched:
        patched.setattr(pulling, "import_file", ended)
        with pytest.raises(ConversionFailed):
            await pull(what, "mine", store, lambda _: None)
    assert named == [f"{what.name}.image"]
    asked = len(mirror.seen)
    assert (await pull(what, "mine", store, lambda _: None)).name == "mine"
    assert mirror.seen[asked:] == [("/disk.raw", f"bytes={len(DISK)}-")]  # there is nothing more to come
    assert parts(store) == []


async def test_a_cancelled_pull_keeps_its_part(mirror: Mirror, store: ImageStore) -> None:
    mirror.hold, came = threading.Event(), asyncio.Event()
    sums = hashlib.sha256(DISK).hexdigest()
    pulling = asyncio.ensure_future(
        pull(entry(mirror, checksum_url=None, sha256=sums), "mine", store, lambda _: came.set())
    )
    await asyncio.wait_for(came.wait(), 10)
    pulling.cancel()
    mirror.hold.set()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    assert store.list() == []
    assert 0 < (parts(store)[0] / "data").stat().st_size < len(DISK)


async def test_parts_are_kept_a_day_and_pruned_at_once(store: ImageStore) -> None:
    for key in ("one", "two"):
        with store.download(key) as directory:
            (directory / "data").write_bytes(b"a part")
            with pytest.raises(DownloadFailed, match="Another daemon"), store.download(key):
                pass
    assert await store.sweep() == ()
    old = parts(store)[0]
    os.utime(old, (0, os.stat(old).st_mtime - KEEP_DOWNLOADS - 1))  # noqa: PTH116
    with store.download("two"):
        assert await store.sweep() == (old,)
        store.prune()
        assert [path.name for path in parts(store)] == ["two"], "somebody is at it"
    store.prune()
    assert parts(store) == []


def test_stop_ends_it_between_two_pieces(mirror: Mirror, tmp_path: Path) -> None:
    stop = threading.Event()
    work = fetch(mirror, tmp_path / "d", stop=stop)
    work.tell = lambda *_: stop.set()
    with pytest.raises(Stopped):
        work.run()
    assert 0 < work.data.stat().st_size < len(DISK)


@needs_tool
@pytest.mark.slow
@pytest.mark.parametrize(("compression", "pack"), [("xz", lzma.compress), ("gzip", gzip.compress)])
async def test_packed_images(mirror: Mirror, store: ImageStore, compression: str, pack: Any) -> None:
    packed = pack(DISK[: 2 * MIB]) + pack(DISK[2 * MIB :])  # several streams are one file
    mirror.files["/disk.packed"] = packed
    fields = {"compression": compression, "url": mirror.url("/disk.packed"), "checksum_url": None}
    wanted = entry(mirror, **fields, sha256=hashlib.sha256(packed).hexdigest().upper())
    await pull(wanted, "mine", store, lambda _: None)
    assert (store.directory("mine") / "disk.raw").read_bytes() == DISK


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["xz", "gzip"])
def test_bombs_and_broken_archives(tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = lzma.compress if compression == "xz" else gzip.compress
    packed, stop = tmp_path / "packed", threading.Event()

    def go(name: str) -> Path:
        unpack(packed, compression, tmp_path / name, "bomb", stop, lambda _: None)
        return tmp_path / name

    packed.write_bytes(pack(bytes(32 * MIB)))
    sparse = go("sparse")
    assert (sparse.stat().st_size, sparse.stat().st_blocks) == (32 * MIB, 0), "zeros take no room"
    monkeypatch.setattr(unpacking, "MOST_UNPACKED", 3 * MIB)
    with pytest.raises(ImageRefused, match="unpacks to more than 3MiB"):
        go("bomb")
    assert (tmp_path / "bomb").stat().st_size <= 3 * MIB
    packed.write_bytes(pack(DISK)[: 2 * MIB])
    with pytest.raises(ImageDamaged):
        go("short")
    packed.write_bytes(b"no archive at all")
    with pytest.raises(ImageDamaged):
        go("none")
    stop.set()
    packed.write_bytes(pack(DISK))
    with pytest.raises(Stopped):
        go("stopped")


async def test_a_hostile_image_from_a_trusted_server_is_refused_too(
    mirror: Mirror, store: ImageStore
) -> None:
    data = qcow2(backing=b"/etc/shadow")
    mirror.files["/evil"] = data
    evil = entry(mirror, url=mirror.url("/evil"), format="qcow2", sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(ImageRefused, match="/etc/shadow"):
        await pull(evil, "mine", store, lambda _: None)
    assert store.list() == []
    assert parts(store) == []


async def test_publishers_that_do_not_vouch(mirror: Mirror, store: ImageStore) -> None:
    mirror.files["/SHA256SUMS"] = f"{A}  another.raw\n".encode()
    with pytest.raises(ChecksumMismatch, match=r"do not say one thing of 'disk\.raw'"):
        await pull(entry(mirror), "mine", store, lambda _: None)
    with pytest.raises(DownloadFailed, match="checksums"):
        await pull(entry(mirror, checksum_url=mirror.url("/none")), "mine", store, lambda _: None)
    with pytest.raises(ImageRefused, match="riscv64"):
        await pull(entry(mirror, architecture="riscv64"), "mine", store, lambda _: None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{A}  disk.raw\n{'c' * 64}  other\n", A),
        (f"{A} *disk.raw", A),
        (f"{A}  ./images/disk.raw", A),
        (f"SHA256 (disk.raw) = {A.upper()}", A),
        (f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# x\nSHA512 (disk.raw) = {B}\n-----BEGIN", B),
        (f"SHA256 (disk.raw) = {A}\nSHA512 (disk.raw) = {B}\n", B),
        (f"{B}\n", B),
        (f"{A}  disk.raw.sig", None),
        (f"{A}  disk.raw\n{'c' * 64}  disk.raw", None),
        (f"{A}\n{A}\n", None),
        ("<html>404</html>", None),
        ("", None),
    ],
)
def test_every_style_of_checksums(text: str, found: str | None) -> None:
    said = find_checksum(text, "disk.raw")
    assert (said.digest if said else None) == found


def test_the_shipped_catalogue() -> None:
    """Official addresses and their publishers' own checksums; no digest of ours."""
    images = load_catalogue(SHIPPED).images
    names = " ".join(image.os for image in images)
    for system in ("Debian", "Ubuntu", "Fedora", "AlmaLinux", "Alpine", "Arch", "openSUSE", "FreeBSD"):
        assert system in names
    for image in images:
        assert image.url.startswith("https://")
        assert image.checksum_url is not None
        assert image.checksum_url.startswith("https://")
        assert image.url.split("/")[2] == image.checksum_url.split("/")[2], "one publisher"
        assert image.sha256 is image.sha512 is None
        assert image.default_user != "root"


def test_a_catalogue_of_ones_own_comes_first(mirror: Mirror, tmp_path: Path) -> None:
    own = entry(mirror, name="arch").model_dump(mode="json")
    (tmp_path / "lab.json").write_text(json.dumps({"version": 1, "images": [own]}))
    assert find_entry("arch", [tmp_path]).url == mirror.url("/disk.raw")
    assert find_entry("alma-9", [tmp_path]).os == "AlmaLinux 9"
    assert len(list_catalogue([tmp_path])) == len(list_catalogue())
    with pytest.raises(NotInCatalogue) as unknown:
        find_entry("archh", [tmp_path])
    assert "'arch'" in unknown.value.hint


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"url": "file:///etc/passwd"}, "images.0.url"),
        ({"url": "https://me:secret@a.invalid/x"}, "images.0.url"),
        ({"mirrors": ["ftp://a.invalid/x"]}, "images.0.mirrors"),
        ({"checksum_url": None}, "images.0"),
        ({"checksum_url": "http://a.invalid/SUMS"}, "images.0"),
        ({"sha256": "abc"}, "images.0.sha256"),
        ({"format": "floppy"}, "images.0.format"),
        ({"name": "../up"}, "images.0.name"),
        ({"default_user": "x; rm"}, "images.0.default_user"),
        ({"what": 1}, "images.0.what"),
    ],
)
def test_a_faulty_catalogue_is_told_by_field(
    mirror: Mirror, tmp_path: Path, change: dict[str, Any], path: str
) -> None:
    written = {**entry(mirror).model_dump(mode="json"), **change}
    (tmp_path / "lab.json").write_text(json.dumps({"version": 1, "images": [written]}))
    with pytest.raises(BadCatalogue) as bad:
        list_catalogue([tmp_path])
    assert path in [field["path"] for field in bad.value.fields]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"version": 2, "images": []}'])
def test_what_is_no_catalogue(tmp_path: Path, text: str) -> None:
    (tmp_path / "lab.json").write_text(text)
    with pytest.raises(BadCatalogue, match=r"lab\.json"):
        list_catalogue([tmp_path])
