"""debian-12: a real disk, systemd, cloud-init, SSH; booted directly and by its own boot loader.

A boot takes a minute and more where the processor is emulated, so there are few: one machine for everything
that a direct boot shows, one that shows the boot loader, and that one once more, by UEFI.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from insula.engine.agent import insula as insula_agent
from insula.engine.agent import qga
from insula.engine.agent.protocol import ExecSession, GuestFrozen, Renewal, StreamName, capture
from insula.engine.firmware import find_uefi
from insula.kit.paths import QGA_SOCKET, SNAPSHOT_DOCUMENT
from tests.support.boots import ROOT, RealShell, free_port, has_image, real_home

Waiting = asyncio.Future[tuple[StreamName, bytes]]
SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
BOOT = "5m"  # for a boot of systemd on an emulated, busy processor

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_image("debian-12"), reason="debian-12 is not built (./scripts/test does)"),
]


@pytest.fixture(scope="module")
def insula(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealShell]:
    """A home where both machines boot side by side; on two processors that costs the time of one."""
    home = tmp_path_factory.mktemp("debian") / "home"
    with real_home(home, ROOT / "test-artifacts" / "debian-12") as shell:
        key = home.parent / "id"
        if shutil.which("ssh-keygen"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        else:
            key.with_suffix(".pub").write_text(f"ssh-ed25519 {'A' * 68} nobody\n")
        shell(
            *("run", "-d", "--name", "deb", "--hostname", "shop", "-p", f"{free_port()}:22"),
            *("--ssh-key", str(key.with_suffix(".pub")), "--disk-size", "6GiB", "debian-12"),
        )
        shell("run", "-d", "--cold", "--name", "loader", "--boot", "disk", "debian-12")
        yield shell


def key_of(insula: RealShell) -> Path:
    return insula.home.parent / "id"


def test_cloud_init_did_what_the_seed_says(insula: RealShell) -> None:
    wait = "cloud-init status --wait >/dev/null; cat /run/cloud-init/result.json"
    done = insula("exec", "--agent-timeout", BOOT, "deb", "--", "sh", "-c", wait, timeout=600)
    assert b'"errors": []' in done.stdout
    assert insula.text("exec", "deb", "--", "hostname") == "shop\n"
    keys = insula.text("exec", "deb", "--", "cat", "/home/debian/.ssh/authorized_keys")
    assert key_of(insula).with_suffix(".pub").read_text().split()[1] in keys


def test_it_is_a_real_system(insula: RealShell) -> None:
    insula("exec", "--agent-timeout", BOOT, "deb", "--", "true", timeout=400)
    assert insula.text("exec", "deb", "--", "cat", "/proc/1/comm") == "systemd\n"
    size = int(insula.text("exec", "deb", "--", "df", "--output=size", "-B1", "/").split()[-1])
    assert size > 5 * 2**30, "the file system did not grow with the machine's disk"
    assert insula.info("deb")["addresses"]


@pytest.mark.skipif(not shutil.which("ssh"), reason="no ssh client")
def test_ssh_with_the_key(insula: RealShell) -> None:
    port = str(insula.info("deb")["publish"][0]["host_port"])
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
    done = subprocess.run(
        ["ssh", *options, "-i", str(key_of(insula)), "-p", port, "debian@127.0.0.1", "sudo id -u"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == b"0\n", done.stderr


def test_it_is_forked_while_it_writes_and_each_goes_its_own_way(insula: RealShell) -> None:
    """One moment of memory and disk: what was said to be on the disk is there in each sibling."""
    # More than any cache under the guest holds: the machine reads what it wrote before it was forked, too.
    keep = "head -c 64M /dev/urandom >/root/kept; sync; md5sum </root/kept"
    kept = insula.text("exec", "deb", "--", "sh", "-c", keep, timeout=120).split()[0]
    write = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i >>/root/log; sync -d /root/log; done"
    insula("exec", "deb", "--", "sh", "-c", f"({write}) >/dev/null 2>&1 &")
    insula("fork", "deb", "--count", "2", "--name", "sib{n}", timeout=300)
    names = ("deb", "sib1", "sib2")
    show = "hostname; cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub"
    who = [insula.text("exec", name, "--", "sh", "-c", show).split() for name in names]
    assert [words[0] for words in who] == ["shop", "sib1", "sib2"]
    assert len({words[1] for words in who}) == 3
    assert len({words[2] for words in who}) == 3
    check = "sync; echo 3 >/proc/sys/vm/drop_caches; awk '$1 != NR' /root/log | wc -l; "
    check += "dmesg | grep -c 'EXT4-fs error'; md5sum </root/kept | cut -d' ' -f1"
    for name in names:
        said = insula("exec", name, "--", "sh", "-c", check, status=None, timeout=120).stdout.decode().split()
        assert said == ["0", "0", kept], f"{name}: {said}"
    insula("rm", "-f", "sib1", "sib2")


def in_guest(insula: RealShell, name: str, script: str) -> str:
    argv = ("exec", "--agent-timeout", BOOT, name, "--", "sh", "-c", script)
    return insula.text(*argv, timeout=400).strip()


def test_a_snapshot_with_memory_brings_back_what_was_on_its_disk_and_in_its_mind(insula: RealShell) -> None:
    begin = "echo first >/root/state; echo first >/run/mind; cat /proc/sys/kernel/random/boot_id"
    boot = in_guest(insula, "deb", begin)  # nothing is synced: what is not on the disk yet is in its memory
    insula("snapshot", "create", "deb", "moment", "--memory")
    in_guest(insula, "deb", "echo second >/root/state; echo second >/run/mind; touch /root/since; sync")
    insula("snapshot", "restore", "-y", "deb", "moment")
    check = (
        "sync; echo 3 >/proc/sys/vm/drop_caches; cat /root/state /run/mind /proc/sys/kernel/random/boot_id; "
    )
    check += "ls /root/since 2>/dev/null; dmesg | grep -c 'EXT4-fs error'; echo third >/root/state; sync"
    assert in_guest(insula, "deb", check).split() == ["first", "first", boot, "0"]
    insula("snapshot", "rm", "deb", "moment")
    assert in_guest(insula, "deb", "cat /root/state") == "third"


def copy_part(disk: Path, at: int, size: int, target: Path) -> Path:
    """So many bytes of a disk that nobody writes any more. at: in bytes."""
    layer = {"driver": "qcow2", "file": {"driver": "file", "filename": str(disk)}}
    part = json.dumps({"driver": "raw", "offset": at, "size": size, "file": layer})
    argv = ["qemu-img", "convert", "-U", "-O", "raw", f"json:{part}", str(target)]
    subprocess.run(argv, check=True, capture_output=True)
    return target


def find_root(disk: Path, target: Path) -> tuple[int, int]:
    """Where the first partition of a disk is, in bytes, and how large. target: for what is looked at."""
    table = copy_part(disk, 0, 512, target).read_bytes()
    start, sectors = struct.unpack_from("<II", table, 0x1BE + 8)
    return start * 512, sectors * 512


def is_to_be_replayed(disk: Path, target: Path) -> bool:
    """Whether the root's superblock says that its journal must be replayed: `s_feature_incompat`, bit 2."""
    at, _ = find_root(disk, target)
    superblock = copy_part(disk, at + 1024, 1024, target).read_bytes()
    assert superblock[0x38:0x3A] == b"\x53\xef"
    return bool(superblock[0x60] & 4)


