"""A system on a disk: packages, configuration, GRUB for BIOS and UEFI, one ext4; made without mounting."""

from __future__ import annotations

import asyncio
import io
import os
import shlex
import tarfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from insula.kit.run import CommandFailed, run
from insula.model.image import ImageDisk, Kernel
from insula.model.operation import Progress
from insula.storage import bootloader
from insula.storage.errors import BuildFailed
from insula.storage.guest_agent import SOURCE
from insula.storage.packages import Report, fetch_packages
from insula.storage.recipe import DiskRecipe

KERNEL, INITRD, DISK = "vmlinuz", "initrd", "disk.qcow2"
_GRUB, _GRUB_EFI = "boot/grub/i386-pc", "boot/grub/x86_64-efi"
_LOADER = f"{_GRUB_EFI}/core.efi"
_BOOT_LOADER_PACKAGES = ("grub-pc-bin", "grub-efi-amd64-bin", "grub2-common")
_NAMESPACE = uuid.UUID("2c1ff9f5-1d1b-4b9c-8d43-0c1f6c1c7c11")  # ours, for identifiers made from names
_CAPABILITY = "security.capability"  # xattr(7): what a program such as ping may do without root
_FETCH_SHARE = 0.75  # of the time, by measurement


async def build_disk(
    recipe: DiskRecipe, agent: Path | None, work: Path, report: Report
) -> tuple[Kernel, ImageDisk]:
    """Write disk.qcow2, vmlinuz and initrd into work/image."""
    # From the name, so that the same recipe gives the same image; every machine has a copy anyway.
    filesystem = str(uuid.uuid5(_NAMESPACE, recipe.name))
    arguments = f"root=UUID={filesystem} ro {recipe.kernel_arguments}".strip()
    overlay = work / "overlay.tar"
    await asyncio.to_thread(write_overlay, overlay, recipe, agent, filesystem, arguments)
    system = work / "system.tar"
    # Twice: before the packages for the initramfs's settings, and after them to have the last word.
    put = f"tar-in {shlex.quote(str(overlay))} /"
    options = [
        "--variant=minbase",
        "--dpkgopt=force-confold",
        f"--essential-hook={put}",
        f"--customize-hook={put}",
        f"--customize-hook={in_system(finishing_script(recipe))}",
    ]
    packages = [recipe.kernel, *_BOOT_LOADER_PACKAGES, *recipe.packages]
    await fetch_packages(recipe, packages, system, options, _scaled(report, 0, _FETCH_SHARE))
    report(Progress(message="Making the file system", fraction=_FETCH_SHARE))
    special = await asyncio.to_thread(_read_system, system, work / "image")
    raw = work / "disk.raw"
    sectors = recipe.disk_size // bootloader.SECTOR - bootloader.FIRST_SECTOR
    signature = uuid.UUID(filesystem).int & 0xFFFFFFFF or 1
    with raw.open("wb") as stream:
        stream.write(
            bootloader.first_sectors(special.boot, special.core, sectors=sectors, signature=signature)
        )
        stream.truncate(recipe.disk_size)
    await _make_efi_partition(special.loader, raw, signature, work)
    await _make_filesystem(system, raw, filesystem, sectors, work)
    await _grant_capabilities(special.capabilities, raw, work)
    report(Progress(message="Writing the disk", fraction=0.9))
    await run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(work / "image" / DISK)])
    kernel = Kernel(file=KERNEL, initrd=INITRD, arguments=arguments)
    return kernel, ImageDisk(file=DISK, format="qcow2", virtual_size_bytes=recipe.disk_size)


def _scaled(report: Report, start: float, end: float) -> Report:
    def scaled(progress: Progress) -> None:
        fraction = progress.fraction
        report(progress.changed(fraction=None if fraction is None else start + fraction * (end - start)))

    return scaled


