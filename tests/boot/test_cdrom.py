"""CD drives in a real guest: mounted, locked, ejected by either side, forked, plugged, booted from."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pycdlib
import pytest

from tests.support.boots import ROOT, RealShell, has_image, real_home

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(not has_image("micro"), reason="the image micro is not built (./scripts/test does)"),
]

BODY = {name: bytes(range(256)) * 4096 + name.encode() for name in ("tools", "other")}
SUMS = {name: hashlib.sha256(body).hexdigest() for name, body in BODY.items()}
MOUNT = (
    "until [ -b /dev/sr0 ]; do usleep 50000; done; mkdir -p /cd && mount -t iso9660 -o ro /dev/sr0 /cd && "
)
READ = "echo 3 >/proc/sys/vm/drop_caches; sha256sum </cd/body.bin | cut -c1-64"
GREETING = "INSULA BOOTED FROM CD"


def eject_program() -> bytes:
    """open("/dev/sr0", O_RDONLY | O_NONBLOCK), ioctl(CDROMEJECT), exit(-result): micro has no eject(1)."""
    code = bytes.fromhex(
        "488d3d2b000000be00080000"  # lea rdi, [path]; mov esi, O_NONBLOCK
        "b8020000000f05"  # open
        "89c7be0953000031d2"  # mov edi, eax; mov esi, CDROMEJECT; xor edx, edx
        "b8100000000f05"  # ioctl
        "89c7f7df"  # mov edi, eax; neg edi
        "b83c0000000f05"  # exit
        "90909090"
    )
    assert len(code) == 0x2B + 7
    start, program = 0x400000, code + b"/dev/sr0\0"
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, start + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = 120 + len(program)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 4096) + program


def write_iso(path: Path, name: str) -> None:
    iso = pycdlib.PyCdlib()
    iso.new(joliet=3, rock_ridge="1.09", vol_ident=name.upper())
    iso.add_fp(
        io.BytesIO(BODY[name]), len(BODY[name]), "/BODY.BIN;1", rr_name="body.bin", joliet_path="/body.bin"
    )
    iso.write(str(path))
    iso.close()


def write_bootable(path: Path) -> None:
    """A CD that prints GREETING on the first serial port (0x3f8), and stands still."""
    letters = b"".join(b"\xba\xf8\x03\xb0" + bytes([letter]) + b"\xee" for letter in f"{GREETING}\n".encode())
    program = (letters + b"\xf4\xeb\xfd").ljust(2048, b"\0")
    iso = pycdlib.PyCdlib()
    iso.new(vol_ident="BOOT")
    iso.add_fp(io.BytesIO(program), len(program), "/BOOT.;1")
    iso.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1")
    iso.write(str(path))
    iso.close()


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealShell]:
    """A home with the media 'cd-tools', 'cd-other', 'cd-boot', and a machine 'warm' with an empty drive."""
    directory = tmp_path_factory.mktemp("boot")
    with real_home(directory / "home", ROOT / "test-artifacts" / "cdrom") as shell:
        write_iso(directory / "tools.iso", "tools")
        write_iso(directory / "other.iso", "other")
        write_bootable(directory / "boot.iso")
        try:
            for name in ("tools", "other", "boot"):
                file = directory / f"{name}.iso"
                shell("image", "import", "--replace", "--name", f"cd-{name}", str(file))
            shell("run", "-d", "--name", "warm", "--memory", "192MiB", "--cdrom", "none", "micro")
            shell("exec", "warm", "--", "true")
            yield shell
        finally:
            for machine in shell.data("ls", "--all"):
                shell("rm", "-f", machine["name"])
            shell("template", "prune")
            for name in ("tools", "other", "boot"):
                shell("image", "rm", f"cd-{name}", status=None)


def guest(insula: RealShell, script: str, machine: str = "warm", status: int = 0) -> str:
    done = insula("exec", machine, "--", "sh", "-c", script, status=status, timeout=60)
    return done.stdout.decode().strip()


def in_drive(insula: RealShell, machine: str = "warm") -> str | None:
    image: str | None = insula.data("cdrom", "info", machine)["image"]
    return image


def test_an_iso_is_kept_as_it_is(insula: RealShell) -> None:
    stored = insula.data("image", "info", "cd-tools")
    assert stored["summary"] == "imported from iso"
    assert stored["disk"]["format"] == "raw"
    refused = insula("cdrom", "insert", "warm", "/tmp/x.iso", status=64).stderr.decode()
    assert "insula image import /tmp/x.iso --name x" in refused


def test_media_are_mounted_locked_and_ejected(insula: RealShell) -> None:
    insula("cdrom", "insert", "warm", "cd-tools")
    assert guest(insula, MOUNT + READ) == SUMS["tools"]
    for words in (("eject", "warm"), ("insert", "warm", "cd-other")):
        refused = insula("cdrom", *words, status=73).stderr.decode()
        assert "has locked the medium" in refused
        assert "insula cdrom eject --force warm" in refused
        assert in_drive(insula) == "cd-tools"
    assert guest(insula, READ) == SUMS["tools"]
    guest(insula, "umount /cd")
    insula("cdrom", "insert", "warm", "cd-other")
    assert guest(insula, MOUNT + READ) == SUMS["other"]
    guest(insula, "umount /cd")
    insula("cdrom", "eject", "warm")
    insula("cdrom", "eject", "warm")
    assert in_drive(insula) is None
    guest(insula, MOUNT + "true", status=255)
    insula("cdrom", "insert", "warm", "cd-tools")
    assert guest(insula, MOUNT + READ) == SUMS["tools"]
    insula("cdrom", "eject", "--force", "warm")
    assert in_drive(insula) is None
    guest(insula, "umount -l /cd")


def test_a_guest_ejects_and_its_document_follows(insula: RealShell) -> None:
    insula("cdrom", "insert", "warm", "cd-tools")
    copy = ("exec", "-i", "warm", "--", "sh", "-c", "cat >/tmp/eject && chmod +x /tmp/eject")
    insula(*copy, input=eject_program())
    guest(insula, "/tmp/eject")
    deadline = time.monotonic() + 10
    while in_drive(insula) is not None and time.monotonic() < deadline:
        pass
    assert in_drive(insula) is None
    assert re.search(r"cdrom.ejected +warm +image=cd-tools by_guest=True", insula.text("events"))
    insula("cdrom", "insert", "warm", "cd-tools")
    assert guest(insula, MOUNT + READ + "; umount /cd") == SUMS["tools"]
    insula.kill_daemon()
    assert in_drive(insula) == "cd-tools"


def test_a_fork_goes_on_reading_what_its_parent_has_mounted(insula: RealShell) -> None:
    insula("cdrom", "insert", "warm", "cd-tools")
    guest(insula, MOUNT + "true")
    insula("fork", "--name", "sibling", "warm")
    assert in_drive(insula, "sibling") == "cd-tools"
    for machine in ("sibling", "warm"):
        assert guest(insula, READ, machine) == SUMS["tools"]
    refused = insula("cdrom", "eject", "sibling", status=73).stderr.decode()
    assert "has locked the medium" in refused
    guest(insula, "umount /cd", "sibling")
    insula("cdrom", "insert", "sibling", "cd-other")
    assert guest(insula, MOUNT + READ, "sibling") == SUMS["other"]
    assert guest(insula, READ + "; umount /cd") == SUMS["tools"]
    insula("rm", "-f", "sibling")
    insula("cdrom", "eject", "warm")


def test_a_drive_is_plugged_and_its_machine_forked(insula: RealShell) -> None:
    insula("run", "-d", "--name", "plain", "--memory", "192MiB", "micro")
    refused = insula("cdrom", "insert", "--bus", "ata", "plain", "cd-tools", status=64).stderr.decode()
    assert "only while it is off" in refused
    insula("cdrom", "insert", "plain", "cd-tools")
    guest(insula, MOUNT + "true", "plain")
    insula("image", "rm", "cd-tools")
    insula("image", "prune")
    insula("fork", "--name", "sibling", "plain")
    assert guest(insula, READ, "sibling") == SUMS["tools"]
    insula("rm", "-f", "plain")
    assert guest(insula, READ, "sibling") == SUMS["tools"]
    insula("restart", "sibling")
    assert guest(insula, MOUNT + READ, "sibling") == SUMS["tools"]
    insula("rm", "-f", "sibling")


@pytest.mark.parametrize("bus", ["ata", "scsi"])
def test_a_machine_boots_from_its_cd(insula: RealShell, bus: str) -> None:
    name = f"cd-{bus}"
    insula(
        *("run", "-d", "--name", name, "--memory", "128MiB", "--agent", "none"),
        *("--boot", "cdrom", "--cdrom", f"cd-boot:{bus}", "micro"),
    )
    deadline = time.monotonic() + 30
    while GREETING not in insula.text("logs", name) and time.monotonic() < deadline:
        pass
    assert GREETING in insula.text("logs", name)
    insula("rm", "-f", name)
