"""Which accelerator machines run with here, decided by running `kvmprobe` rather than by looking."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from insula.kit.run import CommandFailed, run
from insula.model.observation import AcceleratorFact

DEVICE = Path("/dev/kvm")
_PROBE = Path(__file__).with_name("kvmprobe.py")
_DEADLINE = 5.0  # seconds; the probe ends itself after one, unless the kernel holds on to it


@dataclass(frozen=True)
class KvmVerdict:
    """refused: why KVM is not used, "" if it is. mend: what would help, "" if nothing is known to."""

    refused: str = ""
    mend: str = ""

    @property
    def auto(self) -> AcceleratorFact:
        """What 'auto' means with this verdict."""
        if self.refused:
            return AcceleratorFact(name="tcg", reason=f"KVM is not used: {self.refused}")
        return AcceleratorFact(name="kvm", reason="a test run under KVM passed")


def kvm_access() -> str:
    """'absent', 'denied' or 'open': what changes within a boot, when a module is loaded or a group joined."""
    if not DEVICE.exists():
        return "absent"
    return "open" if os.access(DEVICE, os.R_OK | os.W_OK) else "denied"


async def probe_kvm() -> KvmVerdict:
    """Whether KVM runs 64-bit code here at a processor's speed. Takes 0.1 s where it does."""
    access = kvm_access()
    if access == "absent":
        return _explain_absence(Path("/proc/cpuinfo").read_text())
    if access == "denied":
        return KvmVerdict(
            "this user may not open /dev/kvm", 'sudo usermod -aG kvm "$USER", then log out and in again'
        )
    try:
        done = await run([sys.executable, "-I", "-S", str(_PROBE)], timeout=_DEADLINE)
        answer = json.loads(done.stdout)
        return KvmVerdict() if answer["works"] else KvmVerdict(f"/dev/kvm is there, but {answer['reason']}")
    except TimeoutError:
        return KvmVerdict(f"/dev/kvm is there, but a test run did not end within {_DEADLINE:.0f}s")
    except (CommandFailed, ValueError, KeyError, TypeError):
        return KvmVerdict("/dev/kvm is there, but the process of a test run died")


def _explain_absence(cpuinfo: str) -> KvmVerdict:
    flags: set[str] = set()
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            flags.update(line.split(":", 1)[1].split())
            break
    if "vmx" in flags:
        return KvmVerdict("/dev/kvm is missing: the module is not loaded", "sudo modprobe kvm_intel")
    if "svm" in flags:
        return KvmVerdict("/dev/kvm is missing: the module is not loaded", "sudo modprobe kvm_amd")
    if "hypervisor" in flags:
        return KvmVerdict(
            "/dev/kvm is missing: this host is a virtual machine without nested virtualization",
            "Turn on nested virtualization for this machine in the hypervisor below.",
        )
    return KvmVerdict(
        "/dev/kvm is missing: the processor shows neither VMX nor SVM",
        "Turn on virtualization (VT-x or AMD-V) in the firmware's setup.",
    )
