"""The doctor's judgement on hosts that lack one thing or another, without looking at this one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from insula.engine.errors import EngineMissing
from insula.engine.protocol import EngineFacts
from insula.kit.paths import Home
from insula.model.host import Finding
from insula.model.observation import AcceleratorFact
from insula.node.doctor import DEBIAN_KEYRING, Sight, examine, examine_templates

PROGRAMS = frozenset(
    {
        *("qemu-system-x86_64", "qemu-img", "setpriv", "mmdebstrap", "mke2fs", "mformat", "gcc"),
        *("fakeroot", "newuidmap", "apt-get"),
    }
)
FILES = {
    "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    8388608 kB\n",
    "/etc/subuid": "ana:100000:65536\n",
}


@dataclass
class Eyes(Sight):
    """A host where all is well, unless said otherwise."""

    root: bool = False
    version: tuple[int, int, int] = (3, 11, 2)
    programs: frozenset[str] = PROGRAMS
    files: dict[str, str] = field(default_factory=lambda: dict(FILES))
    there: frozenset[Path] = frozenset({DEBIAN_KEYRING})
    free: int = 100 * 2**30
    pidfd: bool = True
    memfd: bool = True
    libc: bool = True
    firmware: str = "/usr/share/OVMF/OVMF_CODE_4M.fd"

    def is_root(self) -> bool:
        return self.root

    def python(self) -> tuple[int, int, int]:
        return self.version

    def has_program(self, name: str) -> bool:
        return name in self.programs

    def exists(self, path: Path) -> bool:
        return path in self.there

    def read(self, path: Path) -> str:
        return self.files.get(str(path), "")

    def user_name(self) -> str:
        return "ana"

    def free_disk(self, path: Path) -> int:
        return self.free

    def has_pidfd(self) -> bool:
        return self.pidfd

    def has_memfd(self) -> bool:
        return self.memfd

    def uefi(self) -> str:
        return self.firmware

    async def static_libc(self) -> bool:
        return self.libc


def facts(name: str = "kvm", refused: str = "", version: str = "7.2.22 (Debian 1:7.2)") -> EngineFacts:
    return EngineFacts(
        version=version,
        binary=Path("/usr/bin/qemu-system-x86_64"),
        auto=AcceleratorFact.model_validate({"name": name, "reason": "64-bit guest code ran within 20ms"}),
        kvm_refused=refused,
        machine_types={"pc": "pc-i440fx-7.2"},
    )


async def look(eyes: Eyes, engine: EngineFacts | EngineMissing | None = None) -> dict[str, Finding]:
    found = await examine(Home(Path("/home/ana/insula")), engine or facts(), eyes)
    names = [finding.name for finding in found]
    assert len(names) == len(set(names))
    for finding in found:
        assert finding.detail
        assert finding.state != "missing" or finding.mend, f"{finding.name} does not say how to mend it"
    return {finding.name: finding for finding in found}


@pytest.mark.parametrize("root", [True, False])
async def test_a_host_where_all_is_well_has_nothing_to_mend(root: bool) -> None:
    found = await look(Eyes(root=root))
    assert {finding.state for finding in found.values()} == {"ok"}
    assert not any(finding.mend for finding in found.values())


@pytest.mark.parametrize(
    ("eyes", "name", "state", "mend"),
    [
        (Eyes(programs=PROGRAMS - {"qemu-img"}), "qemu-img", "missing", "sudo apt-get install qemu-utils"),
        (
            Eyes(root=True, programs=PROGRAMS - {"qemu-img"}),
            "qemu-img",
            "missing",
            "apt-get install qemu-utils",
        ),
        (Eyes(programs=PROGRAMS - {"setpriv"}), "setpriv", "missing", "sudo apt-get install util-linux"),
        (
            Eyes(programs=PROGRAMS - {"mmdebstrap", "newuidmap"}),
            *("image tools", "missing", "sudo apt-get install mmdebstrap uidmap"),
        ),
        (
            Eyes(there=frozenset()),
            *("image tools", "missing", "sudo apt-get install debian-archive-keyring"),
        ),
        (Eyes(programs=PROGRAMS - {"gcc"}), "guest agent", "missing", "sudo apt-get install gcc libc6-dev"),
        (Eyes(libc=False), "guest agent", "missing", "sudo apt-get install gcc libc6-dev"),
        (Eyes(files=FILES | {"/etc/subuid": "bob:1:2\n"}), "subordinate ids", "limited", "sudo usermod"),
        (Eyes(firmware=""), "uefi", "limited", "sudo apt-get install ovmf"),
        (Eyes(pidfd=False), "kernel", "missing", "5.10"),
        (Eyes(memfd=False), "kernel", "missing", "5.10"),
        (
            Eyes(files=FILES | {"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}),
            *("user namespaces", "limited", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        ),
        (
            Eyes(files=FILES | {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}),
            *("user namespaces", "limited", "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        ),
        (Eyes(free=100 * 2**20), "disk space", "missing", "INSULA_HOME"),
        (Eyes(free=2 * 2**30), "disk space", "limited", "INSULA_HOME"),
        (
            Eyes(files=FILES | {"/proc/meminfo": "MemAvailable: 1000 kB\n"}),
            "memory",
            "missing",
            "stop machines",
        ),
        (
            Eyes(files=FILES | {"/proc/meminfo": "MemAvailable: 524288 kB\n"}),
            "memory",
            "limited",
            "stop machines",
        ),
        (Eyes(files=FILES | {"/proc/meminfo": ""}), "memory", "limited", ""),
        (Eyes(version=(3, 9, 1)), "python", "missing", "sudo apt-get install python3"),
    ],
)
async def test_each_lack_is_named_with_what_mends_it(eyes: Eyes, name: str, state: str, mend: str) -> None:
    found = await look(eyes)
    assert found[name].state == state
    assert mend in found[name].mend
    assert [finding.name for finding in found.values() if finding.state != "ok"] == [name]


async def test_root_needs_nothing_that_only_plain_users_need() -> None:
    eyes = Eyes(
        root=True,
        programs=PROGRAMS - {"newuidmap", "fakeroot"},
        files=FILES | {"/etc/subuid": "", "/proc/sys/kernel/unprivileged_userns_clone": "0"},
    )
    assert {finding.state for finding in (await look(eyes)).values()} == {"ok"}


async def test_without_apt_the_package_is_named_without_a_command_that_does_not_exist() -> None:
    found = await look(Eyes(programs=PROGRAMS - {"qemu-img", "apt-get"}))
    assert found["qemu-img"].mend == "install what Debian calls qemu-utils"


async def test_a_missing_engine_is_told_once_and_the_rest_is_still_examined() -> None:
    error = EngineMissing("The program 'qemu-system-x86_64' is not installed.", hint="Install it.")
    found = await look(Eyes(programs=PROGRAMS - {"qemu-system-x86_64"}), error)
    assert found["qemu"].state == "missing"
    assert found["qemu"].mend == "sudo apt-get install qemu-system-x86"
    assert found["memory"].state == "ok"
    assert "not tried" in found["accelerator"].detail


async def test_an_engine_that_is_there_and_broken_keeps_its_own_hint() -> None:
    error = EngineMissing("QEMU said nothing.", hint="Run it by hand.")
    assert (await look(Eyes(), error))["qemu"].mend == "Run it by hand."


async def test_an_old_engine_is_refused_with_the_version_that_is_needed() -> None:
    found = await look(Eyes(), facts(version="6.2.0"))
    assert found["qemu"].state == "missing"
    assert "7.2 or newer" in found["qemu"].detail


@pytest.mark.parametrize("known", ["sudo modprobe kvm_amd", ""])
async def test_why_kvm_is_not_used_and_what_would_change_it(known: str) -> None:
    engine = dataclasses.replace(facts("tcg", "it stopped at cmpxchg16b"), kvm_mend=known)
    found = (await look(Eyes(), engine))["accelerator"]
    assert found.state == "limited"
    assert "it stopped at cmpxchg16b" in found.detail
    assert (known or "nested virtualization") in found.mend


async def test_images_kept_elsewhere_have_their_own_disk_space() -> None:
    found = await examine(Home(Path("/a"), images_override=Path("/b")), facts(), Eyes())
    assert [finding.name for finding in found if "disk" in finding.name] == [
        "disk space",
        "disk space for images",
    ]


async def test_real_eyes_see_this_host() -> None:
    found = await examine(Home(Path("/nowhere/at/all")), facts("tcg", "refused"))
    assert {finding.name for finding in found} >= {"qemu", "accelerator", "kernel", "memory", "python"}
    assert {finding.name: finding.state for finding in found}["python"] == "ok"


def test_templates_are_told_with_their_bounds() -> None:
    assert examine_templates(2**30, []).detail == "0 templates with 0B of at most 1GiB of memory"
    assert examine_templates(2**30, [2**20]).detail == "1 template with 1MiB of at most 1GiB of memory"
    assert examine_templates(0, []).state == "limited"
