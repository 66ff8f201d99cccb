"""Document -> argv, one golden file a feature, to be read in review.

A file gives `document` (fields beside the defaults below), `files`, `facts`, `memory` where they matter, and
the `argv` that follows, one option a line. After a change that is meant: `INSULA_GOLDEN_UPDATE=1 pytest
tests/unit/engine` rewrites every `argv`; then read the diff.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from insula.engine.device import rendered_kinds
from insula.engine.errors import AcceleratorUnavailable, UnsupportedDevice
from insula.engine.plan import choose_accelerator, plan_from_json, plan_to_json, render
from insula.engine.protocol import (
    OWN_MEMORY,
    BootFiles,
    EngineFacts,
    FirmwareFile,
    LaunchPlan,
    Memory,
    Uefi,
)
from insula.model.device import device_kinds
from insula.model.device.disk import variables_disk
from insula.model.machine import Machine
from insula.model.observation import AcceleratorFact

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))

DOCUMENT: dict[str, Any] = {
    "uid": "0123456789abcdef",
    "name": "web",
    "created": datetime(2026, 1, 2, tzinfo=UTC),
    "image": {"name": "micro", "digest": "sha256:0"},
    "cpus": 1,
    "memory_bytes": 512 * 2**20,
    "boot": "direct",
    "machine_type": "pc",
}
FILES = {
    "kernel": "/images/micro/vmlinuz",
    "initrd": "/images/micro/initrd",
    "arguments": "console=ttyS0 quiet",
}
SWITCHES = ("usb", "vmport", "hpet", "smm", "sata", "smbus", "i8042", "graphics")
FACTS: dict[str, Any] = {
    "version": "7.2.22",
    "binary": "/usr/bin/qemu-system-x86_64",
    "auto": {"name": "tcg", "reason": "KVM is not used: this processor has none"},
    "kvm_refused": "this processor has none",
    "machine_types": {"pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2"},
    "features": ["sandbox", *(f"{kind}.{name}" for kind in ("pc", "q35") for name in SWITCHES)],
}


UEFI = Uefi(
    code=FirmwareFile(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), 3653632),
    variables=FirmwareFile(Path("/usr/share/OVMF/OVMF_VARS_4M.fd"), 540672),
)
VARIABLES = variables_disk().model_dump(mode="json")


def facts_of(changes: dict[str, Any]) -> EngineFacts:
    fields = {**FACTS, **changes}
    return EngineFacts(
        **{
            **fields,
            "binary": Path(fields["binary"]),
            "auto": AcceleratorFact(**fields["auto"]),
            "features": frozenset(fields["features"]),
        }
    )


def files_of(fields: dict[str, Any]) -> BootFiles:
    paths = {key: Path(fields[key]) for key in ("kernel", "initrd") if fields.get(key) is not None}
    uefi = UEFI if fields.get("uefi") else None
    return BootFiles(**paths, arguments=fields.get("arguments", ""), uefi=uefi)


def plan_of(case: dict[str, Any]) -> LaunchPlan:
    machine = Machine.model_validate({**DOCUMENT, **case["document"]})
    facts = facts_of(case.get("facts", {}))
    files = files_of(case.get("files", FILES))
    accelerator = choose_accelerator(machine, facts)
    return render(machine, files, Path("/machines/x"), facts, accelerator, memory_of(case.get("memory", {})))


def memory_of(fields: dict[str, Any]) -> Memory:
    template = fields.get("template")
    return Memory(
        shareable=fields.get("shareable", False),
        vessel=fields.get("vessel", False),
        template=Path(template) if template else None,
    )


def lines_of(argv: tuple[str, ...]) -> list[str]:
    """One option and its value a line, so that a diff can be read."""
    lines: list[str] = []
    for word in argv:
        if word.startswith("-") or not lines or " " in lines[-1]:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_argv_is_the_golden_one(path: Path) -> None:
    case = json.loads(path.read_text())
    lines = lines_of(plan_of(case).argv)
    if os.environ.get("INSULA_GOLDEN_UPDATE"):
        path.write_text(json.dumps({**case, "argv": lines}, indent=2) + "\n")
    assert json.loads(path.read_text())["argv"] == lines


def test_every_device_kind_has_a_golden_file() -> None:
    shown = {
        device["device"]
        for path in GOLDEN
        for device in json.loads(path.read_text())["document"].get("devices", ())
    }
    assert shown == set(device_kinds()) == rendered_kinds()


@pytest.mark.parametrize("memory", [{}, {"shareable": True}, {"template": "/templates/k"}])
def test_a_plan_survives_its_file(memory: dict[str, Any]) -> None:
    plan = plan_of({"document": {"devices": [{"device": "serial", "id": "serial0"}]}, "memory": memory})
    assert plan_from_json(plan_to_json(plan), plan.directory) == plan
    assert str(plan.directory) not in plan_to_json(plan)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "argv": 3}'])
def test_a_broken_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"plan|Expecting"):
        plan_from_json(text, Path("/machines/x"))


def test_a_plan_of_an_older_version_has_memory_of_its_own() -> None:
    plan = plan_of({"document": {}})
    fields = json.loads(plan_to_json(plan))
    del fields["memory"]
    assert plan_from_json(json.dumps(fields), plan.directory).memory == OWN_MEMORY


def test_kvm_where_it_does_not_work_is_refused() -> None:
    with pytest.raises(AcceleratorUnavailable) as caught:
        plan_of({"document": {"accelerator": "kvm"}, "facts": {"kvm_mend": "sudo modprobe kvm_intel"}})
    assert "this processor has none" in caught.value.message
    assert caught.value.hint == "sudo modprobe kvm_intel"


def test_what_is_asked_for_is_used_and_said() -> None:
    plan = plan_of({"document": {"accelerator": "tcg"}, "facts": {"kvm_refused": ""}})
    assert plan.accelerator == AcceleratorFact(name="tcg", reason="asked for")


def test_two_consoles_are_refused() -> None:
    devices = [{"device": "serial", "id": "a"}, {"device": "serial", "id": "b"}]
    with pytest.raises(UnsupportedDevice):
        plan_of({"document": {"devices": devices}})


def test_a_saved_machine_fits_only_flash_memory_of_its_size() -> None:
    devices = [VARIABLES]
    bios = plan_of({"document": {}})
    uefi = plan_of({"document": {"firmware": "uefi", "devices": devices}, "files": {**FILES, "uefi": True}})
    assert "firmware" not in bios.shape
    assert uefi.shape["firmware"] == "UEFI of 3653632 and 540672 bytes"


@pytest.mark.parametrize("uefi", [True, False])
def test_a_uefi_without_variables_is_refused_and_variables_without_a_uefi(uefi: bool) -> None:
    devices = [] if uefi else [VARIABLES]
    with pytest.raises(UnsupportedDevice):
        plan_of({"document": {"devices": devices}, "files": {**FILES, "uefi": uefi}})
