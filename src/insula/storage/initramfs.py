"""A system in memory: chosen packages, kernel modules and files as one cpio archive, beside its kernel."""

from __future__ import annotations

import asyncio
import fnmatch
import gzip
import io
import lzma
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from insula.kit.run import run
from insula.model.image import Kernel
from insula.model.operation import Progress
from insula.storage import cpio, elf
from insula.storage.errors import BuildFailed
from insula.storage.packages import Report, fetch_packages
from insula.storage.recipe import InitramfsRecipe

KERNEL, INITRD = "vmlinuz", "initrd"
# Left out of every package: nobody reads manuals in a machine that lives for seconds.
_SKIPPED = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian")
_LIBRARY_PLACES = ("usr/lib/x86_64-linux-gnu", "usr/lib", "usr/lib64")
# One directory of programs, so that every usual path of a command leads to it.
_LINKS = {"bin": "usr/bin", "sbin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/sbin": "bin"}
_DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "etc", "usr/local/bin", "var")


async def build_initramfs(recipe: InitramfsRecipe, agent: Path | None, work: Path, report: Report) -> Kernel:
    """Write vmlinuz and initrd into work/image. agent: Insula's guest agent, compiled, or None."""
    packages = work / "packages.tar"
    # Nothing of the packages is run, so nobody needs to be root for it.
    mode = "root" if os.geteuid() == 0 else "chrootless"
    options = ["--variant=extract", f"--mode={mode}", "--skip=cleanup/apt/cache"]
    await fetch_packages(recipe, [recipe.kernel, *recipe.packages], packages, options, report)
    report(Progress(message="Packing the initramfs", fraction=None))
    with await asyncio.to_thread(PackageTree, packages) as tree:
        own = await _package_files(tree, recipe, work)
        await asyncio.to_thread(_write_files, tree, recipe, agent, own, work / "image")
    if recipe.compression == "zstd":
        initrd = work / "image" / INITRD
        await run(["zstd", "-q", "-19", "--rm", str(initrd), "-o", str(work / "packed")])
        (work / "packed").rename(initrd)
    return Kernel(file=KERNEL, initrd=INITRD, arguments=recipe.kernel_arguments)


def merged(path: str) -> str:
    """Where a file of a package goes: /bin, /sbin and /usr/sbin are one with /usr/bin, /lib is /usr/lib."""
    path = path.removeprefix("./").strip("/")
    for old, new in (
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("usr/sbin", "usr/bin"),
        ("lib64", "usr/lib64"),
    ):
        if path == old or path.startswith(f"{old}/"):
            return new + path[len(old) :]
    return f"usr/{path}" if path == "lib" or path.startswith("lib/") else path


class PackageTree:
    """The unpacked packages, read out of the tar they are in, by their merged paths."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path)  # noqa: SIM115 - closed in __exit__
        self._members = {merged(member.name): member for member in self._tar}
        self._by_name: dict[str, list[str]] = {}
        for place in self._members:
            self._by_name.setdefault(PurePosixPath(place).name, []).append(place)

    def __enter__(self) -> PackageTree:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def paths(self, pattern: str) -> list[str]:
        """Paths that match a shell pattern ('*' matches '/' too), sorted."""
        return sorted(path for path in self._members if fnmatch.fnmatchcase(path, pattern))

    def read(self, path: str) -> bytes:
        return read_member(self._tar, self._members[path])

    def library(self, name: str) -> Iterator[cpio.Entry]:
        """The library of this name and the links that lead to it. Raises KeyError when there is none."""
        places = [f"{place}/{name}" for place in _LIBRARY_PLACES if f"{place}/{name}" in self._members]
        # A library of a package's own, which its programs find by their RUNPATH.
        path = (places or self._by_name[name])[0]
        while (member := self._members[path]).issym():
            yield cpio.symlink(path, member.linkname)
            path = merged(os.path.normpath(os.path.join("/", os.path.dirname(path), member.linkname)))  # noqa: PTH118, PTH120
        yield cpio.file(path, self.read(path), 0o755)


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a file or of what a hard link names."""
    stream = tar.extractfile(member)
    return stream.read() if stream is not None else b""