def write_overlay(
    target: Path, recipe: DiskRecipe, agent: Path | None, filesystem: str, arguments: str
) -> None:
    """A tar of what this program puts into the system, the recipe's own files last."""
    title = recipe.os.replace("'", "")
    modules = "\n".join(recipe.modules)
    texts = {
        "etc/fstab": f"UUID={filesystem} / ext4 errors=remount-ro 0 1\n",
        "etc/hostname": f"{recipe.name}\n",
        "etc/initramfs-tools/conf.d/insula": "# Only what finds the disk of a machine.\nMODULES=list\n",
        "etc/initramfs-tools/modules": f"{modules}\n",
        "etc/default/grub.d/insula.cfg": f'GRUB_TIMEOUT={recipe.boot_wait}\nGRUB_CMDLINE_LINUX_DEFAULT=""\n'
        f'GRUB_CMDLINE_LINUX="{recipe.kernel_arguments}"\nGRUB_TERMINAL="serial console"\n',
        "boot/grub/insula-efi.cfg": bootloader.efi_config(filesystem),
        "boot/grub/insula.cfg": bootloader.grub_config(title, filesystem, arguments, recipe.boot_wait),
    }
    with tarfile.open(target, "w") as tar:
        for path, text in texts.items():
            _add(tar, path, text.encode(), 0o644)
        if agent is not None:
            unit, rules = SOURCE.parent / "insula-agent.service", SOURCE.parent / "60-insula-agent.rules"
            _add(tar, "usr/sbin/insula-agent", agent.read_bytes(), 0o755)
            _add(tar, f"etc/systemd/system/{unit.name}", unit.read_bytes(), 0o644)
            _add(tar, f"etc/udev/rules.d/{rules.name}", rules.read_bytes(), 0o644)
        for file in recipe.files:
            _add(tar, file.path.lstrip("/"), file.read(), file.permissions)


def _add(tar: tarfile.TarFile, path: str, data: bytes, mode: int) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mode, member.uname, member.gname = len(data), mode, "root", "root"
    tar.addfile(member, io.BytesIO(data))


def finishing_script(recipe: DiskRecipe) -> str:
    """What runs inside the system when all packages are there."""
    prefix = "(hd0,msdos1)/boot/grub"
    lines = [
        "set -eu",
        f"mkdir -p /{_GRUB} /{_GRUB_EFI}",
        f"cd /usr/lib/grub/i386-pc && cp *.mod *.lst boot.img /{_GRUB}/ && cd /",
        f"grub-mkimage -O i386-pc -o /{_GRUB}/core.img -p '{prefix}' {bootloader.CORE_MODULES}",
        f"cp /usr/lib/grub/x86_64-efi/*.mod /usr/lib/grub/x86_64-efi/*.lst /{_GRUB_EFI}/",
        f"grub-mkimage -O x86_64-efi -o /{_LOADER} -p /boot/grub -c /boot/grub/insula-efi.cfg "
        f"{bootloader.EFI_MODULES}",
        "rm /boot/grub/insula-efi.cfg",
        "mv /boot/grub/insula.cfg /boot/grub/grub.cfg",
        *(f"systemctl mask {shlex.quote(unit)}" for unit in recipe.mask),
        "[ ! -e /etc/systemd/system/insula-agent.service ] || systemctl enable insula-agent.service",
        *recipe.commands,
        # Each machine makes its own; a copy of these would be a secret that everybody has.
        "rm -f /etc/ssh/ssh_host_*",
        "rm -f /etc/machine-id && : >/etc/machine-id",
        "rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed",
        "rm -rf /var/log/*.log /var/log/apt/* /var/cache/debconf/*-old",
        # Else systemd rebuilds ld.so.cache, hwdb and catalogues at the first boot, though they are fresh.
        "touch /etc/.updated /var/.updated",
    ]
    return "\n".join(lines)


def in_system(script: str) -> str:
    """A hook of mmdebstrap that runs the script inside the system that is built."""
    return f'chroot "$1" /bin/sh -c {shlex.quote(script)}'


@dataclass
class _Special:
    """What of a system needs more than being unpacked. capabilities: of programs, by their path."""

    boot: bytes
    core: bytes
    loader: bytes
    capabilities: dict[str, bytes] = field(default_factory=dict)


