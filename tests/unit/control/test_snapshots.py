"""Snapshots, suspend and merging on a host without QEMU: what is kept, what is refused, and every step failed
and died at once, with real layers of a real volume."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from insula.control.recovery import recover_ledger
from insula.control.volumes import TooManyVolumes
from insula.kit.run import run
from insula.model.device.disk import SLOTS, Disk
from insula.model.observation import Phase
from insula.model.operation import OperationState
from insula.model.snapshot import Snapshot
from insula.model.volume import Volume
from insula.node.procedure import DaemonDied
from insula.storage.images import ImageStore
from tests.support.host import FakeHost, publish_fake_image
from tests.unit.control.test_faults import Scripted, faults_reached

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed"),
]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost(tmp_path / "home")
    publish_fake_image(ImageStore(host.home.images))
    yield host
    await host.close()


async def furnish(host: FakeHost, faults: Scripted | None = None) -> None:
    """A machine 'web' that runs, with a volume 'data' on which the first place is written."""
    await host.boot(faults)
    await host.do("volume-create", "data", size="1MiB")
    await host.run(volumes=["data"])
    await write(host, 1)


def disk(host: FakeHost) -> Path:
    assert host.store is not None
    stored = host.store.find(Volume, "default", "data")
    assert stored is not None
    return host.home.volume(stored.document.uid) / "disk.qcow2"


async def write(host: FakeHost, place: int) -> None:
    """The guest fills the 64 KiB at this place with its number."""
    await run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P {place} {place * 64}k 64k", str(disk(host))])


async def places(host: FakeHost) -> set[int]:
    """Which places the guest finds filled."""
    found = set()
    for place in range(1, 8):
        said = await run(["qemu-io", "-r", "-f", "qcow2", "-c", f"read -v {place * 64}k 1", str(disk(host))])
        byte = int(said.stdout.split(b":", 1)[1].split()[0], 16)
        assert byte in (0, place)
        found |= {byte} - {0}
    return found


def snapshots(host: FakeHost) -> dict[str, Snapshot]:
    assert host.store is not None
    return {stored.document.name: stored.document for stored in host.store.all(Snapshot)}


def layers(host: FakeHost) -> int:
    return sum(not path.is_symlink() for path in disk(host).parent.glob("*.qcow2"))


async def keep(host: FakeHost, name: str, **parameters: Any) -> None:
    operation = await host.do("snapshot-create", name=name, **parameters)
    assert operation.state is OperationState.DONE, operation.problem


async def merged(host: FakeHost) -> None:
    """Until nothing is merged any more."""
    assert host.control is not None
    for operation in await host.control.list_operations(active=True):
        await host.ended(operation.uid)


async def require_whole(host: FakeHost) -> None:
    """Nothing is left over, every layer is clean, and what is listed can be restored."""
    assert sorted(path.name for path in host.home.snapshots.glob("*")) == sorted(
        snapshot.uid for snapshot in snapshots(host).values()
    )
    assert all(snapshot.whole for snapshot in snapshots(host).values())
    for path in [*host.home.volumes.rglob("*.qcow2"), *host.home.snapshots.rglob("*.qcow2")]:
        assert (await run(["qemu-img", "check", "-q", str(path)], check=False)).exit_status == 0, path
    alive = [machine for machine in host.world.machines.values() if machine.exit.value is None]
    assert len(alive) == host.seen().phase.has_process


class TestWhatIsKept:
    async def test_a_machine_goes_back_and_forth(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "one")
        await write(host, 2)
        await keep(host, "two", memory=True)
        await write(host, 3)
        assert (await host.do("snapshot-restore", name="one")).state is OperationState.DONE
        assert (host.seen().phase, await places(host)) == (Phase.STOPPED, {1})
        await write(host, 4)
        assert (await host.do("snapshot-restore", name="two")).state is OperationState.DONE
        assert (host.seen().phase, await places(host)) == (Phase.RUNNING, {1, 2})
        assert (await host.do("snapshot-restore", name="one", start=True)).state is OperationState.DONE
        assert (host.seen().phase, await places(host)) == (Phase.RUNNING, {1})
        await require_whole(host)

    async def test_the_tree_knows_who_stands_on_whom(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "one")
        await keep(host, "two")
        await host.do("snapshot-restore", name="one")
        await keep(host, "three")
        assert host.control is not None
        shown = host.control.snapshots.all("default", "web")
        assert [(state.document.name, state.depth) for state in shown] == [
            ("one", 0),
            ("two", 1),
            ("three", 1),
        ]
        assert [state.document.name for state in shown if state.current] == ["three"]
        await host.do("snapshot-rm", name="one")
        shown = host.control.snapshots.all("default", "web")
        assert [(state.document.name, state.depth) for state in shown] == [("two", 0), ("three", 0)]

    async def test_a_machine_that_was_paused_is_paused_again(self, host: FakeHost) -> None:
        await furnish(host)
        await host.do("pause")
        await keep(host, "still", memory=True)
        await host.do("resume")
        assert (await host.do("snapshot-restore", name="still")).state is OperationState.DONE
        assert host.seen().phase is Phase.PAUSED
        resumed = await host.do("resume")
        assert resumed.outcome is not None
        assert set(resumed.outcome["renewed"]["renewed"]) == {"random", "clock"}

    async def test_who_goes_on_from_memory_is_told_the_time_and_other_random_numbers(
        self, host: FakeHost
    ) -> None:
        await furnish(host)
        await keep(host, "one", memory=True)
        restored = await host.do("snapshot-restore", name="one")
        assert restored.outcome is not None
        assert set(restored.outcome["renewed"]["renewed"]) == {"random", "clock"}

    async def test_the_guest_is_quiesced_and_let_go(self, host: FakeHost) -> None:
        await furnish(host)
        host.world.machine("web").file_systems.count = 2
        await keep(host, "one", quiesce=True)
        assert snapshots(host)["one"].quiesced
        assert host.world.machine("web").file_systems.log == ["freeze", "thaw"]
        host.world.machine("web").file_systems.fails = "/: no"
        operation = await host.do("snapshot-create", name="two", quiesce=True)
        assert operation.state is OperationState.DONE
        assert not snapshots(host)["two"].quiesced
        assert any("not quiesced" in note for note in operation.notes)

    async def test_layers_are_merged_once_nobody_needs_them(self, host: FakeHost) -> None:
        await furnish(host)
        for place, name in ((2, "one"), (3, "two"), (4, "three")):
            await keep(host, name)
            await write(host, place)
        assert layers(host) == 4
        await host.do("snapshot-rm", name="two")
        await merged(host)
        assert layers(host) == 3
        await host.do("stop")
        await host.do("snapshot-rm", name="one")
        await host.do("snapshot-rm", name="three")
        await merged(host)
        assert (layers(host), await places(host)) == (1, {1, 2, 3, 4})
        machine = host.machine()
        assert machine is not None
        assert (machine.unmerged, machine.snapshot) == (False, None)

    async def test_a_volume_has_its_size_again(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "small")
        await host.do("volume-resize", "data", size="2MiB")
        assert host.volumes() == {"data": 2**21}
        await host.do("snapshot-restore", name="small")
        assert host.volumes() == {"data": 2**20}

    async def test_a_volume_attached_since_is_detached_and_one_detached_is_back(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "one")
        await host.do("detach", volume="data")
        await host.do("volume-create", "late", size="1MiB")
        await host.do("attach", volume="late")
        assert host.control is not None
        assert host.control.snapshots.losses("default", "web", "one").detached == ("late",)
        assert (await host.do("snapshot-restore", name="one", start=True)).state is OperationState.DONE
        machine = host.machine()
        assert machine is not None
        names = [d.volume.name for d in machine.devices if getattr(d, "volume", None)]  # type: ignore[attr-defined]
        assert names == ["data"]
        assert list(host.world.machine("web").disks.open) == [
            device.id for device in machine.devices if device.device == "disk"
        ]

    async def test_what_would_be_lost_is_known_before(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "one")
        for place in range(2, 8):
            await write(host, place)
        assert host.control is not None
        losses = host.control.snapshots.losses("default", "web", "one")
        assert losses.memory
        assert losses.written_bytes["data"] >= 6 * 65536
        assert losses.detached == ()

    async def test_removing_a_machine_removes_its_snapshots(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "one", memory=True)
        await host.do("rm", force=True)
        assert snapshots(host) == {}
        assert list(host.home.snapshots.iterdir()) == []
        assert await places(host) == {1}

    async def test_a_lost_ledger_is_made_again_with_snapshots_and_what_is_suspended(
        self, host: FakeHost
    ) -> None:
        await furnish(host)
        await keep(host, "one", memory=True)
        await write(host, 2)
        await host.do("suspend")
        before = snapshots(host)
        await host.close()
        host.home.ledger.unlink()
        told = await recover_ledger(host.home)
        assert any("'one'" in line for line in told)
        await host.boot()
        assert snapshots(host) == before
        assert host.seen().phase is Phase.SUSPENDED
        await host.do("start")
        assert host.world.machine("web").plan.memory.saved is not None
        await host.do("snapshot-restore", name="one")
        assert await places(host) == {1}


class TestForksOfMachinesWithVolumes:
    async def test_a_sibling_has_a_copy_of_what_the_machine_writes(self, host: FakeHost) -> None:
        await furnish(host)
        forked = await host.do("fork", count=1, names="twin")
        assert forked.state is OperationState.DONE, forked.problem
        await merged(host)
        assert host.store is not None
        twin = host.machine("twin")
        assert twin is not None
        (copy,) = [device for device in twin.devices if device.device == "disk"]
        path = host.home.machine(twin.uid) / copy.file  # type: ignore[attr-defined]
        await write(host, 2)
        assert await places(host) == {1, 2}
        said = await run(
            ["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 1 64k 64k", "-c", "read -P 0 128k 64k", str(path)]
        )
        assert b"failed" not in said.stdout
        assert list(host.world.machine("twin").disks.open) == [copy.id]
        await keep(host, "one", memory=True)
        operation = await host.do("snapshot-create", "twin", name="of-the-copy")
        assert operation.state is OperationState.DONE, operation.problem
        assert (await host.do("snapshot-restore", "twin", name="of-the-copy", start=True)).problem is None
        assert (await host.do("fork", "twin", count=1, names="grandchild")).problem is None
        await merged(host)
        assert (await host.do("volume-resize", "data", size="2MiB")).problem is None
        for name in ("web", "twin", "grandchild"):
            await host.do("rm", name, force=True)
        assert list(host.home.machines.iterdir()) == []
        assert host.volumes() == {"data": 2**21}
        assert await places(host) == {1, 2}

    async def test_what_the_machine_only_reads_is_shared(self, host: FakeHost) -> None:
        await host.boot()
        await host.do("volume-create", "data", size="1MiB")
        await host.run(volumes=["data:ro"])
        assert (await host.do("fork", count=2, names="twin{n}")).problem is None
        await merged(host)
        assert host.control is not None
        (volume,) = await host.control.list_volumes(None)
        assert sorted(volume.attached_to) == [("twin1", True), ("twin2", True), ("web", True)]


class TestPlaces:
    async def test_a_volume_keeps_its_place_on_its_bus(self, host: FakeHost) -> None:
        await furnish(host)
        for name in ("two", "three"):
            await host.do("volume-create", name, size="1MiB")
            await host.do("attach", volume=name)
        await host.do("detach", volume="data")
        await host.do("volume-create", "four", size="1MiB")
        await host.do("attach", volume="four")
        machine = host.machine()
        assert machine is not None
        slots = {d.volume.name: d.slot for d in machine.devices if isinstance(d, Disk) and d.volume}
        assert slots == {"two": 0x1B, "three": 0x1A, "four": 0x1C}

    async def test_a_bus_that_is_full_refuses_and_names_the_other(self, host: FakeHost) -> None:
        await host.boot()
        names = [f"v{number}" for number in range(len(SLOTS["virtio"]) + 1)]
        for name in names:
            await host.do("volume-create", name, size="1MiB")
        await host.run(volumes=names[:-1])
        with pytest.raises(TooManyVolumes, match="17 on the virtio bus"):
            await host.do("attach", volume=names[-1])
        assert (await host.do("attach", volume=names[-1], bus="scsi")).problem is None


class TestSuspend:
    async def test_it_goes_on_where_it_was(self, host: FakeHost) -> None:
        await furnish(host)
        assert (await host.do("suspend")).state is OperationState.DONE
        assert host.seen().phase is Phase.SUSPENDED
        started = await host.do("start")
        assert started.state is OperationState.DONE
        assert started.outcome is not None
        assert set(started.outcome["renewed"]["renewed"]) == {"random", "clock"}
        assert host.world.machine("web").plan.memory.saved is not None
        await host.do("stop")
        await host.do("start")
        assert host.world.machine("web").plan.memory.saved is None

    async def test_a_daemon_in_between_changes_nothing(self, host: FakeHost) -> None:
        await furnish(host)
        await host.do("suspend")
        await host.close()
        await host.boot()
        assert host.seen().phase is Phase.SUSPENDED
        await host.do("start")
        assert host.world.machine("web").plan.memory.saved is not None

    async def test_memory_of_disks_that_were_written_since_is_refused(self, host: FakeHost) -> None:
        await furnish(host)
        await host.do("suspend")
        await write(host, 2)
        refused = await host.do("start")
        assert refused.problem is not None
        assert refused.problem["code"] == "state-does-not-fit"
        assert "--cold" in refused.problem["hint"]
        assert (await host.do("start", cold=True)).state is OperationState.DONE
        assert host.world.machine("web").plan.memory.saved is None

    async def test_memory_of_another_shape_is_refused(self, host: FakeHost) -> None:
        await furnish(host)
        await host.do("suspend")
        from dataclasses import replace

        from insula.model.observation import AcceleratorFact

        host.world.facts = replace(
            host.world.facts, auto=AcceleratorFact(name="kvm", reason="new"), kvm_refused=""
        )
        refused = await host.do("start")
        assert refused.problem is not None
        assert refused.problem["code"] == "state-does-not-fit"
        assert "accelerator" in refused.problem["detail"]

    async def test_disks_of_a_snapshot_are_restored_where_its_memory_does_not_fit(
        self, host: FakeHost
    ) -> None:
        from dataclasses import replace

        from insula.model.observation import AcceleratorFact

        await furnish(host)
        await keep(host, "one", memory=True)
        await write(host, 2)
        kvm = AcceleratorFact(name="kvm", reason="new")
        host.world.facts = replace(host.world.facts, auto=kvm, kvm_refused="")
        refused = await host.do("snapshot-restore", name="one")
        assert refused.problem is not None
        assert refused.problem["code"] == "state-does-not-fit"
        assert (host.seen().phase, await places(host)) == (Phase.RUNNING, {1, 2})
        assert (await host.do("snapshot-restore", name="one", disks_only=True)).problem is None
        assert await places(host) == {1}

    async def test_what_would_change_its_disks_is_refused(self, host: FakeHost) -> None:
        await furnish(host)
        await host.do("suspend")
        for verb, parameters in {
            "snapshot-create": {"name": "one"},
            "detach": {"volume": "data"},
            "volume-resize": {"size": "2MiB"},
            "stop": {},
            "suspend": {},
        }.items():
            with pytest.raises(Exception, match="suspend"):
                await host.do(verb, "data" if verb == "volume-resize" else "web", **parameters)

    async def test_a_restore_loses_suspended_memory(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "one")
        await host.do("suspend")
        assert (await host.do("snapshot-restore", name="one")).state is OperationState.DONE
        assert host.seen().phase is Phase.STOPPED
        await host.do("start")
        assert host.world.machine("web").plan.memory.saved is None


class TestRefusals:
    async def refused(self, host: FakeHost, verb: str, name: str = "web", /, **parameters: Any) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await host.do(verb, name, **parameters)
        return str(caught.value.code)  # type: ignore[attr-defined]

    async def test_names_are_unique_within_a_machine(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "one")
        assert await self.refused(host, "snapshot-create", name="one") == "snapshot-name-taken"
        await host.run("other")
        operation = await host.do("snapshot-create", "other", name="one", memory=True)
        assert operation.state is OperationState.DONE

    async def test_what_is_not_there(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "before")
        assert await self.refused(host, "snapshot-restore", name="befor") == "snapshot-not-found"
        assert await self.refused(host, "snapshot-rm", name="none") == "snapshot-not-found"

    async def test_what_holds_nothing_or_contradicts_itself(self, host: FakeHost) -> None:
        await host.boot()
        await host.run()
        assert await self.refused(host, "snapshot-create", name="one") == "bad-snapshot"
        assert await self.refused(host, "snapshot-create", memory=True, quiesce=True) == "bad-snapshot"
        await host.do("stop")
        assert await self.refused(host, "snapshot-create", name="one", memory=True) == "bad-snapshot"
        assert await self.refused(host, "snapshot-create", name="No_Name") == "bad-name"

    async def test_a_volume_in_a_snapshot_is_not_removed(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "one")
        await host.do("detach", volume="data")
        assert await self.refused(host, "volume-rm", "data") == "volume-in-snapshot"
        await host.do("snapshot-rm", name="one")
        assert (await host.do("volume-rm", "data")).state is OperationState.DONE

    async def test_a_volume_that_another_machine_has_is_not_restored(self, host: FakeHost) -> None:
        await furnish(host)
        await keep(host, "one")
        await host.do("detach", volume="data")
        await host.run("other", volumes=["data"])
        assert await self.refused(host, "snapshot-restore", name="one") == "volume-in-use"


@dataclass(frozen=True)
class Case:
    """verb, its parameters; phase, the filled places and the snapshots before and after it.

    no_way_back: where a failure leaves what was reached.
    """

    verb: str
    parameters: dict[str, Any]
    prepare: str
    before: tuple[Phase, set[int], set[str]]
    after: tuple[Phase, set[int], set[str]]
    steps: tuple[str, ...]
    no_way_back: tuple[str, ...] = ()


ON, OFF = Phase.RUNNING, Phase.STOPPED
CASES = {
    "disks of a running machine": Case(
        "snapshot-create",
        {"name": "new"},
        "running",
        (ON, {1, 2}, {"one"}),
        (ON, {1, 2}, {"one", "new"}),
        ("take",),
    ),
    "memory of a running machine": Case(
        "snapshot-create",
        {"name": "new", "memory": True},
        "running",
        (ON, {1, 2}, {"one"}),
        (ON, {1, 2}, {"one", "new"}),
        ("take",),
    ),
    "disks of a stopped machine": Case(
        "snapshot-create",
        {"name": "new"},
        "stopped",
        (OFF, {1, 2}, {"one"}),
        (OFF, {1, 2}, {"one", "new"}),
        ("take",),
    ),
    "restore of disks": Case(
        "snapshot-restore",
        {"name": "one", "disks_only": True},
        "stopped",
        (OFF, {1, 2}, {"one"}),
        (OFF, {1}, {"one"}),
        ("prepare", "end the process", "swap", "let go"),
        ("after let go",),
    ),
    "restore of memory": Case(
        "snapshot-restore",
        {"name": "one"},
        "stopped",
        (OFF, {1, 2}, {"one"}),
        (ON, {1}, {"one"}),
        ("prepare", "end the process", "swap", "start: prepare", "start: launch", "start: run", "let go"),
        ("after let go",),
    ),
    "removal": Case(
        "snapshot-rm",
        {"name": "one"},
        "running",
        (ON, {1, 2}, {"one"}),
        (ON, {1, 2}, set()),
        ("remove files",),
        ("after remove files",),
    ),
    "suspend": Case(
        "suspend",
        {},
        "running",
        (ON, {1, 2}, {"one"}),
        (Phase.SUSPENDED, {1, 2}, {"one"}),
        ("save memory", "end the process"),
        ("after end the process",),
    ),
    "start of what is suspended": Case(
        "start",
        {},
        "suspended",
        (Phase.SUSPENDED, {1, 2}, {"one"}),
        (ON, {1, 2}, {"one"}),
        ("prepare", "launch", "run"),
    ),
}
PLACES = [
    (case, f"{when} {step}") for case in CASES for step in CASES[case].steps for when in ("before", "after")
]


async def prepare(host: FakeHost, state: str, faults: Scripted) -> None:
    await furnish(host, faults)
    await keep(host, "one", memory=True)
    await write(host, 2)
    if state in ("stopped", "suspended"):
        await host.do("stop" if state == "stopped" else "suspend")
    faults.passed.clear()


async def state_of(host: FakeHost) -> tuple[Phase, set[int], set[str]]:
    await merged(host)
    return host.seen().phase, await places(host), set(snapshots(host))


@pytest.mark.parametrize("name", CASES)
async def test_the_list_of_places_is_complete(host: FakeHost, name: str) -> None:
    case = CASES[name]
    faults = Scripted(verb=case.verb)
    await prepare(host, case.prepare, faults)
    assert await state_of(host) == case.before
    await host.do(case.verb, **case.parameters)
    assert faults.passed == [f"{when} {step}" for step in case.steps for when in ("before", "after")]
    assert await state_of(host) == case.after
    await merged(host)
    await require_whole(host)


@pytest.mark.parametrize(("name", "place"), PLACES)
async def test_a_failure_anywhere_is_undone_and_told(host: FakeHost, name: str, place: str) -> None:
    case = CASES[name]
    faults = Scripted(verb=case.verb)
    await prepare(host, case.prepare, faults)
    faults.place = place
    failed = await host.do(case.verb, **case.parameters)
    assert failed.state is OperationState.FAILED
    assert failed.problem is not None
    assert "injected" in failed.problem["detail"]
    assert not [note for note in failed.notes if "could not be undone" in note]
    assert await state_of(host) == (case.after if place in case.no_way_back else case.before)
    await require_whole(host)
    if await state_of(host) != case.after:
        again = await host.do(case.verb, **case.parameters)
        assert again.state is OperationState.DONE, again.problem
    assert await state_of(host) == case.after
    await merged(host)
    await require_whole(host)


@pytest.mark.parametrize(("name", "place"), PLACES)
async def test_a_daemon_that_dies_anywhere_is_followed_by_one_that_finishes(
    host: FakeHost, name: str, place: str
) -> None:
    case = CASES[name]
    faults = Scripted(verb=case.verb, error=DaemonDied)
    await prepare(host, case.prepare, faults)
    faults.place = place
    asked = await host.submit(case.verb, **case.parameters)
    await faults_reached(faults)
    await host.die()
    await host.boot()
    operation = await host.ended(asked.uid)
    assert operation.state is OperationState.DONE, operation.problem
    assert await state_of(host) == case.after
    await merged(host)
    await require_whole(host)


@pytest.mark.parametrize("place", ["before merge", "after merge"])
@pytest.mark.parametrize("error", [OSError, DaemonDied])
async def test_a_merge_that_failed_or_died_is_taken_up_again(
    host: FakeHost, place: str, error: type[BaseException]
) -> None:
    faults = Scripted(verb="merge", error=lambda: error("injected"))
    await prepare(host, "running", faults)
    faults.place = place
    await host.do("snapshot-rm", name="one")
    await faults_reached(faults)
    if error is DaemonDied:
        await host.die()
        await host.boot()
    await merged(host)
    machine = host.machine()
    assert machine is not None
    if error is OSError:
        assert machine.unmerged  # repair sees to it
        assert (await host.do("merge")).state is OperationState.DONE
    assert (layers(host), await places(host)) == (1, {1, 2})
    await require_whole(host)


async def test_a_suspended_machine_that_died_before_it_ran_can_go_on_again(host: FakeHost) -> None:
    faults = Scripted(verb="start", error=DaemonDied)
    await prepare(host, "suspended", faults)
    faults.place = "before run"
    asked = await host.submit("start")
    await faults_reached(faults)
    await host.die()
    host.world.machine("web").crash()
    await host.boot()
    await host.ended(asked.uid)
    if host.seen().phase is not Phase.RUNNING:
        assert (await host.do("start")).state is OperationState.DONE
    assert host.world.machine("web").plan.memory.saved is not None