async def _package_files(tree: PackageTree, recipe: InitramfsRecipe, work: Path) -> list[cpio.Entry]:
    """The files of the packages that the recipe names, not of what they depend on."""
    entries: list[cpio.Entry] = []
    for package in recipe.packages:
        archives = tree.paths(f"var/cache/apt/archives/{package}_*.deb")
        if not archives:
            raise BuildFailed(
                f"No file of the package '{package}' was fetched.", hint="Is it a virtual package?"
            )
        archive = work / "package.deb"
        archive.write_bytes(tree.read(archives[0]))
        content = await run(["dpkg-deb", "--fsys-tarfile", str(archive)])
        archive.unlink()
        with tarfile.open(fileobj=io.BytesIO(content.stdout)) as tar:
            entries += [
                entry for member in tar if (entry := _entry_of(tar, member)) and not _is_skipped(entry.path)
            ]
    taken = {entry.path for entry in entries}
    applets = [entry for entry in await _busybox_links(entries, work) if entry.path not in taken]
    return [*applets, *entries]


async def _busybox_links(entries: Iterable[cpio.Entry], work: Path) -> list[cpio.Entry]:
    """A link for each command that busybox, if it is among the entries, can play."""
    for entry in entries:
        if entry.path == "usr/bin/busybox" and stat.S_ISREG(entry.mode):
            program = work / "busybox"
            program.write_bytes(entry.data)
            program.chmod(0o700)
            names = (await run([str(program), "--list"])).stdout.decode().split()
            return [cpio.symlink(f"usr/bin/{name}", "busybox") for name in names if name != "busybox"]
    return []


def _is_skipped(path: str) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in _SKIPPED)


def _entry_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> cpio.Entry | None:
    path = merged(member.name)
    if path in ("", ".", *_LINKS) or path.startswith("lib/modules"):
        return None
    if member.isdir():
        return cpio.directory(path, member.mode)
    if member.issym():
        return cpio.symlink(path, member.linkname)
    if member.isreg() or member.islnk():
        return cpio.file(path, read_member(tar, member), member.mode)
    return None


def _write_files(
    tree: PackageTree, recipe: InitramfsRecipe, agent: Path | None, own: list[cpio.Entry], target: Path
) -> None:
    kernels = tree.paths("boot/vmlinuz-*")
    if len(kernels) != 1:
        raise BuildFailed(
            f"The package '{recipe.kernel}' brings {len(kernels)} kernels; one is needed.",
            hint="Name a kernel image package, for example linux-image-cloud-amd64.",
        )
    (target / KERNEL).write_bytes(tree.read(kernels[0]))
    version = kernels[0].removeprefix("boot/vmlinuz-")
    entries = [*own, *_libraries(tree, own)]
    if agent is not None:
        entries.append(cpio.file("usr/bin/insula-agent", agent.read_bytes(), 0o755))
    entries += ModuleSet(tree, version).entries(recipe.modules)
    entries += [cpio.directory(path) for path in _DIRECTORIES]
    entries += [cpio.symlink(path, to) for path, to in _LINKS.items()]
    entries.append(cpio.character_device("dev/console", 5, 1))
    entries += [cpio.file(merged(spec.path), spec.read(), spec.permissions) for spec in recipe.files]
    with (target / INITRD).open("wb") as raw:
        if recipe.compression == "gzip":
            with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed:
                packed.writelines(cpio.write(entries))
        else:
            raw.writelines(cpio.write(entries))