def examine(root: Path) -> tuple[int, str]:
    """What e2fsck says, who replays no journal when it may not write."""
    argv = ["e2fsck", "-f", "-n", str(root)]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={"PATH": SBIN, "LC_ALL": "C"}
    )
    return done.returncode, done.stdout + done.stderr


def read_file(root: Path, path: str) -> str:
    argv = ["debugfs", "-R", f"cat {path}", str(root)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, env={"PATH": SBIN}).stdout


@pytest.mark.skipif(not shutil.which("e2fsck", path=SBIN), reason="e2fsck is not installed")
def test_a_quiesced_snapshot_has_a_file_system_at_rest_and_the_guest_goes_on(
    insula: RealShell, tmp_path: Path
) -> None:
    """A mounted ext4 says of itself that its journal is to be replayed; one that is frozen does not."""
    in_guest(insula, "deb", "echo first >/root/state")  # and not synced
    insula("fork", "deb", "--name", "calm", timeout=300)  # it is off at the end, and deb is still needed
    write = "i=0; while :; do i=$((i+1)); echo $i >>/root/own-log; sync -d /root/own-log; done"
    # A file of its own: another test's writer may still be at work in deb, and so in its fork.
    in_guest(insula, "calm", f"({write}) >/dev/null 2>&1 &")
    insula("snapshot", "create", "calm", "rough")
    told = insula("snapshot", "create", "calm", "rest", "--quiesce").stderr.decode()
    assert "not quiesced" not in told
    assert "went on before" not in told
    # The last line but one: of the last there may be only a part yet, where it goes on in the next page.
    last = "tail -n 2 /root/own-log | head -n 1"
    first = int(in_guest(insula, "calm", f"echo second >/root/state; sync; {last}"))
    later = f"while [ $({last}) -le {first} ]; do :; done; {last}"
    assert int(in_guest(insula, "calm", later)) > first
    found = {snapshot["name"]: snapshot for snapshot in insula.data("snapshot", "ls", "calm")}
    assert [found[name]["quiesced"] for name in ("rough", "rest")] == [False, True]

    scratch, replayed = tmp_path / "scratch", {}
    for name, snapshot in found.items():
        directory = insula.home / "snapshots" / snapshot["uid"]
        (disk,) = json.loads((directory / SNAPSHOT_DOCUMENT).read_text())["disks"]
        replayed[name] = is_to_be_replayed(directory / disk["file"], scratch)
    assert replayed == {"rough": True, "rest": False}

    insula("snapshot", "restore", "-y", "calm", "rest")
    assert insula.info("calm")["phase"] == "stopped"
    own = Path(insula.info("calm")["directory"]) / "disk0.qcow2"
    root = copy_part(own, *find_root(own, scratch), scratch)
    status, said = examine(root)
    assert (status, "journal" in said) == (0, False), said
    assert read_file(root, "/root/state") == "first\n"
    insula("rm", "calm")


