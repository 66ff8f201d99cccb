"""How KVM is judged, as far as that goes without hardware."""

from __future__ import annotations

import ctypes
import json
import mmap
import platform
import struct
from pathlib import Path
from typing import Any

import pytest

from insula.engine import accelerator, kvmprobe, probe
from insula.engine.accelerator import KvmVerdict, probe_kvm
from insula.engine.probe import BinaryFacts, load_facts


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe's code is x86-64")
def test_the_probes_code_is_right_where_it_runs_natively() -> None:
    """Every piece but the port writes, executed by this very processor."""
    page = mmap.mmap(-1, 65536, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    prologue = b"\x53\x48\xbf" + struct.pack("<Q", address + 0x4000)  # push rbx; mov rdi, data
    epilogue = b"\xb8\x2a\x00\x00\x00\x5b\xc3"  # mov eax, 42; pop rbx; ret
    code = prologue + b"".join(piece for _name, piece in kvmprobe._PIECES) + epilogue
    page[: len(code)] = code
    assert ctypes.CFUNCTYPE(ctypes.c_int)(address)() == 42


@pytest.mark.parametrize(
    ("flags", "refused", "mend"),
    [
        ("fpu vmx", "module is not loaded", "sudo modprobe kvm_intel"),
        ("fpu svm", "module is not loaded", "sudo modprobe kvm_amd"),
        ("fpu hypervisor", "without nested virtualization", "Turn on nested"),
        ("fpu", "neither VMX nor SVM", "firmware"),
    ],
)
def test_why_there_is_no_device(flags: str, refused: str, mend: str) -> None:
    verdict = accelerator._explain_absence(f"processor: 0\nflags\t\t: {flags}\n")
    assert refused in verdict.refused
    assert mend in verdict.mend
    assert verdict.auto.name == "tcg"


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        ('print(\'{"works": true, "reason": "", "rate": 1}\')', ""),
        ('print(\'{"works": false, "reason": "it stops at cpuid", "rate": 1}\')', "stops at cpuid"),
        ("import os; os.abort()", "process of a test run died"),
        ("print(3)", "process of a test run died"),
        ("import time; time.sleep(60)", "did not end within"),
    ],
)
async def test_what_a_test_run_says(
    script: str, refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "probe.py").write_text(script)
    monkeypatch.setattr(accelerator, "_PROBE", tmp_path / "probe.py")
    monkeypatch.setattr(accelerator, "_DEADLINE", 0.1 if "sleep" in script else 20)
    monkeypatch.setattr(accelerator, "kvm_access", lambda: "open")
    verdict = await probe_kvm()
    assert refused in verdict.refused
    assert verdict.auto.name == ("tcg" if refused else "kvm")


async def test_a_device_that_may_not_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "kvm_access", lambda: "denied")
    verdict = await probe_kvm()
    assert "usermod -aG kvm" in verdict.mend


async def test_facts_are_kept_until_qemu_or_access_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def binary_facts(binary: Path) -> BinaryFacts:
        asked.append("qemu")
        return BinaryFacts("7.2.22", {"pc": "pc-i440fx-7.2"}, frozenset({"sandbox"}))

    async def verdict() -> KvmVerdict:
        return KvmVerdict("no", "yes")

    monkeypatch.setattr(probe, "probe_binary", binary_facts)
    monkeypatch.setattr(probe, "probe_kvm", verdict)
    binary, cache = tmp_path / "qemu", tmp_path / "deep" / "host.json"
    binary.write_text("1")

    async def load() -> Any:
        return await load_facts(binary, cache)

    first = await load()
    assert (first.kvm_refused, first.kvm_mend, first.features) == ("no", "yes", frozenset({"sandbox"}))
    assert await load() == first
    assert asked == ["qemu"]
    binary.write_text("22")
    await load()
    assert len(asked) == 2
    monkeypatch.setattr(probe, "kvm_access", lambda: "something else")
    await load()
    assert len(asked) == 3
    cache.write_text("not json")
    await load()
    assert len(asked) == 4
    cache.write_text(json.dumps({"key": 1}))
    await load()
    assert len(asked) == 5
