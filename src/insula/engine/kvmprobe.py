"""Does KVM run code here? A script of its own (standard library only), run as a child with a deadline.

It makes a virtual machine with one vCPU in 64-bit mode and lets it execute what every operating system
needs. That /dev/kvm opens and makes machines proves nothing: a KVM in software does that too, and then
crawls, or stops at the first instruction it does not know. It prints one JSON object: {"works": bool,
"reason": "...", "rate": n or null}.

The guest tells how far it came by port writes. The structures are those of <linux/kvm.h> for x86-64.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
import time
from typing import NamedTuple

_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_GET_VCPU_MMAP_SIZE = 0xAE04
_KVM_CREATE_VCPU = 0xAE41
_KVM_RUN = 0xAE80
_KVM_SET_USER_MEMORY_REGION = 0x4020AE46
_KVM_GET_REGS = 0x8090AE81
_KVM_SET_REGS = 0x4090AE82
_KVM_GET_SREGS = 0x8138AE83
_KVM_SET_SREGS = 0x4138AE84
_KVM_GET_SUPPORTED_CPUID = 0xC008AE05
_KVM_SET_CPUID2 = 0x4008AE90

_EXIT_IO, _EXIT_HLT, _EXIT_SHUTDOWN, _EXIT_FAIL_ENTRY, _EXIT_INTERNAL_ERROR = 2, 5, 8, 9, 17

_MEMORY = 2 * 2**20
_PML4, _PDPT, _PD, _CODE, _DATA, _STACK = 0x1000, 0x2000, 0x3000, 0x4000, 0x6000, 0x8000
_ITERATIONS = 10_000_000  # of two instructions: 10 ms on a processor, 7 s at 3 million instructions a second
_TIME = 1.0  # seconds for everything

# The guest's code in pieces, each named by what a person is told when it goes no further. Before each piece
# it writes the piece's number to port 0x10.
_PIECES: tuple[tuple[str, bytes], ...] = (
    ("the first 64-bit instruction", b"\x48\xb8" + struct.pack("<Q", 0x1122334455667788) + b"\x50\x5b"),
    # mov ecx, N; 1: dec ecx; jnz 1b
    ("a loop of 20 million instructions", b"\xb9" + struct.pack("<I", _ITERATIONS) + b"\xff\xc9\x75\xfc"),
    ("SSE2 (movdqu, paddq)", b"\xf3\x0f\x6f\x07\x66\x0f\xd4\xc0\xf3\x0f\x7f\x07"),
    ("cpuid", b"\x31\xc0\x31\xc9\x0f\xa2"),
    ("rdtsc", b"\x0f\x31"),
    ("lock xadd", b"\xf0\x48\x0f\xc1\x07"),
    # rdx:rax = what is there, rcx:rbx = something else; lock cmpxchg16b [rdi]; ud2 unless it was exchanged
    (
        "lock cmpxchg16b",
        b"\x48\x8b\x07\x48\x8b\x57\x08\x31\xdb\x31\xc9\xf0\x48\x0f\xc7\x0f\x74\x02\x0f\x0b",
    ),
)
_DONE = len(_PIECES)


class Verdict(NamedTuple):
    """works: it can run machines. rate: instructions a second in the loop, None if it was not finished."""

    works: bool
    reason: str
    rate: float | None = None


def guest_code() -> bytes:
    """All pieces, each announced on port 0x10; then the number after the last, and hlt."""

    def announced(number: int) -> bytes:
        return b"\xb0" + bytes([number]) + b"\xe6\x10"  # mov al, number; out 0x10, al

    body = b"".join(announced(number) + code for number, (_name, code) in enumerate(_PIECES))
    return body + announced(_DONE) + b"\xf4"


class _Vcpu:
    """A virtual machine of one vCPU and 2 MiB, ready to run `guest_code` in 64-bit mode."""

    def __init__(self, kvm: int) -> None:
        self.memory = mmap.mmap(-1, _MEMORY)
        self._load_memory()
        machine = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        fcntl.ioctl(machine, _KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, _MEMORY, address))
        self.descriptor = fcntl.ioctl(machine, _KVM_CREATE_VCPU, 0)
        self.run_page = mmap.mmap(self.descriptor, fcntl.ioctl(kvm, _KVM_GET_VCPU_MMAP_SIZE, 0))
        self._set_cpuid(kvm)
        self._set_long_mode()

    def _load_memory(self) -> None:
        def put(address: int, data: bytes) -> None:
            self.memory[address : address + len(data)] = data

        put(_PML4, struct.pack("<Q", _PDPT | 0x3))  # present, writable
        put(_PDPT, struct.pack("<Q", _PD | 0x3))
        put(_PD, struct.pack("<Q", 0x83))  # one page of 2 MiB, where it is
        put(_CODE, guest_code())

    def _set_cpuid(self, kvm: int) -> None:
        """The guest sees what the host has; without it 64-bit mode and cmpxchg16b may be refused."""
        entries = 256
        buffer = bytearray(struct.pack("<II", entries, 0) + bytes(40 * entries))
        fcntl.ioctl(kvm, _KVM_GET_SUPPORTED_CPUID, buffer, True)
        fcntl.ioctl(self.descriptor, _KVM_SET_CPUID2, buffer, True)

    def _set_long_mode(self) -> None:
        """As Intel's manual (volume 3, 10.8.5) ends up: PAE, LME, PG; flat segments, without a GDT."""
        sregs = bytearray(0x138)
        fcntl.ioctl(self.descriptor, _KVM_GET_SREGS, sregs, True)

        def segment(selector: int, kind: int, code: bool) -> bytes:
            # base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding
            flags = (kind, 1, 0, int(not code), 1, int(code), 1, 0, 0, 0)
            return struct.pack("<QIH10B", 0, 0xFFFFFFFF, selector, *flags)

        data = segment(0x10, 3, False)
        task = struct.pack("<QIH10B", 0, 0x67, 0x18, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0)
        sregs[0 : 24 * 7] = segment(0x8, 11, True) + data * 5 + task  # cs; ds es fs gs ss; tr
        # cr0 (PE MP ET NE WP PG), cr2, cr3, cr4 (PAE OSFXSR OSXMMEXCPT), cr8, efer (LME LMA)
        struct.pack_into("<6Q", sregs, 224, 0x80010033, 0, _PML4, 0x620, 0, 0x500)
        fcntl.ioctl(self.descriptor, _KVM_SET_SREGS, bytes(sregs))
        registers = [0] * 18  # rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags
        registers[5], registers[6], registers[16], registers[17] = _DATA, _STACK, _CODE, 2
        fcntl.ioctl(self.descriptor, _KVM_SET_REGS, struct.pack("<18Q", *registers))

    def run(self) -> int:
        """Run until the next exit: its reason. Raises OSError, InterruptedError by a signal."""
        fcntl.ioctl(self.descriptor, _KVM_RUN, 0)
        return int(struct.unpack_from("<I", self.run_page, 8)[0])

    def io_byte(self) -> int:
        """The byte written to a port (struct kvm_run: data_offset of the io exit is at 32 + 8)."""
        return int(self.run_page[struct.unpack_from("<Q", self.run_page, 40)[0]])

    def loop_left(self) -> int:
        """What the loop's counter stands at."""
        registers = bytearray(0x90)
        fcntl.ioctl(self.descriptor, _KVM_GET_REGS, registers, True)
        return int(struct.unpack_from("<Q", registers, 16)[0]) & 0xFFFFFFFF


