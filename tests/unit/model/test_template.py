"""Which machines may share a template."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from insula.model.device.disk import VolumeRef, volume_disk
from insula.model.machine import Machine, Power, RunPolicy, mac_address
from insula.model.template import as_template, cards_of, why_not_captured, why_not_forked

AGENT = {"device": "agent", "id": "agent0", "protocol": "insula"}
DISK = {
    "device": "disk",
    "id": "disk0",
    "source": "image",
    "file": "disk0.qcow2",
    "format": "qcow2",
    "size_bytes": 2**30,
}


def nic(uid: str, *publish: str, mode: str = "isolated") -> dict[str, Any]:
    return {"device": "nic", "id": "nic0", "mac": mac_address(uid, 0), "mode": mode, "publish": publish}


def machine(uid: str = "a" * 16, name: str = "web", **fields: Any) -> Machine:
    base: dict[str, Any] = {
        "uid": uid,
        "name": name,
        "created": datetime(2026, 1, 2, tzinfo=UTC),
        "image": {"name": "micro", "digest": "sha256:0"},
        "cpus": 1,
        "memory_bytes": 2**29,
        "boot": "direct",
        "machine_type": "pc",
        "devices": (AGENT, DISK, nic(uid)),
    }
    return Machine.model_validate({**base, **fields})


@pytest.mark.parametrize(
    "other",
    [
        {"uid": "b" * 16, "devices": (AGENT, DISK, nic("b" * 16))},
        {"name": "db"},
        {"project": "other"},
        {"generation": 7},
        {"created": datetime(2026, 5, 1, tzinfo=UTC)},
        {"devices": (AGENT, DISK, nic("a" * 16, "8080:80"))},
        {"ephemeral": True},
        {"power": Power.ON},
        {"run_policy": RunPolicy.ONCE},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_a_guest_can_be_told_makes_no_other_template(other: dict[str, Any]) -> None:
    assert as_template(machine(**other)) == as_template(machine())


@pytest.mark.parametrize(
    "other",
    [
        {"cpus": 2},
        {"memory_bytes": 2**30},
        {"cpu_model": "qemu64"},
        {"image": {"name": "micro", "digest": "sha256:1"}},
        {"boot": "disk"},
        {"devices": (AGENT, {**DISK, "size_bytes": 2**31}, nic("a" * 16))},
        {"devices": (AGENT, DISK, nic("a" * 16, mode="user"))},
        {"devices": (AGENT, DISK)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_is_frozen_makes_another_template(other: dict[str, Any]) -> None:
    assert as_template(machine(**other)) != as_template(machine())


def test_a_template_is_its_own_template() -> None:
    once = as_template(machine())
    assert as_template(once) == once


def test_cards_are_told_as_they_were_and_as_they_are_to_be() -> None:
    ((old, new),) = cards_of(machine())
    assert new == mac_address("a" * 16, 0)
    assert old != new


def test_why_a_machine_boots() -> None:
    assert why_not_forked(machine()) is None
    for told in ({"user": "joe"}, {"ssh_keys": ("ssh-ed25519 AAAA x",)}, {"user_data": "#cloud-config\n{}"}):
        assert "cloud-init" in (why_not_forked(machine(cloud_init=told)) or "")
    assert why_not_forked(machine(cloud_init={"hostname": "www"})) is None
    for devices in ((DISK,), ({**AGENT, "protocol": "qemu"}, DISK)):
        assert "no agent" in (why_not_forked(machine(devices=devices)) or "")


def test_a_machine_with_a_volume_can_be_forked_while_it_runs() -> None:
    disk = volume_disk(VolumeRef(uid="0" * 16, name="data"), "", read_only=False, bus="virtio")
    plain = machine()
    with_volume = plain.changed(devices=(*plain.devices, disk))
    assert why_not_captured(with_volume, live=True) is None
    assert why_not_forked(with_volume) == "it has a disk that is its own"
    assert why_not_captured(plain, live=True) is None
