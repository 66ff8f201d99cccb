"""CD drives: which images are media, who has them, what a guest throws out, and what is kept alive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from insula.control.media import DriveBusy, DriveHasOtherBus, NoDrive, NotAMedium
from insula.kit.clock import utc_now
from insula.model.base import BadDocument
from insula.model.device.agent import AgentPort
from insula.model.device.cdrom import CDROM, Cdrom
from insula.model.image import ImageRef
from insula.model.machine import Machine
from insula.model.observation import Phase
from insula.model.operation import OperationState
from insula.model.template import as_template, why_not_captured, why_not_forked
from insula.storage.errors import ImageNotFound
from insula.storage.images import ImageStore
from tests.support.host import FakeHost, publish_fake_image, publish_medium


@pytest.fixture
def media(host: FakeHost) -> ImageStore:
    """The store, with the media 'tools' and 'other'."""
    store = ImageStore(host.home.images)
    publish_medium(store, "tools")
    publish_medium(store, "other")
    return store


def in_drive(host: FakeHost, name: str = "web") -> str | None:
    """The image in the drive, by the document; the guest must agree where there is one."""
    machine = host.machine(name)
    assert machine is not None
    assert machine.cdrom is not None
    medium = machine.cdrom.medium
    if host.seen(name).phase.has_process:
        drive = host.world.machine(name).drive
        assert drive.is_there
        assert drive.medium == (medium.uid if medium is not None else None)
    return medium.name if medium is not None else None


def drive_of(machine: Machine | None) -> Cdrom:
    assert machine is not None
    assert machine.cdrom is not None
    return machine.cdrom


async def test_a_machine_is_made_with_a_medium(host: FakeHost, media: ImageStore) -> None:
    await host.run(cdrom="tools")
    assert in_drive(host) == "tools"
    assert drive_of(host.machine()).bus == "scsi"  # it boots a kernel of ours
    assert host.world.machine("web").drive.file == media.directory("tools") / "disk.raw"
    await host.do("stop")
    await host.do("start")
    assert in_drive(host) == "tools"


async def test_an_empty_drive_takes_one_medium_after_another(host: FakeHost, media: ImageStore) -> None:
    await host.run(cdrom="none:ata")
    assert drive_of(host.machine()).bus == "ata"
    assert in_drive(host) is None
    for image in ("tools", "tools", "other"):
        operation = await host.do("cdrom-insert", image=image)
        assert operation.outcome == {"image": image, "bus": "ata"}
        assert in_drive(host) == image
    for _ in range(2):
        assert (await host.do("cdrom-eject")).state is OperationState.DONE
        assert in_drive(host) is None


async def test_what_is_in_already_is_not_taken_out(host: FakeHost, media: ImageStore) -> None:
    await host.run(cdrom="tools")
    before = drive_of(host.machine())
    host.world.machine("web").drive.locked = True
    assert (await host.do("cdrom-insert", image="tools")).state is OperationState.DONE
    assert drive_of(host.machine()) == before


async def test_a_machine_that_is_off_gets_a_drive(host: FakeHost, media: ImageStore) -> None:
    await host.do("create")
    await host.do("cdrom-insert", image="tools", bus="ata")
    assert in_drive(host) == "tools"
    await host.do("start")
    assert in_drive(host) == "tools"


async def test_a_machine_that_runs_gets_a_drive_where_that_can_be(host: FakeHost, media: ImageStore) -> None:
    await host.run()
    refused = await host.do("cdrom-insert", image="tools", bus="ata")
    assert refused.problem is not None
    assert refused.problem["code"] == "unsupported-device"
    machine = host.machine()
    assert machine is not None
    assert machine.cdrom is None
    assert (await host.do("cdrom-insert", image="tools")).state is OperationState.DONE
    assert in_drive(host) == "tools"


async def test_a_guest_that_has_locked_its_medium_keeps_it(host: FakeHost, media: ImageStore) -> None:
    await host.run(cdrom="tools")
    drive = host.world.machine("web").drive
    drive.locked = True
    for verb, parameters in [("cdrom-eject", {}), ("cdrom-insert", {"image": "other"})]:
        refused = await host.do(verb, **parameters)
        assert refused.problem is not None
        assert refused.problem["code"] == "medium-locked"
        assert in_drive(host) == "tools"
    assert (await host.do("cdrom-eject", force=True)).state is OperationState.DONE
    assert in_drive(host) is None


async def until_empty(host: FakeHost) -> None:
    assert host.store is not None
    machine = host.machine()
    assert machine is not None
    await host.store.wait(Machine, machine.uid, lambda m: m is not None and drive_of(m).medium is None)


async def test_a_guest_that_ejects_has_spoken(host: FakeHost, media: ImageStore) -> None:
    await host.run(cdrom="tools")
    host.world.machine("web").drive.open_tray()
    await until_empty(host)
    assert in_drive(host) is None
    await host.do("stop")
    await host.do("start")
    assert in_drive(host) is None
    await host.do("cdrom-insert", image="tools")  # the same image again is another insertion
    assert in_drive(host) == "tools"
    await host.do("stop")
    await host.do("start")
    assert in_drive(host) == "tools"


async def test_a_guest_that_ejects_while_no_daemon_runs_has_spoken_too(
    host: FakeHost, media: ImageStore
) -> None:
    await host.run(cdrom="tools")
    await host.die()
    host.world.machine("web").drive.open_tray()
    await host.boot()
    await until_empty(host)
    assert in_drive(host) is None


async def test_one_operation_at_a_time_works_on_a_drive(host: FakeHost, media: ImageStore) -> None:
    await host.run(cdrom="none")
    first = await host.submit("cdrom-insert", image="tools")
    for verb, parameters in [("cdrom-eject", {}), ("cdrom-insert", {"image": "other"})]:
        with pytest.raises(DriveBusy):
            await host.submit(verb, **parameters)
    await host.ended(first.uid)
    assert in_drive(host) == "tools"


async def test_what_was_thrown_out_and_is_inserted_at_once_is_in(host: FakeHost, media: ImageStore) -> None:
    """The news of the first may come in the middle of the second."""
    await host.run(cdrom="tools")
    host.world.machine("web").drive.open_tray()
    operation = await host.do("cdrom-insert", image="tools")
    assert operation.state is OperationState.DONE
    assert in_drive(host) == "tools"
    await host.do("restart")
    assert in_drive(host) == "tools"


async def test_what_is_no_medium_is_refused(host: FakeHost, media: ImageStore) -> None:
    await host.run(cdrom="none")
    for image, error in [("micro", NotAMedium), ("tool", ImageNotFound), ("/x/tools.iso", BadDocument)]:
        with pytest.raises(error) as caught:
            await host.do("cdrom-insert", image=image)
    assert "insula image import /x/tools.iso --name tools" in caught.value.message
    with pytest.raises(BadDocument) as caught:
        await host.do("create", "two", spec={"cdrom": "./Some Tools.iso"})
    assert "insula image import ./Some Tools.iso --name some-tools" in caught.value.message
    with pytest.raises(DriveHasOtherBus):
        await host.do("cdrom-insert", image="tools", bus="ata")
    await host.do("create", "plain")
    with pytest.raises(NoDrive):
        await host.do("cdrom-eject", "plain")


@pytest.mark.parametrize(
    "spec", [{"cdrom": ":scsi"}, {"cdrom": "tools:usb"}, {"boot": "cdrom"}, {"cdrom": {"image": "a/b"}}]
)
async def test_bad_words_for_a_drive(host: FakeHost, media: ImageStore, spec: dict[str, Any]) -> None:
    with pytest.raises(BadDocument):
        await host.do("create", spec=spec)


async def test_a_machine_boots_from_its_cd(host: FakeHost, media: ImageStore) -> None:
    await host.run(cdrom="tools", boot="cdrom")
    argv = " ".join(host.world.machine("web").plan.argv)
    assert "-kernel" not in argv
    assert "bootindex=0" in argv
    assert drive_of(host.machine()).bus == "ata"  # of what is on it nothing is known


async def test_a_medium_is_kept_while_it_is_in_a_drive(host: FakeHost, media: ImageStore) -> None:
    file = media.directory("tools") / "disk.raw"
    await host.run(cdrom="tools")
    await host.do("image-rm", "tools")
    await host.do("image-prune", "*")
    assert file.exists()
    assert ImageStore(media.root).prune() == ()  # another home that shares the store
    await host.do("stop")
    assert (await host.do("start")).state is OperationState.DONE
    await host.do("cdrom-eject")
    await host.do("image-prune", "*")
    assert not file.exists()


async def test_what_a_guest_threw_out_is_let_go_of_at_the_next_start(
    host: FakeHost, media: ImageStore
) -> None:
    file = media.directory("tools") / "disk.raw"
    await host.run(cdrom="tools")
    await host.do("image-rm", "tools")
    host.world.machine("web").drive.open_tray()
    await until_empty(host)
    await host.do("restart")
    await host.do("image-prune", "*")
    assert not file.exists()


async def test_forks_have_the_medium(host: FakeHost, media: ImageStore) -> None:
    await host.run()
    await host.do("cdrom-insert", image="tools")
    operation = await host.do("fork", count=1, names="sibling")
    assert operation.state is OperationState.DONE, operation.problem
    await host.until(Phase.RUNNING, "sibling")
    assert in_drive(host, "sibling") == "tools"
    await host.do("image-rm", "tools")
    await host.do("rm", force=True)
    await host.do("image-prune", "*")
    assert drive_of(host.machine("sibling")).medium is not None
    assert host.world.machine("sibling").drive.file is not None
    assert host.world.machine("sibling").drive.file.exists()


async def test_machines_with_the_same_medium_share_a_template(tmp_path: Path) -> None:
    host = FakeHost(tmp_path / "home", template_budget=2**30)
    store = ImageStore(host.home.images)
    publish_fake_image(store)
    publish_medium(store, "tools")
    publish_medium(store, "other")
    await host.boot()
    for name, cdrom in [("a", "tools"), ("b", "tools"), ("c", "other"), ("d", "none"), ("e", None)]:
        operation = await host.run(name, **({"cdrom": cdrom} if cdrom else {}))
        assert operation.outcome is not None
        assert operation.outcome["booted"] == ""
        if cdrom is not None:
            assert in_drive(host, name) == (None if cdrom == "none" else cdrom)
    assert len(list(host.home.templates.iterdir())) == 4
    await host.do("image-rm", "other")
    assert len(list(host.home.templates.iterdir())) == 3
    await host.close()


def test_a_drive_keeps_no_machine_from_being_forked() -> None:
    medium = {"uid": "f" * 16, "name": "tools", "digest": "sha256:1", "file": "disk.raw"}
    machine = Machine.model_validate(
        {
            "uid": "0123456789abcdef",
            "name": "web",
            "created": utc_now(),
            "image": ImageRef(name="micro", digest="sha256:0"),
            "cpus": 1,
            "memory_bytes": 2**27,
            "boot": "direct",
            "machine_type": "pc",
            "devices": [
                AgentPort(id="agent0", protocol="insula"),
                {"device": "cdrom", "id": CDROM, "bus": "scsi", "medium": medium},
            ],
        }
    )
    assert why_not_forked(machine) is None
    assert why_not_captured(machine, live=True) is None
    common = drive_of(as_template(machine)).medium
    assert common is not None
    assert (common.uid, common.digest) == ("0" * 16, "sha256:1")
