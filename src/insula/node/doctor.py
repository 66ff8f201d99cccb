"""What this host has and lacks, each lack with the command that mends it: `insula doctor`.

Looking is apart from judging: `Sight` looks, every `_examine_*` judges what it saw. Nothing here changes
the host, and nothing raises: a doctor who faints helps nobody.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from insula.engine.firmware import find_uefi
from insula.engine.protocol import EngineFacts
from insula.kit.errors import InsulaError
from insula.kit.paths import Home
from insula.kit.run import PACKAGES, CommandMissing, find_program, run
from insula.kit.units import format_size
from insula.model.host import Finding

LOWEST_PYTHON = (3, 11)
LOWEST_ENGINE = (7, 2)
LITTLE_DISK = 5 * 2**30  # an image of a distribution with what its build needs besides
LOWEST_DISK = 512 * 2**20
LITTLE_MEMORY = 1 * 2**30
LOWEST_MEMORY = 256 * 2**20  # the micro image's machine with its monitor
LOOK_TIMEOUT = 10.0  # seconds for a tool to say where its files are
DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Sight:
    """What the doctor looks at. Tests give it other eyes."""

    def is_root(self) -> bool:
        return os.geteuid() == 0

    def python(self) -> tuple[int, int, int]:
        return sys.version_info[:3]

    def has_program(self, name: str) -> bool:
        try:
            find_program(name)
        except CommandMissing:
            return False
        return True

    def exists(self, path: Path) -> bool:
        return path.exists()

    def read(self, path: Path) -> str:
        """The content of a small file, '' where there is none."""
        try:
            return path.read_text(errors="replace")
        except OSError:
            return ""

    def user_name(self) -> str:
        # The passwd entry may be missing, as in containers with a foreign uid.
        with contextlib.suppress(KeyError, ImportError):
            import pwd

            return pwd.getpwuid(os.geteuid()).pw_name
        return str(os.geteuid())

    def free_disk(self, path: Path) -> int:
        """Bytes that we may still write in the file system where `path` is, or would be."""
        while not path.exists() and path != path.parent:
            path = path.parent
        return shutil.disk_usage(path).free

    def has_pidfd(self) -> bool:
        try:
            os.close(os.pidfd_open(os.getpid()))
        except (AttributeError, OSError):
            return False
        return True

    def has_memfd(self) -> bool:
        try:
            os.close(os.memfd_create("insula-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        except (AttributeError, OSError):
            return False
        return True

    def uefi(self) -> str:
        """Where the code of the UEFI for machines is, '' when there is none."""
        found = find_uefi("pc")
        return "" if found is None else str(found.code.path)

    async def static_libc(self) -> bool:
        """Whether the compiler finds the C library for static linking; the guest agent is linked so."""
        try:
            done = await run(["gcc", "-print-file-name=libc.a"], check=False, timeout=LOOK_TIMEOUT)
        except (InsulaError, TimeoutError, OSError):
            return False
        # An answer without a directory is gcc's way of saying that it found none.
        return "/" in done.stdout.decode(errors="replace")


async def examine(home: Home, engine: EngineFacts | InsulaError, sight: Sight | None = None) -> list[Finding]:
    """Everything about this host that decides what works, in the order a person wants to read it.

    engine: what probing the engine found, or the error it raised.
    """
    sight = sight or Sight()
    static_libc = await sight.static_libc() if sight.has_program("gcc") else False
    return [
        _examine_engine(engine, sight),
        _examine_accelerator(engine),
        _examine_program(sight, "qemu-img", "disks can be made and read", "No machine with a disk"),
        _examine_program(sight, "setpriv", "programs end with the daemon", "No program can be called"),
        _examine_uefi(sight),
        *_examine_image_tools(sight),
        _examine_guest_agent(sight, static_libc),
        *_examine_kernel(sight),
        *_examine_disks(home, sight),
        _examine_memory(sight),
        _examine_python(sight),
    ]


def examine_templates(budget: int, held: list[int]) -> Finding:
    """budget: bytes of memory that templates may hold. held: by each."""
    if budget == 0:
        return Finding(
            name="templates",
            state="limited",
            detail="Switched off: every launch boots",
            mend="start the daemon without INSULA_TEMPLATE_MEMORY=0",
        )
    many = f"{len(held)} template{'' if len(held) == 1 else 's'}"
    detail = f"{many} with {format_size(sum(held))} of at most {format_size(budget)} of memory"
    return Finding(name="templates", state="ok", detail=detail)


def _install(sight: Sight, *packages: str) -> str:
    names = " ".join(packages)
    if not sight.has_program("apt-get"):
        return f"install what Debian calls {names}"
    return f"{'' if sight.is_root() else 'sudo '}apt-get install {names}"


def _as_root(sight: Sight, command: str) -> str:
    return command if sight.is_root() else f"sudo {command}"


def _examine_engine(engine: EngineFacts | InsulaError, sight: Sight) -> Finding:
    if isinstance(engine, InsulaError):
        install = _install(sight, PACKAGES["qemu-system-x86_64"])
        missing = not sight.has_program("qemu-system-x86_64")
        return Finding(
            name="qemu", state="missing", detail=engine.message, mend=install if missing else engine.hint
        )
    found = re.match(r"(\d+)\.(\d+)", engine.version)
    version = (int(found[1]), int(found[2])) if found else None
    where = f"{engine.version} ({engine.binary})"
    if version is not None and version < LOWEST_ENGINE:
        wanted = ".".join(map(str, LOWEST_ENGINE))
        return Finding(
            name="qemu",
            state="missing",
            detail=f"{where} is too old: {wanted} or newer is needed.",
            mend="upgrade to Debian 12, Ubuntu 24.04 or newer, or use your distribution's backports",
        )
    return Finding(name="qemu", state="ok", detail=where)


def _examine_accelerator(engine: EngineFacts | InsulaError) -> Finding:
    if isinstance(engine, InsulaError):
        detail, mend = "KVM was not tried, because QEMU cannot be used.", ""
    elif engine.auto.name == "kvm":
        return Finding(name="accelerator", state="ok", detail=f"KVM: {engine.auto.reason}")
    else:
        detail = f"TCG, emulation in software; not KVM: {engine.kvm_refused}"
        mend = (
            engine.kvm_mend
            or "none here; where this is a virtual machine, ask for real nested virtualization"
        )
    return Finding(name="accelerator", state="limited", detail=detail, mend=mend)


def _examine_program(sight: Sight, program: str, works: str, without: str) -> Finding:
    if sight.has_program(program):
        return Finding(name=program, state="ok", detail=works)
    return Finding(
        name=program,
        state="missing",
        detail=f"{without} without it.",
        mend=_install(sight, PACKAGES.get(program, program)),
    )


def _examine_uefi(sight: Sight) -> Finding:
    where = sight.uefi()
    if where:
        return Finding(name="uefi", state="ok", detail=where)
    return Finding(
        name="uefi",
        state="limited",
        detail="Machines boot by BIOS only: no UEFI is installed.",
        mend=_install(sight, "ovmf"),
    )


def _examine_image_tools(sight: Sight) -> Iterator[Finding]:
    """What building an image takes; a host that only runs images built elsewhere does without."""
    wanted = ["mmdebstrap", "mke2fs", "mformat"]
    if not sight.is_root():
        wanted += ["fakeroot", "newuidmap"]
    lacking = [name for name in wanted if not sight.has_program(name)]
    packages = [{"newuidmap": "uidmap", **PACKAGES}.get(name, name) for name in lacking]
    # Ubuntu does not know Debian's signatures by itself.
    if not sight.exists(DEBIAN_KEYRING):
        lacking.append("Debian's archive keys")
        packages.append("debian-archive-keyring")
    if lacking:
        yield Finding(
            name="image tools",
            state="missing",
            detail=f"Images cannot be built without {', '.join(lacking)}.",
            mend=_install(sight, *packages),
        )
    else:
        yield Finding(name="image tools", state="ok", detail=", ".join(wanted))
    if sight.is_root():
        return
    user = sight.user_name()
    if re.search(rf"^{re.escape(user)}:", sight.read(Path("/etc/subuid")), re.MULTILINE) is None:
        yield Finding(
            name="subordinate ids",
            state="limited",
            detail=f"/etc/subuid gives '{user}' no ids to build images with.",
            mend=_as_root(sight, f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"),
        )


def _examine_guest_agent(sight: Sight, static_libc: bool) -> Finding:
    if static_libc:
        return Finding(name="guest agent", state="ok", detail="can be built (gcc, static C library)")
    lacks = "the C library for static linking" if sight.has_program("gcc") else "gcc"
    return Finding(
        name="guest agent",
        state="missing",
        detail=f"It cannot be built into images without {lacks}.",
        mend=_install(sight, *PACKAGES["gcc"].split()),
    )


def _examine_kernel(sight: Sight) -> Iterator[Finding]:
    lacking = [
        name
        for name, there in (
            ("pidfd (Linux 5.3)", sight.has_pidfd()),
            ("memfd with seals (Linux 3.17)", sight.has_memfd()),
        )
        if not there
    ]
    if lacking:
        yield Finding(
            name="kernel",
            state="missing",
            detail=f"The kernel lacks {', '.join(lacking)}.",
            mend="use a kernel of 5.10 or newer; in a container, let its seccomp profile allow it",
        )
    else:
        yield Finding(name="kernel", state="ok", detail=f"{os.uname().release}: pidfd, memfd")
    if not sight.is_root():
        yield _examine_user_namespaces(sight)


def _examine_user_namespaces(sight: Sight) -> Finding:
    """Whether a plain user may build images: each knob that distributions use to forbid it."""
    knobs = (
        ("kernel.unprivileged_userns_clone", "0", "1"),  # Debian's own
        ("user.max_user_namespaces", "0", "15000"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),  # Ubuntu from 23.10 on
    )
    for knob, forbidding, allowing in knobs:
        value = sight.read(Path("/proc/sys") / knob.replace(".", "/")).strip()
        if value == forbidding:
            return Finding(
                name="user namespaces",
                state="limited",
                detail=f"Only root can build images here: {knob} is {value}.",
                mend=_as_root(sight, f"sysctl -w {knob}={allowing}"),
            )
    return Finding(name="user namespaces", state="ok", detail="images can be built without root")


def _examine_disks(home: Home, sight: Sight) -> Iterator[Finding]:
    places = [("disk space", home.root)]
    if home.images_override is not None:
        places.append(("disk space for images", home.images))
    for name, place in places:
        try:
            free = sight.free_disk(place)
        except OSError as error:
            yield Finding(name=name, state="limited", detail=f"{place} cannot be examined: {error.strerror}.")
            continue
        detail = f"{format_size(free)} free at {place}"
        mend = "make room there, or set INSULA_HOME to a directory on a larger disk"
        if free < LOWEST_DISK:
            yield Finding(
                name=name, state="missing", detail=f"{detail}: too little for a machine.", mend=mend
            )
        elif free < LITTLE_DISK:
            yield Finding(
                name=name, state="limited", detail=f"{detail}: too little for large images.", mend=mend
            )
        else:
            yield Finding(name=name, state="ok", detail=detail)


def _examine_memory(sight: Sight) -> Finding:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", sight.read(Path("/proc/meminfo")), re.MULTILINE)
    if found is None:
        return Finding(
            name="memory", state="limited", detail="/proc/meminfo does not tell what is available."
        )
    available = int(found[1]) * 1024
    detail = f"{format_size(available)} available"
    mend = "stop machines or programs that you do not need"
    if available < LOWEST_MEMORY:
        return Finding(
            name="memory", state="missing", detail=f"{detail}: too little for a machine.", mend=mend
        )
    if available < LITTLE_MEMORY:
        return Finding(
            name="memory", state="limited", detail=f"{detail}: enough for small machines only.", mend=mend
        )
    return Finding(name="memory", state="ok", detail=detail)


def _examine_python(sight: Sight) -> Finding:
    version = sight.python()
    detail = ".".join(map(str, version))
    if version[:2] < LOWEST_PYTHON:
        wanted = ".".join(map(str, LOWEST_PYTHON))
        return Finding(
            name="python",
            state="missing",
            detail=f"{detail} is too old: {wanted} or newer is needed.",
            mend=_install(sight, "python3"),
        )
    return Finding(name="python", state="ok", detail=detail)


def worst_state(findings: Sequence[Finding]) -> str:
    """'missing' if anything is, else 'limited' if anything is, else 'ok'."""
    states = {finding.state for finding in findings}
    return next((state for state in ("missing", "limited") if state in states), "ok")