def _libraries(tree: PackageTree, programs: Iterable[cpio.Entry]) -> list[cpio.Entry]:
    """Every library that the programs need, directly or not, and the dynamic linker."""
    found: dict[str, cpio.Entry] = {}
    todo = list(programs)
    seen: set[str] = set()
    while todo:
        program = todo.pop()
        if not stat.S_ISREG(program.mode) or not elf.is_elf(program.data):
            continue
        linkage = elf.read_linkage(program.data)
        names = list(linkage.needed)
        if linkage.interpreter:
            names.append(PurePosixPath(linkage.interpreter).name)
        for name in names:
            if name in seen:
                continue
            seen.add(name)
            try:
                entries = list(tree.library(name))
            except (KeyError, IndexError):
                raise BuildFailed(
                    f"The program '/{program.path}' needs the library '{name}', which no package brings.",
                    hint="Add the package that has it to the recipe.",
                ) from None
            found.update((entry.path, entry) for entry in entries)
            todo += entries
            if linkage.interpreter and name == PurePosixPath(linkage.interpreter).name:
                # The path in the program is fixed (/lib64/...), wherever the package keeps the file.
                where = merged(linkage.interpreter)
                found.setdefault(where, cpio.symlink(where, f"/{entries[-1].path}"))
    return list(found.values())


@dataclass
class _Module:
    path: str
    data: bytes
    depends: tuple[str, ...] = ()
    aliases: list[str] = field(default_factory=list)


class ModuleSet:
    """The kernel's modules by name; chooses some, with what they need, and writes modprobe's tables."""

    def __init__(self, tree: PackageTree, version: str) -> None:
        self._tree = tree
        self._root = f"usr/lib/modules/{version}"
        self._paths: dict[str, str] = {}
        for path in tree.paths(f"{self._root}/kernel/*.ko*"):
            self._paths[PurePosixPath(path).name.split(".ko")[0].replace("-", "_")] = path

    def entries(self, patterns: Iterable[str]) -> list[cpio.Entry]:
        """The modules whose names match, as archive entries, with modules.dep and modules.alias."""
        wanted = [pattern.replace("-", "_") for pattern in patterns]
        chosen: dict[str, _Module] = {}
        todo = [name for name in self._paths if any(fnmatch.fnmatchcase(name, one) for one in wanted)]
        while todo:
            name = todo.pop()
            if name not in chosen and name in self._paths:
                chosen[name] = self._read(name)
                todo += chosen[name].depends
        entries = [cpio.file(module.path, module.data) for module in chosen.values()]
        tables = {"modules.dep": self._dependencies(chosen), "modules.alias": self._aliases(chosen)}
        return entries + [cpio.file(f"{self._root}/{name}", text.encode()) for name, text in tables.items()]

    def _read(self, name: str) -> _Module:
        path = self._paths[name]
        data = self._tree.read(path)
        if path.endswith(".xz"):
            data = lzma.decompress(data)
        elif path.endswith(".gz"):
            data = gzip.decompress(data)
        elif not path.endswith(".ko"):
            raise BuildFailed(f"The kernel module '{path}' is packed in a way that cannot be read.")
        info = elf.read_modinfo(data)
        depends = [word for line in info.get("depends", []) for word in line.split(",") if word]
        return _Module(
            path=path.split(".ko")[0] + ".ko",
            data=data,
            depends=tuple(word.replace("-", "_") for word in depends),
            aliases=info.get("alias", []),
        )

    def _dependencies(self, chosen: dict[str, _Module]) -> str:
        lines = []
        for name in sorted(chosen):
            order: list[str] = []
            self._visit(name, chosen, order)
            # modprobe loads a line from right to left.
            paths = [chosen[one].path.removeprefix(f"{self._root}/") for one in reversed(order)]
            lines.append(f"{paths[0]}: {' '.join(paths[1:])}".rstrip() + "\n")
        return "".join(lines)

    def _visit(self, name: str, chosen: dict[str, _Module], order: list[str]) -> None:
        if name in order or name not in chosen:
            return
        for other in chosen[name].depends:
            self._visit(other, chosen, order)
        order.append(name)

    def _aliases(self, chosen: dict[str, _Module]) -> str:
        return "".join(f"alias {alias} {name}\n" for name in sorted(chosen) for alias in chosen[name].aliases)