def _read_system(system: Path, target: Path) -> _Special:
    """Copy kernel and initrd out of the system's tar, and find what GRUB needs outside its files."""
    found: dict[str, bytes] = {}
    capabilities: dict[str, bytes] = {}
    with tarfile.open(system) as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            if (text := member.pax_headers.get(f"SCHILY.xattr.{_CAPABILITY}")) is not None:
                capabilities[path] = text.encode("utf-8", "surrogateescape")
            wanted = path.startswith(("boot/vmlinuz-", "boot/initrd.img-"))
            if member.isreg() and (wanted or path in (f"{_GRUB}/boot.img", f"{_GRUB}/core.img", _LOADER)):
                stream = tar.extractfile(member)
                assert stream is not None
                found[path] = stream.read()
    kernels = [path for path in found if path.startswith("boot/vmlinuz-")]
    initrds = [path for path in found if path.startswith("boot/initrd.img-")]
    if len(kernels) != 1 or len(initrds) != 1:
        raise BuildFailed(
            f"The system has {len(kernels)} kernels and {len(initrds)} initrds in /boot; each must be one.",
            hint="Name one kernel package, and initramfs-tools among the packages.",
        )
    (target / KERNEL).write_bytes(found[kernels[0]])
    (target / INITRD).write_bytes(found[initrds[0]])
    return _Special(found[f"{_GRUB}/boot.img"], found[f"{_GRUB}/core.img"], found[_LOADER], capabilities)


async def _make_efi_partition(loader: bytes, raw: Path, serial: int, work: Path) -> None:
    """Write GRUB for UEFI into a FAT file system in its partition. serial: of that file system."""
    kept = work / "loader.efi"
    kept.write_bytes(loader)
    image = f"{raw}@@{bootloader.EFI_SECTOR * bootloader.SECTOR}"
    directories = [f"::{path}" for path in reversed(Path(bootloader.EFI_LOADER).parents[:-1])]
    size = str(bootloader.EFI_SECTORS)
    await run(
        ["mformat", "-i", image, "-T", size, "-h", "1", "-s", "32", "-N", f"{serial:08x}", "-v", "EFI", "::"]
    )
    await run(["mmd", "-i", image, *directories])
    await run(["mcopy", "-i", image, str(kept), f"::{bootloader.EFI_LOADER}"])


async def _make_filesystem(system: Path, raw: Path, filesystem: str, sectors: int, work: Path) -> None:
    """Fill the partition of the raw disk with the system's files, owners and modes as they are in the tar."""
    root = work / "root"
    root.mkdir()
    offset = bootloader.FIRST_SECTOR * bootloader.SECTOR
    unpack = ["tar", "--extract", f"--file={system}", f"--directory={root}", "--numeric-owner"]
    unpack += ["--same-permissions", "--same-owner"]
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "1", "-U", filesystem, "-L", "root", "-d", str(root)]
    # The kernel need not clear inode tables in a file of zeros (e2fsprogs 1.47 and later can say so).
    extended = f"offset={offset},hash_seed={filesystem},root_owner=0:0"
    size = f"{sectors * bootloader.SECTOR // 1024}k"
    better = [*make, "-E", f"{extended},assume_storage_prezeroed=1", str(raw), size]
    older = [*make, "-E", f"{extended},lazy_itable_init=1", str(raw), size]
    script = f"set -e; {shlex.join(unpack)}; {shlex.join(better)} || {shlex.join(older)}"
    # Without root fakeroot remembers owners and device nodes between the two programs.
    argv = ["sh", "-c", script]
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    try:
        await run(argv if os.geteuid() == 0 else ["fakeroot", *argv], env=environment)
    except CommandFailed as error:
        raise BuildFailed(
            "The file system of the image could not be made.",
            hint="A larger disk_size in the recipe may help; the command's last words are below.",
            evidence=error.evidence,
        ) from error


async def _grant_capabilities(capabilities: dict[str, bytes], raw: Path, work: Path) -> None:
    """Set the programs' capabilities in the finished file system: only root could set them on files."""
    if not capabilities:
        return
    lines = []
    for number, (path, value) in enumerate(sorted(capabilities.items())):
        kept = work / f"capability{number}"
        kept.write_bytes(value)
        lines.append(f'ea_set -f "{kept}" "/{path}" {_CAPABILITY}\n')
    commands = work / "debugfs"
    commands.write_text("".join(lines))
    offset = bootloader.FIRST_SECTOR * bootloader.SECTOR
    said = await run(["debugfs", "-w", "-f", str(commands), f"{raw}?offset={offset}"])
    # debugfs always ends well; what it has not done is on stderr, below its own name and version.
    faults = said.stderr.decode(errors="replace").splitlines()[1:]
    if faults:
        raise BuildFailed(
            "A program's capabilities could not be set.", evidence={"stderr": "\n".join(faults)}
        )
