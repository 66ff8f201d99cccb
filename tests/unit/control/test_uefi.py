"""Machines that boot by UEFI on a host without QEMU: refused where there is none, each with its variables."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from insula.engine.protocol import FirmwareFile, Uefi
from insula.kit.errors import InsulaError
from insula.kit.run import run
from insula.model.device.disk import VARIABLES_ID
from insula.model.machine import Machine
from insula.model.observation import Phase
from insula.planner.admission import FirmwareMissing
from tests.support.host import FakeHost
from tests.unit.control.test_fork import forked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed"),
]


def install_uefi(host: FakeHost) -> Path:
    """The host has one from now on; the file that variables are made of."""
    variables = host.root / "vars.fd"
    variables.write_bytes(b"fresh" + bytes(65531))
    host.world.uefi = Uefi(FirmwareFile(host.root / "code.fd", 4096), FirmwareFile(variables, 65536))
    return variables


def disk(host: FakeHost, name: str = "web") -> Path:
    machine = host.machine(name)
    assert machine is not None
    return host.home.machine(machine.uid) / "uefi-vars.qcow2"


async def remember(host: FakeHost, byte: int, name: str = "web") -> None:
    """What a UEFI writes into its variables: this byte, at its own place."""
    await run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P {byte} {byte * 512} 512", str(disk(host, name))])


async def remembered(host: FakeHost, name: str = "web") -> set[int]:
    raw = host.root / "raw"
    await run(["qemu-img", "convert", "-U", "-O", "raw", str(disk(host, name)), str(raw)])
    content = raw.read_bytes()
    assert content.startswith(b"fresh")
    return set(content[512::512]) - {0}


async def test_a_host_without_a_uefi_refuses_before_anything_is_made(host: FakeHost) -> None:
    with pytest.raises(FirmwareMissing, match="'web' is to boot by UEFI, and this host has none") as caught:
        await host.run(firmware="uefi")
    assert caught.value.hint == "Install it: sudo apt-get install ovmf"
    assert host.machine() is None
    assert list(host.home.machines.iterdir()) == []


async def test_a_bios_machine_has_no_variables(host: FakeHost) -> None:
    install_uefi(host)
    await host.run()
    machine = host.machine()
    assert machine is not None
    assert machine.firmware == "bios"
    assert VARIABLES_ID not in {device.id for device in machine.devices}
    assert not disk(host).exists()


async def test_each_has_variables_of_its_own_that_begin_as_the_host_s(host: FakeHost) -> None:
    install_uefi(host)
    await host.run(firmware="uefi")
    await host.do("create", "db", spec={"firmware": "uefi"})
    await remember(host, 1)
    assert await remembered(host) == {1}
    assert await remembered(host, "db") == set()
    await host.do("rm", force=True)
    assert host.machine() is None


async def test_they_go_back_with_a_snapshot_and_a_fork_takes_them_along(host: FakeHost) -> None:
    install_uefi(host)
    await host.run(firmware="uefi")
    await remember(host, 1)
    await host.do("snapshot-create", name="before")
    await remember(host, 2)
    await forked(host, names="sib")
    await remember(host, 3, "sib")
    await remember(host, 4)
    await host.do("snapshot-restore", name="before")
    assert await remembered(host) == {1}
    assert await remembered(host, "sib") == {1, 2, 3}


async def test_a_machine_whose_uefi_is_gone_is_told_so_and_keeps_what_it_has(host: FakeHost) -> None:
    install_uefi(host)
    await host.do("create", spec={"firmware": "uefi"})
    await remember(host, 1)
    host.world.uefi = None
    with pytest.raises(InsulaError, match="this host has none"):
        await host.do("start")
    assert await remembered(host) == {1}
    install_uefi(host)
    await host.do("start")
    assert host.seen().phase is Phase.RUNNING
    assert await remembered(host) == {1}


def test_a_document_from_before_boots_by_bios() -> None:
    fields = {
        "uid": "0" * 16,
        "name": "old",
        "created": "2026-01-02T00:00:00Z",
        "image": {"name": "micro", "digest": "sha256:0"},
        "cpus": 1,
        "memory_bytes": 2**29,
        "boot": "direct",
        "machine_type": "pc",
    }
    assert Machine.model_validate(fields).firmware == "bios"