async def is_written(
    shell: ExecSession, output: AsyncIterator[tuple[StreamName, bytes]], file: str
) -> Waiting:
    """A running shell writes a file to the disk: done when it could."""
    await shell.write_stdin(f"echo written >{file} && cat {file}\n".encode())
    written = asyncio.ensure_future(anext(output))
    await asyncio.wait({written}, timeout=1)
    return written


async def test_its_disk_is_brought_to_rest_and_goes_on(insula: RealShell) -> None:
    path = insula.agent_socket("deb")
    agent = await insula_agent.connect(path, timeout=30)
    shell = await agent.exec(["sh"])
    output = shell.output()
    frozen = await agent.freeze(30)
    assert frozen >= 1
    written = await is_written(shell, output, "/root/frozen")
    assert not written.done(), "a frozen file system was written to"
    with pytest.raises(GuestFrozen):
        await agent.exec(["true"])
    assert (await agent.info()).hostname == "shop"
    assert await agent.thaw() == frozen
    assert await written == ("stdout", b"written\n")

    assert await agent.freeze(3) == frozen
    written = await is_written(shell, output, "/root/again")
    assert not written.done()
    assert await written == ("stdout", b"written\n")  # nobody said so: its time was over
    assert await agent.thaw() == 0

    assert await agent.freeze(50) == frozen
    await agent.close()
    agent = await insula_agent.connect(path, timeout=30)
    assert (await capture(await agent.exec(["cat", "/root/again"]))).stdout == b"written\n"
    who = ["sh", "-c", "hostname; cat /etc/machine-id"]
    before = (await capture(await agent.exec(who))).stdout
    assert await agent.refresh() == Renewal(("random", "clock"))
    assert (await capture(await agent.exec(who))).stdout == before
    await agent.close()


