"""Which UEFI is taken of what a host's packages describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from insula.engine.firmware import find_uefi


@pytest.fixture
def host(tmp_path: Path) -> list[Path]:
    directories = [tmp_path / name for name in ("own", "etc", "usr")]
    for directory in directories[1:]:
        directory.mkdir()
    return directories


def describe(directory: Path, name: str, **changes: Any) -> Path:
    """A description as Debian's package has it, and the files it names; the code's path."""
    files = {}
    for what, size in (("code", 4096), ("vars", 1024)):
        files[what] = directory / f"{name}.{what}"
        files[what].write_bytes(bytes(size))
    said: dict[str, Any] = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(files["code"]), "format": "raw"},
            "nvram-template": {"filename": str(files["vars"]), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3", "amd-sev", "verbose-dynamic"],
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = said
        for parent in parents:
            place = place[parent]
        place[last.replace("_", "-")] = value
    (directory / f"{name}.json").write_text(json.dumps(said))
    return files["code"]


def test_code_and_variables_with_their_sizes(host: list[Path]) -> None:
    code = describe(host[2], "60-plain")
    found = find_uefi("pc", host)
    assert found is not None
    assert (found.code.path, found.code.size_bytes) == (code, 4096)
    assert (found.variables.path.name, found.variables.size_bytes) == ("60-plain.vars", 1024)
    assert find_uefi("q35", host) == found


@pytest.mark.parametrize(
    "changes",
    [
        {"interface_types": ["bios"]},
        {"features": ["secure-boot", "requires-smm"]},
        {"features": ["enrolled-keys"]},
        {"mapping__device": "memory"},
        {"mapping__mode": "stateless"},
        {"mapping__mode": "combined"},
        {"mapping__executable": {"filename": "/nowhere", "format": "raw"}},
        {"mapping__nvram_template": {"filename": "/bin/sh", "format": "qcow2"}},
        {"targets": [{"architecture": "aarch64", "machines": ["virt-*"]}]},
        {"targets": [{"architecture": "x86_64", "machines": ["microvm"]}]},
        {"mapping": 3},
    ],
    ids=str,
)
def test_what_does_not_fit_is_passed_over(host: list[Path], changes: dict[str, Any]) -> None:
    describe(host[2], "40-other", **changes)
    assert find_uefi("pc", host) is None
    code = describe(host[2], "60-plain")
    found = find_uefi("pc", host)
    assert found is not None
    assert found.code.path == code


def test_a_machine_type_that_is_not_described_has_none(host: list[Path]) -> None:
    describe(host[2], "60-plain", targets=[{"architecture": "x86_64", "machines": ["pc-q35-*"]}])
    assert find_uefi("pc", host) is None
    assert find_uefi("q35", host) is not None


def test_the_first_by_name_counts_and_an_earlier_directory_takes_its_place_or_hides_it(
    host: list[Path],
) -> None:
    later, first = describe(host[2], "60-plain"), describe(host[2], "50-better")
    found = find_uefi("pc", host)
    assert found is not None
    assert found.code.path == first
    ours = describe(host[1], "50-better")
    found = find_uefi("pc", host)
    assert found is not None
    assert found.code.path == ours
    (host[1] / "50-better.json").write_text("")
    found = find_uefi("pc", host)
    assert found is not None
    assert found.code.path == later
