"""Volumes and the machines that have them: who may take one, what is refused, what outlives what."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from insula.control.recovery import recover_ledger
from insula.control.volumes import VolumeCannotShrink, VolumeInUse, VolumeNameTaken, VolumeNotFound
from insula.kit.errors import InsulaError
from insula.kit.run import run
from insula.model.base import BadDocument, BadName
from insula.model.device.disk import Disk
from insula.model.observation import Phase
from insula.model.operation import Operation, OperationState
from insula.planner.lifecycle import WrongPhase
from tests.support.host import FakeHost

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def volumes_of(host: FakeHost, name: str = "web") -> list[str]:
    machine = host.machine(name)
    assert machine is not None
    return [d.volume.name for d in machine.devices if isinstance(d, Disk) and d.volume is not None]


async def test_one_writes_or_many_read(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web")
    await host.run("db")
    await host.do("attach", "web", volume="data")
    for read_only in (False, True):
        with pytest.raises(VolumeInUse) as caught:
            await host.submit("attach", "db", volume="data", read_only=read_only)
        assert caught.value.message == ("Cannot attach volume 'data': it is attached to machine 'web'.")
    assert (await host.do("detach", "web", volume="data")).state is OperationState.DONE
    for name in ("web", "db"):
        assert (await host.do("attach", name, volume="data", read_only=True)).problem is None
    await host.run("third")
    with pytest.raises(VolumeInUse, match="attached read-only to machine 'web' and 1 more"):
        await host.submit("attach", "third", volume="data")


async def test_of_two_who_take_a_volume_at_once_one_gets_it(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web")
    await host.run("db")
    asked = await asyncio.gather(
        *(host.submit("attach", name, volume="data") for name in ("web", "db")), return_exceptions=True
    )
    taken = [answer for answer in asked if isinstance(answer, Operation)]
    assert len(taken) == 1
    assert len([answer for answer in asked if isinstance(answer, InsulaError)]) == 1
    await host.ended(taken[0].uid)
    assert sorted([*volumes_of(host, "web"), *volumes_of(host, "db")]) == ["data"]


async def test_a_machine_gives_its_volumes_back_when_it_is_removed(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web", volumes=["data:scsi"])
    with pytest.raises(VolumeInUse, match="Cannot remove volume 'data'"):
        await host.submit("volume-rm", "data")
    with pytest.raises(VolumeInUse, match="may be writing"):
        await host.submit("volume-clone", "data", name="copy")
    await host.do("rm", force=True)
    assert host.volumes() == {"data": 2**20}
    assert (await host.do("volume-rm", "data")).problem is None
    assert host.volumes() == {}
    assert list(host.home.volumes.iterdir()) == []


async def test_a_guest_that_does_not_look_at_its_volume_is_told_of(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web")
    assert not (await host.do("attach", volume="data")).notes
    await host.do("detach", volume="data")
    host.world.script.heeds_disks = False
    operation = await host.do("attach", volume="data")
    assert operation.problem is None
    assert operation.notes == (
        "The guest has not looked at the disk within 5.0s: it still boots, or has no driver.",
    )
    assert volumes_of(host) == ["data"]


async def test_a_guest_that_stands_need_not_look_at_its_volume(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web")
    await host.do("pause")
    host.world.script.heeds_disks = False
    assert not (await host.do("attach", volume="data")).notes


async def test_a_guest_that_does_not_let_go_keeps_its_volume(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web", volumes=["data"])
    host.world.script.heeds_disks = False
    operation = await host.do("detach", volume="data")
    assert operation.problem is not None
    assert operation.problem["code"] == "disk-not-released"
    assert volumes_of(host) == ["data"]
    await host.do("kill")
    assert (await host.do("detach", volume="data")).problem is None
    assert volumes_of(host) == []


async def test_a_volume_of_a_machine_at_rest_grows_too(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.do("create", spec={"volumes": ["data"]})
    assert (await host.do("volume-resize", "data", size="3MiB")).problem is None
    assert host.volumes() == {"data": 3 * 2**20}
    with pytest.raises(VolumeCannotShrink, match="cannot shrink to 2MiB"):
        await host.submit("volume-resize", "data", size="2MiB")


async def test_a_full_disk_is_told_by_the_volumes_name(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web", volumes=["data"])
    disk = host.world.machine("web").disks
    host.world.machine("web").fail_io(f"The host's storage under disk '{next(iter(disk.open))}' is full.")
    seen = await host.until(Phase.PAUSED)
    assert seen.reason == "The host's storage under volume 'data' is full."
    with pytest.raises(WrongPhase, match="cannot let go"):
        await host.submit("detach", volume="data")
    assert (await host.do("resume")).problem is None


@pytest.mark.parametrize(
    ("verb", "name", "parameters", "error"),
    [
        ("volume-create", "Not A Label", {"size": "1MiB"}, BadName),
        ("volume-create", "other", {"size": "1"}, BadDocument),
        ("volume-create", "other", {"size": 2**20 + 1}, BadDocument),
        ("volume-create", "data", {"size": "1MiB"}, VolumeNameTaken),
        ("volume-clone", "data", {"name": "data"}, VolumeNameTaken),
        ("volume-resize", "date", {"size": "2MiB"}, VolumeNotFound),
        ("attach", "web", {"volume": "dat"}, VolumeNotFound),
        ("attach", "web", {"volume": "data", "bus": "ide"}, BadDocument),
        ("create", "db", {"spec": {"volumes": ["data", "data:ro"]}}, VolumeInUse),
        ("create", "db", {"spec": {"volumes": ["data:nonsense"]}}, BadDocument),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_changes(
    host: FakeHost, verb: str, name: str, parameters: dict[str, Any], error: type[Exception]
) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.do("create")
    before = sorted(host.root.rglob("*"))
    with pytest.raises(error):
        await host.submit(verb, name, **parameters)
    assert host.volumes() == {"data": 2**20}
    assert volumes_of(host) == []
    assert sorted(host.root.rglob("*")) == before


async def test_a_lost_ledger_is_made_again_with_its_volumes(host: FakeHost) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.do("volume-create", "free", size="1MiB")
    await host.do("create", spec={"volumes": ["data"]})
    await host.do("attach", volume="free")
    await host.do("detach", volume="free")
    await host.do("volume-resize", "free", size="2MiB")
    await host.close()
    told = await recover_ledger(host.home)
    assert "Volume 'data' was recovered." in told
    await host.boot()
    assert host.volumes() == {"data": 2**20, "free": 2**21}
    assert volumes_of(host) == ["data"]


@pytest.mark.parametrize("words", ["No space left on device", ""])
async def test_a_copy_that_cannot_be_finished_leaves_nothing(
    host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """A disk that fills up in the middle, and (without words) a qemu-img that is killed in the middle."""
    await host.do("volume-create", "data", size="1MiB")
    program = tmp_path / "bin" / "qemu-img"
    program.parent.mkdir()
    end = f'echo "qemu-img: error: {words}" >&2; exit 1' if words else "kill -9 $$"
    program.write_text(f'#!/bin/sh\nfor last; do :; done\nhead -c 999 /dev/zero >"$last"\n{end}\n')
    program.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        operation = await host.do("volume-clone", "data", name="copy")
    assert operation.problem is not None
    assert operation.problem["code"] == ("disk-full" if words else "command-failed")
    assert host.volumes() == {"data": 2**20}
    assert len(list(host.home.volumes.iterdir())) == 1
    assert (await host.do("volume-clone", "data", name="copy")).problem is None
    for path in host.home.volumes.rglob("*.qcow2"):
        assert (await run(["qemu-img", "check", "-q", str(path)])).exit_status == 0


@pytest.mark.parametrize("verb", ["attach", "detach"])
async def test_a_monitor_that_is_killed_meanwhile_holds_no_volume(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web", volumes=["data"] if verb == "detach" else [])
    machine = host.world.machine("web")
    work = getattr(machine.disks, verb)

    async def killed(*arguments: Any) -> None:
        machine.crash(128 + 9)
        await work(*arguments)

    monkeypatch.setattr(machine.disks, verb, killed)
    operation = await host.do(verb, volume="data")
    assert operation.state is (OperationState.FAILED if verb == "attach" else OperationState.DONE)
    assert host.seen().phase is Phase.CRASHED
    assert volumes_of(host) == []
    assert (await host.do("volume-rm", "data")).problem is None


async def test_an_operation_begins_once_its_predecessor_has_been_concluded(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start behind an attach that failed must see a document without the disk."""
    assert host.control is not None
    assert host.store is not None
    await host.do("volume-create", "data", size="1MiB")
    await host.run("web")
    machine = host.world.machine("web")
    begun, ended, gate = asyncio.Event(), asyncio.Event(), asyncio.Event()
    conclude = host.control._concluder.conclude

    async def killed(disk: Disk) -> None:
        begun.set()
        await ended.wait()
        machine.crash(128 + 9)
        raise OSError("injected")

    async def held(operation: Operation) -> None:
        await gate.wait()
        await conclude(operation)

    monkeypatch.setattr(machine.disks, "attach", killed)
    monkeypatch.setattr(host.control._concluder, "conclude", held)
    attach = await host.submit("attach", volume="data")
    await begun.wait()
    start = await host.submit("start")
    ended.set()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await host.store.wait(
                Operation, start.uid, lambda o: o is not None and o.state is not OperationState.QUEUED
            )
    gate.set()
    assert (await host.ended(attach.uid)).state is OperationState.FAILED
    assert (await host.ended(start.uid)).state is OperationState.DONE
    assert host.world.machine("web").disks.open == {}
    assert volumes_of(host) == []
