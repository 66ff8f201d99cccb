"""Volumes in a real guest: attached, written, grown, read only, full, and a daemon that dies meanwhile."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.boots import ROOT, RealShell, has_image, real_home

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(not has_image("micro"), reason="the image micro is not built (./scripts/test does)"),
]

# Finds the disk of a serial number: virtio-blk shows it in sysfs, scsi disks in their page 0x80.
FIND = """
find_disk() { for d in /sys/block/[vs]d*; do
    s=$(cat "$d/serial" 2>/dev/null || tr -d '\\000-\\037' <"$d/device/vpd_pg80" 2>/dev/null)
    case "$s" in *"$1") echo "${d##*/}"; return 0 ;; esac
done; return 1; }
disk=$(find_disk %s) || { echo "no such disk" >&2; exit 99; }
"""


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealShell]:
    """A home with a machine 'warm', booted once, and 'other', which never runs unless a test starts it."""
    home = tmp_path_factory.mktemp("boot") / "home"
    with real_home(home, ROOT / "test-artifacts" / "volumes") as shell:
        shell("run", "-d", "--name", "warm", "--memory", "192MiB", "micro")
        shell("exec", "warm", "--", "true")
        yield shell


def make(insula: RealShell, name: str, size: str = "16MiB") -> str:
    """A new volume; its serial number."""
    insula("volume", "create", name, "--size", size)
    return str(insula.data("volume", "info", name)["serial"])


def guest(insula: RealShell, serial: str, script: str, machine: str = "warm", status: int = 0) -> str:
    """Run a script in the guest with $disk being the disk of this serial number."""
    done = insula("exec", machine, "--", "sh", "-c", FIND % serial + script, status=status, timeout=60)
    return done.stdout.decode().strip()


def is_clean(info: Any) -> bool:
    disk = Path(info["directory"]) / "disk.qcow2"
    return subprocess.run(["qemu-img", "check", "-q", "-U", str(disk)], check=False).returncode == 0


@pytest.mark.parametrize("bus", ["virtio", "scsi"])
def test_what_is_written_survives_and_is_read_elsewhere(insula: RealShell, bus: str) -> None:
    name = f"data-{bus}"
    serial = make(insula, name)
    insula("volume", "attach", "--bus", bus, name, "warm")
    assert guest(insula, serial, "cat /sys/block/$disk/size") == str(16 * 2048)
    guest(insula, serial, "echo kept | dd of=/dev/$disk bs=512 conv=fsync 2>/dev/null")

    refused = insula("volume", "rm", name, status=73).stderr.decode()
    assert "'warm'" in refused
    insula("run", "-d", "--name", f"two-{bus}", "--memory", "192MiB", "micro")
    for how in ((), ("--ro",)):
        told = insula("volume", "attach", *how, name, f"two-{bus}", status=73).stderr.decode()
        assert f"Cannot attach volume '{name}': it is attached to machine 'warm'." in told

    insula("volume", "resize", name, "32MiB")
    assert guest(insula, serial, "cat /sys/block/$disk/size") == str(32 * 2048)
    shrunk = insula("volume", "resize", name, "16MiB", status=64).stderr.decode()
    assert "cannot shrink" in shrunk

    insula("volume", "detach", name, "warm")
    insula("exec", "warm", "--", "sh", "-c", f"! grep -q {serial} /sys/block/*/serial 2>/dev/null")
    insula("volume", "attach", "--ro", "--bus", bus, name, f"two-{bus}")
    insula("volume", "attach", "--ro", "--bus", bus, name, "warm")
    for machine in ("warm", f"two-{bus}"):
        assert guest(insula, serial, "head -c 4 /dev/$disk", machine) == "kept"
    guest(insula, serial, "echo no | dd of=/dev/$disk conv=fsync 2>/dev/null && exit 1 || exit 0")
    insula("volume", "detach", name, "warm")
    insula("rm", "-f", f"two-{bus}")
    info = insula.data("volume", "info", name)
    assert info["attached_to"] == []
    assert info["size_bytes"] == 32 * 2**20
    assert is_clean(info)
    insula("volume", "clone", name, f"{name}-copy")
    copy = insula.data("volume", "info", f"{name}-copy")
    assert is_clean(copy)
    insula("volume", "attach", f"{name}-copy", "warm")
    assert guest(insula, copy["serial"], "head -c 4 /dev/$disk") == "kept"
    insula("volume", "detach", f"{name}-copy", "warm")
    insula("volume", "rm", name, f"{name}-copy")
    assert not Path(info["directory"]).exists()


def test_a_machine_can_be_saved_after_its_last_scsi_volume(insula: RealShell) -> None:
    """The controller went with the volume: otherwise what is saved would fit no other launch."""
    make(insula, "passing")
    insula("run", "-d", "--name", "host", "--memory", "192MiB", "micro")
    cards = "ls /sys/bus/pci/devices | wc -l"
    before = insula.text("exec", "host", "--", "sh", "-c", cards)
    for _ in range(2):
        insula("volume", "attach", "--bus", "scsi", "passing", "host")
        assert insula.text("exec", "host", "--", "sh", "-c", cards) != before
        insula("volume", "detach", "passing", "host")
        assert insula.text("exec", "host", "--", "sh", "-c", cards) == before
    insula("fork", "--name", "guest", "host")
    insula("suspend", "host")
    insula("start", "host")
    insula("exec", "host", "--", "true")
    insula("rm", "-f", "host", "guest")
    insula("volume", "rm", "passing")


def test_what_the_guest_discards_is_given_back(insula: RealShell) -> None:
    serial = make(insula, "trimmed")
    insula("volume", "attach", "trimmed", "warm")
    guest(insula, serial, "dd if=/dev/urandom of=/dev/$disk bs=1M count=8 conv=fsync 2>/dev/null")
    full = insula.data("volume", "info", "trimmed")["allocated_bytes"]
    guest(insula, serial, "blkdiscard /dev/$disk && sync")
    assert insula.data("volume", "info", "trimmed")["allocated_bytes"] < full - 7 * 2**20
    insula("volume", "detach", "trimmed", "warm")
    insula("volume", "rm", "trimmed")


def test_a_daemon_that_dies_while_it_attaches_is_followed_by_one_that_finishes(insula: RealShell) -> None:
    serial = make(insula, "sudden")
    with insula.popen("volume", "attach", "sudden", "warm", stderr=subprocess.DEVNULL) as asking:
        deadline = time.monotonic() + 10
        while not insula.data("volume", "info", "sudden")["attached_to"] and time.monotonic() < deadline:
            pass
        insula.kill_daemon()
        asking.wait(30)
    assert insula.data("volume", "info", "sudden")["attached_to"] == [{"machine": "warm", "read_only": False}]
    assert guest(insula, serial, "cat /sys/block/$disk/size") == str(16 * 2048)
    insula("volume", "detach", "sudden", "warm")
    insula("volume", "rm", "sudden")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_pauses_the_machine_and_nothing_is_lost(insula: RealShell, tmp_path: Path) -> None:
    serial = make(insula, "fills", "64MiB")
    directory = Path(insula.data("volume", "info", "fills")["directory"])
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", str(small)], check=True)
    try:
        (directory / "disk.qcow2").rename(directory / "moved")
        (small / "disk.qcow2").write_bytes((directory / "moved").read_bytes())
        (directory / "disk.qcow2").symlink_to(small / "disk.qcow2")
        insula("volume", "attach", "fills", "warm")
        script = (
            "dd if=/dev/urandom of=/tmp/data bs=1M count=24 2>/dev/null; sha256sum </tmp/data;"
            "dd if=/tmp/data of=/dev/$disk bs=1M conv=fsync 2>/dev/null || echo failed;"
            "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/$disk bs=1M count=24 2>/dev/null | sha256sum"
        )
        with insula.popen(
            "exec", "warm", "--", "sh", "-c", FIND % serial + script, stdout=subprocess.PIPE
        ) as writing:
            insula("wait", "warm", "--phase", "paused", "--timeout", "60s")
            assert insula.info("warm")["reason"] == "The host's storage under volume 'fills' is full."
            subprocess.run(["mount", "-o", "remount,size=64M", str(small)], check=True)
            insula("resume", "warm")
            said = writing.communicate(timeout=60)[0].decode().split("\n")
        assert said[0]
        assert said[0] == said[1]
        insula("volume", "detach", "fills", "warm")
        assert is_clean(insula.data("volume", "info", "fills"))
        insula("volume", "rm", "fills")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_machine_is_made_with_volumes(insula: RealShell) -> None:
    serial = make(insula, "given")
    insula("run", "-d", "--name", "three", "--memory", "192MiB", "--volume", "given:ro:scsi", "micro")
    assert guest(insula, serial, "cat /sys/block/$disk/ro", "three") == "1"
    insula("rm", "-f", "three")
    assert insula.data("volume", "info", "given")["attached_to"] == []
    insula("volume", "rm", "given")