class _TimeIsUp(Exception):
    pass


def _time_is_up(_signal: int, _frame: object) -> None:
    raise _TimeIsUp


def judge(kvm: int) -> Verdict:
    """Run the guest and say how far it came. Raises OSError when KVM refuses to make it."""
    vcpu = _Vcpu(kvm)
    piece, began, rate = -1, time.monotonic(), None
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.setitimer(signal.ITIMER_REAL, _TIME)
    try:
        while True:
            reason = vcpu.run()
            if reason == _EXIT_IO:
                now = time.monotonic()
                if piece == 1:
                    rate = 2 * _ITERATIONS / max(now - began, 1e-6)
                piece, began = vcpu.io_byte(), now
                continue
            if reason == _EXIT_HLT and piece == _DONE:
                return Verdict(True, "64-bit code runs at processor speed", rate)
            return Verdict(False, f"it stops at {_piece_name(piece)} ({_exit_name(reason)})", rate)
    except _TimeIsUp:
        if piece == 1:
            done = max(_ITERATIONS - vcpu.loop_left(), 0)
            rate = 2 * done / (time.monotonic() - began)
            return Verdict(False, f"it is too slow: {rate / 1e6:.1f} million instructions a second", rate)
        return Verdict(False, f"it hangs at {_piece_name(piece)}", rate)
    except OSError as error:
        return Verdict(False, f"it fails at {_piece_name(piece)} ({error.strerror})", rate)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _piece_name(piece: int) -> str:
    return _PIECES[max(piece, 0)][0] if piece < _DONE else "hlt"


def _exit_name(reason: int) -> str:
    names = {
        _EXIT_SHUTDOWN: "triple fault",
        _EXIT_FAIL_ENTRY: "the processor refuses the state",
        _EXIT_INTERNAL_ERROR: "internal error of KVM",
    }
    return names.get(reason, f"exit {reason}")


def main() -> None:
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        if fcntl.ioctl(kvm, _KVM_GET_API_VERSION, 0) != 12:
            verdict = Verdict(False, "it speaks an unknown API version")
        else:
            verdict = judge(kvm)
    except OSError as error:
        verdict = Verdict(False, f"no virtual machine can be made ({error.strerror})")
    json.dump(verdict._asdict(), sys.stdout)


if __name__ == "__main__":
    main()