def test_it_boots_by_its_own_boot_loader(insula: RealShell) -> None:
    script = "cat /proc/cmdline; cat /proc/1/comm"
    said = insula.text("exec", "--agent-timeout", BOOT, "loader", "--", "sh", "-c", script, timeout=400)
    assert "BOOT_IMAGE=" in said  # only a boot loader says so
    assert "systemd" in said
    assert "GRUB" in insula.text("logs", "loader") or "Booting" in insula.text("logs", "loader")


@pytest.mark.skipif(find_uefi("pc") is None, reason="no UEFI is installed (package ovmf)")
def test_it_boots_by_its_own_boot_loader_under_uefi(insula: RealShell) -> None:
    """The same disk has partitions for both; GRUB comes from the one for UEFI."""
    insula("kill", "loader", status=None)
    options = ("--cold", "--firmware", "uefi", "--boot", "disk")
    insula("run", "-d", "--name", "efi", *options, "debian-12")
    script = "cat /proc/cmdline; ls -d /sys/firmware/efi/efivars/BootCurrent-*"
    said = insula.text("exec", "--agent-timeout", BOOT, "efi", "--", "sh", "-c", script, timeout=400).split()
    assert said[0].startswith("BOOT_IMAGE=")
    assert said[-1].startswith("/sys/firmware/efi/efivars/BootCurrent-")


async def freeze_and_refresh(path: Path) -> None:
    """The same with the QEMU guest agent."""
    agent = await qga.connect(path, timeout=30)
    running = await agent.exec(["sh", "-c", "read x; echo $x >/root/mark; cat /root/mark"])
    frozen = await agent.freeze(30)
    assert frozen >= 1
    with pytest.raises(GuestFrozen):
        await agent.exec(["true"])
    assert await agent.ping(30)
    assert await agent.thaw() == frozen
    assert await agent.freeze(1) == frozen
    assert (await capture(running, b"late\n")).stdout == b"late\n"  # once our timer has thawed it
    assert await agent.thaw() == 0
    assert await agent.refresh() == Renewal(("random", "clock"))
    await agent.close()


def test_its_disk_comes_back_from_another_format_and_boots(insula: RealShell) -> None:
    file, name = insula.home.parent / "debian.vmdk", "from-vmdk"
    insula("image", "export", "debian-12", str(file), "--format", "vmdk-stream", timeout=300)
    try:
        imported = ("image", "import", str(file), "--name", name, "--cloud-init", "--agent", "qemu")
        insula(*imported, timeout=300)
        insula("run", "-d", "--name", "again", name)
        said = insula.text("exec", "--agent-timeout", BOOT, "again", "--", "cat", "/proc/1/comm", timeout=400)
        assert said == "systemd\n"
        asyncio.run(freeze_and_refresh(insula.agent_socket("again", QGA_SOCKET)))
        insula("rm", "-f", "again")
    finally:
        insula("image", "rm", name)


def test_stop_is_orderly_and_what_was_written_is_there_again(insula: RealShell) -> None:
    insula("exec", "deb", "--", "sh", "-c", "echo kept >/root/mark")
    done = insula("stop", "--timeout", "3m", "deb", timeout=240)
    assert b"forced" not in done.stderr
    assert insula.info("deb")["last_exit"]["exit_status"] == 0
    insula("start", "deb")
    said = insula.text("exec", "--agent-timeout", BOOT, "deb", "--", "cat", "/root/mark", timeout=400)
    assert said == "kept\n"
