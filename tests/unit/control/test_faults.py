"""Every step of every operation fails once, and the world is back; dies once, and the next daemon goes on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from insula.kit.run import run
from insula.model.device.disk import Disk
from insula.model.observation import Phase
from insula.model.operation import OperationState
from insula.node.procedure import DaemonDied, Faults
from insula.storage.images import ImageStore
from insula.storage.volumes import virtual_size
from tests.support.homes import check
from tests.support.host import FakeHost, publish_fake_image, publish_medium

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@dataclass
class Scripted(Faults):
    """Raises once at `place`; remembers every place that was passed."""

    place: str | None = None
    error: Callable[[], BaseException] = lambda: OSError("injected")
    verb: str = ""
    passed: list[str] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def before(self, verb: str, step: str) -> None:
        self._pass(verb, f"before {step}")

    def after(self, verb: str, step: str) -> None:
        self._pass(verb, f"after {step}")

    def _pass(self, verb: str, place: str) -> None:
        if verb != self.verb:
            return
        self.passed.append(place)
        if place == self.place:
            self.place = None
            self.reached.set()
            raise self.error()


# verb -> how the machine is before it, its parameters, and the phase after it has succeeded (None: gone)
CASES: dict[str, tuple[str, dict[str, Any], Phase | None]] = {
    "create": ("absent", {"start": True}, Phase.RUNNING),
    "start": ("created", {}, Phase.RUNNING),
    "stop": ("running", {}, Phase.STOPPED),
    "restart": ("running", {}, Phase.RUNNING),
    "reset": ("running", {}, Phase.RUNNING),
    "pause": ("running", {}, Phase.PAUSED),
    "resume": ("paused", {}, Phase.RUNNING),
    "kill": ("running", {}, Phase.STOPPED),
    "rm": ("running", {"force": True}, None),
    "attach": ("with a volume", {"volume": "data"}, Phase.RUNNING),
    "detach": ("attached", {"volume": "data"}, Phase.RUNNING),
    "volume-resize": ("attached", {"size": "2MiB"}, Phase.RUNNING),
    "cdrom-insert": ("with other in its drive", {"image": "tools"}, Phase.RUNNING),
    "cdrom-eject": ("with tools in its drive", {}, Phase.RUNNING),
    "fork": ("running", {"count": 2, "names": "sibling{n}"}, Phase.RUNNING),
}
# verb -> what there is before it besides the source, its parameters, sizes of volumes after it
VOLUME_CASES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "volume-create": ({"size": "1MiB"}, {"data": 2**20}),
    "volume-clone": ({"name": "copy"}, {"data": 2**20, "copy": 2**20}),
    "volume-resize": ({"size": "2MiB"}, {"data": 2**21}),
    "volume-rm": ({}, {}),
}
VOLUME_PLACES = [
    (verb, f"{when} {step}")
    for verb, steps in {
        "volume-create": ["make directory", "make disk"],
        "volume-clone": ["make directory", "copy disk"],
        "volume-resize": ["grow disk"],
        "volume-rm": ["remove files"],
    }.items()
    for step in steps
    for when in ("before", "after")
]
TARGETS = {"volume-resize": "data"}  # every other verb's target is the machine
PLACES = {
    "create": [
        "make directory",
        "find template",
        "make disks",
        "make seed",
        "record",
        "prepare",
        "launch",
        "run",
    ],
    "start": ["prepare", "launch", "run"],
    "stop": ["ask the guest", "wait"],
    "restart": ["ask the guest", "wait", "prepare", "launch", "run"],
    "reset": ["reset"],
    "pause": ["pause"],
    "resume": ["resume"],
    "kill": ["kill"],
    "rm": ["end the process", "remove files"],
    "attach": ["plug"],
    "detach": ["unplug"],
    "volume-resize": ["grow disk"],
    "cdrom-insert": ["insert"],
    "cdrom-eject": ["eject"],
    "fork": ["capture"],
}
EVERY_PLACE = [
    (verb, f"{when} {step}")
    for verb, steps in PLACES.items()
    for step in steps
    for when in ("before", "after")
]
# Verbs that go one way: what a failed step had already done stays done, and the machine says so.
ONE_WAY = ("stop", "restart", "kill", "rm", "reset", "detach", "volume-resize", "cdrom-eject")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost(tmp_path / "home")
    publish_fake_image(ImageStore(host.home.images))
    yield host
    await host.close()


async def bring_to(host: FakeHost, state: str) -> None:
    if state in ("with a volume", "attached") and "data" not in host.volumes():
        if shutil.which("qemu-img") is None:
            pytest.skip("qemu-img is not installed")
        await host.do("volume-create", "data", size="1MiB")
    if state in ("created", "running", "paused", "with a volume", "attached"):
        await host.do("create", start=state != "created")
    if state == "paused":
        await host.do("pause")
    if state == "attached":
        await host.do("attach", volume="data")
    if state.endswith("in its drive"):
        for image in ("tools", "other"):
            publish_medium(ImageStore(host.home.images), image)
        await host.do("create", spec={"cdrom": state.split()[1]}, start=True)


def files(host: FakeHost) -> list[str]:
    return sorted(str(path) for path in host.home.machines.rglob("*"))


@pytest.fixture(params=[0, 2**30], ids=["booted", "forked"])
async def forking_host(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[FakeHost]:
    """A host whose launches boot; one whose launches are forks of a template."""
    host = FakeHost(tmp_path / "home", template_budget=request.param)
    publish_fake_image(ImageStore(host.home.images))
    yield host
    await host.close()


async def test_the_list_of_places_is_complete(host: FakeHost) -> None:
    for verb, (state, parameters, _) in CASES.items():
        faults = Scripted(verb=verb)
        await host.boot(faults)
        await bring_to(host, state)
        faults.passed.clear()
        await host.do(verb, TARGETS.get(verb, "web"), **parameters)
        expected = [f"{when} {step}" for step in PLACES[verb] for when in ("before", "after")]
        assert faults.passed == expected, verb
        if host.machine() is not None:
            await host.do("rm", force=True)
        await host.close()
    await host.boot()


@pytest.mark.parametrize(("verb", "place"), EVERY_PLACE)
async def test_a_failure_anywhere_is_undone_and_told(forking_host: FakeHost, verb: str, place: str) -> None:
    host = forking_host
    state, parameters, after = CASES[verb]
    faults = Scripted(verb=verb)
    await host.boot(faults)
    await bring_to(host, state)
    before = host.seen().phase if state != "absent" else None
    faults.place = place
    operation = await host.do(verb, TARGETS.get(verb, "web"), **parameters)
    assert operation.state is OperationState.FAILED
    assert operation.problem is not None
    assert "injected" in operation.problem["detail"]
    if before is None:
        assert host.machine() is None
        assert files(host) == []
        assert not [m for m in host.world.machines.values() if m.exit.value is None]
    elif verb not in ONE_WAY:
        assert host.seen().phase is before
        assert verb != "cdrom-insert" or in_drive(host) == "other"
    # Whatever it was, the same verb said again succeeds (or its end has been reached already).
    again_at_once = verb == "reset" or (after is not None and not reached(host, verb))
    if after is None or host.machine() is None or host.seen().phase is not after or again_at_once:
        again = await host.do(verb, TARGETS.get(verb, "web"), **parameters)
        assert again.state is OperationState.DONE, again.problem
    if after is None:
        assert host.machine() is None
        assert files(host) == []
    else:
        assert host.seen().phase is after
        assert reached(host, verb)
    assert (await check(host)).problems == ()


@pytest.mark.parametrize(("verb", "place"), EVERY_PLACE)
async def test_a_daemon_that_dies_anywhere_is_followed_by_one_that_finishes(
    forking_host: FakeHost, verb: str, place: str
) -> None:
    host = forking_host
    state, parameters, after = CASES[verb]
    faults = Scripted(verb=verb, error=DaemonDied)
    await host.boot(faults)
    await bring_to(host, state)
    faults.place = place
    asked = await host.submit(verb, TARGETS.get(verb, "web"), **parameters)
    await faults_reached(faults)
    await host.die()
    await host.boot()
    operation = await host.ended(asked.uid)
    assert operation.state is OperationState.DONE, operation.problem
    assert any(verb in line for line in host.told) or operation.recovered, host.told
    if after is None:
        assert host.machine() is None
        assert files(host) == []
    else:
        assert host.seen().phase is after
        alive = [m for m in host.world.machines.values() if m.exit.value is None]
        assert len(alive) == (1 if after.has_process else 0)
    if host.template_budget and verb == "create":
        assert operation.outcome is not None
        assert operation.outcome["booted"] == ""
        assert len(list(host.home.templates.iterdir())) == 1
        assert host.world.machine("web").hostname == "web"
    assert reached(host, verb)
    assert (await check(host)).problems == ()


@pytest.mark.parametrize("place", ["before launch", "after launch", "before run"])
async def test_a_process_that_dies_with_the_daemon_that_starts_it_is_started_anew(
    host: FakeHost, place: str
) -> None:
    faults = Scripted(verb="start", place=place, error=DaemonDied)
    await host.boot(faults)
    await bring_to(host, "created")
    asked = await host.submit("start")
    await faults_reached(faults)
    await host.die()
    for machine in list(host.world.machines.values()):
        machine.crash(128 + 9)
    await host.boot()
    operation = await host.ended(asked.uid)
    assert operation.state is OperationState.DONE, operation.problem
    alive = [m for m in host.world.machines.values() if m.exit.value is None]
    assert len(alive) == 1
    assert host.seen().phase is Phase.RUNNING


def reached(host: FakeHost, verb: str) -> bool:
    """Whether document, guest and volume agree that a verb on disks has been done; true of other verbs."""
    if verb.startswith("cdrom-"):
        return in_drive(host) == {"cdrom-insert": "tools", "cdrom-eject": None}[verb]
    has = {"attach": ["data"], "detach": [], "volume-resize": ["data"]}.get(verb)
    if has is None:
        return True
    machine = host.machine()
    assert machine is not None
    wanted = [d.id for d in machine.devices if isinstance(d, Disk)]
    opened = list(host.world.machine("web").disks.open)
    assert opened == wanted
    names = [d.volume.name for d in machine.devices if isinstance(d, Disk) and d.volume is not None]
    size = 2**21 if verb == "volume-resize" else 2**20
    return names == has and host.volumes() == {"data": size}


def in_drive(host: FakeHost) -> str | None:
    """The image in the drive, of which document and guest must agree; and its files must be kept."""
    machine = host.machine()
    assert machine is not None
    assert machine.cdrom is not None
    medium, drive = machine.cdrom.medium, host.world.machine("web").drive
    assert drive.medium == (medium.uid if medium is not None else None)
    assert not drive.tray_open
    if medium is None:
        return None
    ImageStore(host.home.images).prune()
    assert drive.file is not None
    assert drive.file.exists()
    return medium.name


@pytest.mark.parametrize(("verb", "place"), VOLUME_PLACES)
@pytest.mark.parametrize("how", ["fails", "dies"])
@needs_qemu_img
async def test_a_volume_has_its_old_state_or_its_new_one(
    host: FakeHost, verb: str, place: str, how: str
) -> None:
    parameters, after = VOLUME_CASES[verb]
    faults = Scripted(verb=verb, error=DaemonDied if how == "dies" else lambda: OSError("injected"))
    await host.boot(faults)
    if verb != "volume-create":
        await host.do("volume-create", "data", size="1MiB")
    before = host.volumes()
    faults.place = place
    asked = await host.submit(verb, "data", **parameters)
    await faults_reached(faults)
    if how == "dies":
        await host.die()
        await host.boot()
    operation = await host.ended(asked.uid)
    assert operation.state is (OperationState.DONE if how == "dies" else OperationState.FAILED)
    if how == "fails":
        assert host.volumes() in (before, after)
        if host.volumes() != after:
            again = await host.do(verb, "data", **parameters)
            assert again.state is OperationState.DONE, again.problem
    assert host.volumes() == after
    disks = sorted(host.home.volumes.rglob("*.qcow2"))
    assert len(disks) == len(after)
    assert {path.parent.name for path in host.home.volumes.rglob("*")} <= {
        "volumes",
        *(path.parent.name for path in disks),
    }
    for path in disks:
        assert (await run(["qemu-img", "check", "-q", str(path)], check=False)).exit_status == 0
        assert await virtual_size(path) in after.values()
    assert (await check(host)).problems == ()


TEMPLATE_VERBS = {
    "template-rm": ("micro", {}),
    "template-prune": ("", {}),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("verb", TEMPLATE_VERBS)
async def test_templates_are_removed_whatever_happens(tmp_path: Path, verb: str, when: str) -> None:
    host = FakeHost(tmp_path / "home", template_budget=2**30)
    publish_fake_image(ImageStore(host.home.images))
    name, parameters = TEMPLATE_VERBS[verb]
    for error in (OSError, DaemonDied):
        faults = Scripted(verb=verb, error=error)
        await host.boot(faults)
        await host.run()
        faults.place = f"{when} {verb}"
        asked = await host.submit(verb, name, **parameters)
        await faults_reached(faults)
        if error is DaemonDied:
            await host.die()
            await host.boot()
        operation = await host.ended(asked.uid)
        if error is OSError:
            assert operation.state is OperationState.FAILED
            await host.do("template-prune", "")
        else:
            assert operation.state is OperationState.DONE
        assert not any(host.home.templates.iterdir())
        assert host.seen().phase is Phase.RUNNING
        await host.do("rm", force=True)
        await host.close()


async def faults_reached(faults: Scripted) -> None:
    import asyncio

    async with asyncio.timeout(5):
        await faults.reached.wait()


async def test_a_daemon_that_dies_again_and_again_gives_the_operation_up(host: FakeHost) -> None:
    await host.boot()
    await host.do("create")
    faults = Scripted(verb="start", error=DaemonDied)
    await host.close()
    await host.boot(faults)
    faults.place = "before launch"
    asked = await host.submit("start")
    for _ in range(4):
        await faults_reached(faults)
        await host.die()
        faults.place = "before launch"
        faults.reached.clear()
        await host.boot(faults)
    operation = await host.ended(asked.uid)
    assert operation.state is not OperationState.DONE
    assert host.seen().phase is Phase.CREATED
