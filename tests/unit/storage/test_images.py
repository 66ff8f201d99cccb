"""The image store: one name, one image at any moment; nothing goes that somebody uses."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from insula.model.image import Image, Kernel
from insula.storage.errors import ImageNotFound
from insula.storage.images import ImageStore

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def image(digest: str, name: str = "micro") -> Image:
    return Image(
        name=name,
        digest=digest,
        os="test",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        size_bytes=1,
        kernel=Kernel(file="vmlinuz"),
        boots=("direct",),
        agents=(),
    )


def put(store: ImageStore, digest: str, name: str = "micro") -> Path:
    with store.new_build() as work:
        (work / "image" / "vmlinuz").write_text(digest)
        store.publish(image(digest, name), work / "image")
    return store.directory(name)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", buildable=("micro", "debian-12"))


def test_an_empty_store_has_nothing_and_makes_nothing(store: ImageStore) -> None:
    assert store.list() == []
    assert store.prune() == ()
    assert asyncio.run(store.sweep()) == ()
    assert not store.root.exists()


def test_a_published_image_is_listed_and_its_files_cannot_be_written(store: ImageStore) -> None:
    directory = put(store, A)
    assert [one.digest for one in store.list()] == [A]
    assert store.get("micro") == image(A)
    assert directory == store.blob(A)
    assert (directory / "vmlinuz").stat().st_mode & 0o777 == 0o444
    assert [path.name for path in (store.root / "builds").iterdir()] == []


def test_a_rebuilt_image_keeps_the_old_files(store: ImageStore) -> None:
    old = put(store, A)
    new = put(store, B)
    assert store.get("micro").digest == B
    assert (old / "vmlinuz").read_text() == A
    assert (new / "vmlinuz").read_text() == B


def test_the_same_image_again_changes_nothing(store: ImageStore) -> None:
    before = (put(store, A) / "vmlinuz").stat().st_ino
    assert (put(store, A) / "vmlinuz").stat().st_ino == before


def test_there_is_always_one_image_while_it_is_replaced(store: ImageStore) -> None:
    put(store, A)
    stop = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        while not stop.is_set():
            seen.add((store.directory("micro") / "vmlinuz").read_text())

    looker = threading.Thread(target=look)
    looker.start()
    for digest in (B, A) * 10:
        put(store, digest)
    stop.set()
    looker.join()
    assert seen <= {A, B}


def test_prune_keeps_what_is_named_claimed_or_in_use(store: ImageStore, tmp_path: Path) -> None:
    put(store, A)
    put(store, B)
    machine = tmp_path / "machines" / "uid1"
    machine.mkdir(parents=True)
    store.claim(A, machine)
    store.claim(A, machine)
    assert store.prune() == ()
    machine.rmdir()
    assert store.prune(in_use=[A]) == ()
    assert store.prune() == (A,)
    assert store.prune() == ()
    assert store.get("micro").digest == B
    with pytest.raises(ImageNotFound):
        store.blob(A)


def test_a_holder_holds_what_it_says_and_nothing_else(store: ImageStore, tmp_path: Path) -> None:
    put(store, A)
    put(store, B)
    machine, namesake = (tmp_path / home / "machines" / "uid1" for home in ("home", "other-home"))
    for directory in (machine, namesake):
        directory.mkdir(parents=True)
    for _ in range(2):
        store.hold([A, B], machine)
    assert store.prune() == ()
    with pytest.raises(ImageNotFound):
        store.hold(["sha256:" + "e" * 64], machine)
    assert store.prune() == ()
    store.hold([B], machine)
    assert store.prune() == (A,)
    put(store, A)
    put(store, B)
    store.claim(A, namesake)
    store.hold([B], machine)  # the claim on A is another home's
    assert store.prune() == ()


def test_another_home_s_claim_counts(store: ImageStore, tmp_path: Path) -> None:
    put(store, A)
    machine = tmp_path / "other-home" / "machines" / "uid2"
    machine.mkdir(parents=True)
    ImageStore(store.root).claim(A, machine)
    assert store.remove("micro") is False
    assert store.list() == []
    assert store.blob(A).is_dir()


def test_removing_an_image_takes_its_files(store: ImageStore) -> None:
    put(store, A)
    assert store.remove("micro") is True
    assert store.list() == []
    assert list((store.root / "blobs").iterdir()) == []
    with pytest.raises(ImageNotFound):
        store.remove("micro")


def test_removing_one_of_two_names_keeps_the_files(store: ImageStore) -> None:
    put(store, A)
    (store.root / "second").symlink_to(f"blobs/{A.removeprefix('sha256:')}")
    assert store.remove("micro") is False


def test_an_image_that_is_gone_cannot_be_claimed(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        store.claim(A, tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("micro", "Build it: insula image build micro"),
        ("micrp", "Did you mean 'micro'?"),
        ("zzz", "Images: none. Recipes: debian-12, micro."),
    ],
)
def test_an_unknown_image_is_told_with_what_to_do(store: ImageStore, name: str, hint: str) -> None:
    with pytest.raises(ImageNotFound) as caught:
        store.get(name)
    assert (caught.value.message, caught.value.hint) == (f"There is no image '{name}'.", hint)


@pytest.mark.parametrize("name", ["..", "blobs", ".lock", "builds", "blobs/x"])
def test_no_name_leads_out_of_the_names(store: ImageStore, name: str) -> None:
    put(store, A)
    with pytest.raises(ImageNotFound):
        store.get(name)


def test_a_failed_build_leaves_nothing(store: ImageStore) -> None:
    def fail() -> None:
        with store.new_build() as work:
            (work / "image" / "vmlinuz").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list((store.root / "builds").iterdir()) == []
    assert store.list() == []


DIES_AS_IT_BUILDS = """
import os, pathlib, signal, sys
from insula.storage.images import ImageStore

with ImageStore(pathlib.Path(sys.argv[1])).new_build():
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_build_is_swept_and_a_living_one_is_not(store: ImageStore) -> None:
    put(store, A)
    # Not fork(2): by now this process may have threads, of which Python 3.12 and later warn.
    died = subprocess.run([sys.executable, "-c", DIES_AS_IT_BUILDS, str(store.root)], check=False)
    assert died.returncode == -signal.SIGKILL
    with store.new_build() as living:
        swept = asyncio.run(store.sweep())
        assert len(swept) == 1
        assert not swept[0].exists()
        assert living.is_dir()
        assert asyncio.run(store.sweep()) == ()
    assert store.get("micro").digest == A


def test_scratch_elsewhere_is_swept_with_its_build(store: ImageStore, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "deep").mkdir(parents=True)
    dead = store.root / "builds" / "dead"
    dead.mkdir(parents=True)
    (dead / "scratch").symlink_to(scratch)
    assert asyncio.run(store.sweep()) == (dead,)
    assert not scratch.exists()
