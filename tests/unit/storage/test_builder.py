"""What surrounds a build: preconditions, mirrors, progress, a system's files. No network, no packages."""

from __future__ import annotations

import asyncio
import tarfile
from pathlib import Path

import pytest

from insula.model.image import Image, Kernel
from insula.model.operation import Progress
from insula.storage import builder, errors, packages
from insula.storage.disk_image import finishing_script, write_overlay
from insula.storage.errors import BuildToolsMissing, DiskFull
from insula.storage.images import ImageStore
from insula.storage.initramfs import KERNEL, merged
from insula.storage.recipe import DiskRecipe, InitramfsRecipe, find_recipe


def disk_recipe() -> DiskRecipe:
    recipe = find_recipe("debian-12")
    assert isinstance(recipe, DiskRecipe)
    return recipe


def test_everything_that_is_missing_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "missing_packages", lambda recipe: ["mmdebstrap", "gcc libc6-dev"])
    store = ImageStore(tmp_path / "images")
    with pytest.raises(BuildToolsMissing) as caught:
        builder.check_host(find_recipe("micro"), store)
    assert caught.value.hint == "Install them: sudo apt-get install mmdebstrap gcc libc6-dev"
    assert not store.root.exists()


def test_a_full_disk_is_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "missing_packages", lambda recipe: [])
    monkeypatch.setattr(errors, "free_bytes", lambda path: 2**20)
    with pytest.raises(DiskFull, match="building image 'debian-12': 4GiB needed, 1MiB free"):
        builder.check_host(find_recipe("debian-12"), ImageStore(tmp_path / "images"))
    assert list(tmp_path.iterdir()) == []


async def test_a_cancelled_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = asyncio.Event()

    async def slow(*_: object) -> Kernel:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(builder, "check_host", lambda *_: None)
    monkeypatch.setattr(builder, "build_initramfs", slow)
    recipe = find_recipe("micro").changed(agents=())
    task = asyncio.create_task(builder.build(recipe, ImageStore(tmp_path), lambda progress: None))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((tmp_path / "builds").iterdir()) == []


async def _build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, **fields: object) -> Image:
    async def quick(recipe: InitramfsRecipe, agent: object, work: Path, report: object) -> Kernel:
        (work / "image" / KERNEL).write_bytes(content)
        return Kernel(file=KERNEL, arguments=recipe.kernel_arguments)

    monkeypatch.setattr(builder, "check_host", lambda *_: None)
    monkeypatch.setattr(builder, "build_initramfs", quick)
    recipe = find_recipe("micro").changed(agents=(), **fields)
    seen: list[Progress] = []
    image = await builder.build(recipe, ImageStore(tmp_path), seen.append)
    assert seen[-1].fraction == 1.0
    return image


async def test_the_digest_says_what_a_machine_would_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await _build(tmp_path, monkeypatch, b"kernel")
    assert (await _build(tmp_path, monkeypatch, b"kernel")).digest == first.digest
    assert (await _build(tmp_path, monkeypatch, b"other")).digest != first.digest
    changed = await _build(tmp_path, monkeypatch, b"kernel", kernel_arguments="single")
    assert changed.digest != first.digest


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("./bin/busybox", "usr/bin/busybox"),
        ("./sbin/init", "usr/bin/init"),
        ("./usr/sbin/qemu-ga", "usr/bin/qemu-ga"),
        ("./lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
        ("./lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
        ("./etc/hosts", "etc/hosts"),
        ("./library/x", "library/x"),
    ],
)
def test_directories_are_merged(path: str, place: str) -> None:
    assert merged(path) == place


def test_a_system_gets_our_files_and_the_recipe_s_last(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(b"elf")
    target = tmp_path / "overlay.tar"
    write_overlay(target, disk_recipe(), agent, "1234", "root=UUID=1234 ro quiet")
    with tarfile.open(target) as tar:
        members = {member.name: member for member in tar}
        names = tar.getnames()
        fstab = tar.extractfile("etc/fstab")
        assert fstab is not None
        assert fstab.read() == b"UUID=1234 / ext4 errors=remount-ro 0 1\n"
    assert members["usr/sbin/insula-agent"].mode == 0o755
    assert names.index("usr/sbin/insula-agent") < names.index("etc/cloud/cloud.cfg.d/90-insula.cfg")
    assert all(member.uid == 0 and member.mtime == 0 for member in members.values())


def test_no_machine_shares_secrets_or_identity_with_another() -> None:
    script = finishing_script(disk_recipe())
    assert "rm -f /etc/ssh/ssh_host_*" in script
    assert ": >/etc/machine-id" in script
    assert "systemctl mask apt-daily.timer" in script


def test_progress_counts_what_apt_announced() -> None:
    seen: list[Progress] = []
    count = packages._Counter(seen.append)
    for line in (
        "I: downloading packages with apt...",
        "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.",
        "Get:1 archive",
        "Unpacking a ...",
        "noise",
        "Setting up a ...",
    ):
        count.see(line)
    assert [(one.message, one.fraction) for one in seen[-2:]] == [
        ("Downloading packages", 2 / 6),
        ("Downloading packages", 3 / 6),
    ]


def _host(root: Path, codename: str, identity: str = "debian") -> None:
    (root / "etc/apt/sources.list.d").mkdir(parents=True)
    (root / "etc/os-release").write_text(f'ID={identity}\nVERSION_CODENAME="{codename}"\n')


def test_a_debian_host_s_own_mirror_is_used_for_every_release(tmp_path: Path) -> None:
    _host(tmp_path, "trixie")
    (tmp_path / "etc/apt/sources.list.d/debian.sources").write_text(
        "Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\n"
        "Components: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n\n"
        "# a comment\nTypes: deb\nURIs: http://mirror.example/debian-security/\nSuites: trixie-security\n"
        "Components: main\n"
    )
    (tmp_path / "etc/apt/sources.list").write_text(
        "deb http://vendor.example/debian trixie stable\n"
        "deb [arch=amd64] http://vendor.example/prod trixie main\n"
        "# deb http://old.example/debian trixie main\n"
    )
    assert packages.host_mirrors("bookworm", tmp_path) == (
        "deb [signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm main",
        "deb [signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm-updates main",
        "deb http://mirror.example/debian-security/ bookworm-security main",
    )


def test_elsewhere_mmdebstrap_chooses(tmp_path: Path) -> None:
    _host(tmp_path, "noble", "ubuntu")
    (tmp_path / "etc/apt/sources.list").write_text("deb http://archive.example/debian noble main\n")
    assert packages.host_mirrors("bookworm", tmp_path) == ()
    assert packages.host_mirrors("bookworm", tmp_path / "nowhere") == ()
