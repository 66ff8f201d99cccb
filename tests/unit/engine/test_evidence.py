"""How an end is judged from what little is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.engine.evidence import collect, judge_cause, printable, read_tail
from insula.kit.paths import COMMAND, QEMU_STDERR, SERIAL_LOG

SIGTERM = "qemu-system-x86_64: terminating on signal 15 from pid 1 (init)"


@pytest.mark.parametrize(
    ("status", "stderr", "killed", "shutdown", "cause"),
    [
        (0, "", False, {"guest": True, "reason": "guest-shutdown"}, "guest-shutdown"),
        (0, "", False, None, "guest-shutdown"),
        (0, SIGTERM, False, None, "host-stop"),
        (0, SIGTERM, False, {"guest": False, "reason": "host-signal"}, "host-stop"),
        (0, "", False, {"guest": False, "reason": "host-qmp-quit"}, "host-stop"),
        (143, "", False, None, "host-stop"),
        (0, "", False, {"guest": True, "reason": "guest-panic"}, "crash"),
        (137, "", True, None, "host-kill"),
        (None, "", True, None, "host-kill"),
        (137, "", False, None, "crash"),
        (139, "", True, None, "crash"),
        (139, "", False, {"guest": True, "reason": "guest-shutdown"}, "crash"),
        (1, "no", False, None, "crash"),
        (None, "", False, None, "crash"),
    ],
)
def test_who_asked_for_the_end(
    status: int | None, stderr: str, killed: bool, shutdown: dict[str, object] | None, cause: str
) -> None:
    assert judge_cause(status, stderr, killed=killed, shutdown=shutdown) == cause


def test_a_tail_is_short_and_cannot_steer_a_terminal(tmp_path: Path) -> None:
    (tmp_path / SERIAL_LOG).write_bytes(b"x" * 9000 + b"\r\n\x1b[2Jlast \xff\tword\x00\r\n")
    tail = read_tail(tmp_path / SERIAL_LOG)
    assert len(tail) <= 4000
    assert tail.endswith("\n\\x1b[2Jlast �\tword\\x00")
    assert printable("\x9b2J\u202e") == "\\x9b2J\\u202e"


def test_evidence_without_any_file(tmp_path: Path) -> None:
    found = collect(tmp_path, None)
    assert (found.cause, found.command, found.stderr, found.serial) == ("crash", "", "", "")


def test_evidence_names_signal_and_command(tmp_path: Path) -> None:
    (tmp_path / COMMAND).write_text("#!/bin/sh\n# why\ncd /x && qemu -S\n")
    (tmp_path / QEMU_STDERR).write_text("boom\n")
    found = collect(tmp_path, 139)
    assert (found.signal, found.command, found.stderr) == (11, "cd /x && qemu -S", "boom")


def test_what_every_launch_says_is_no_complaint(tmp_path: Path) -> None:
    waits = "-chardev socket,id=qmp: info: QEMU waiting for connection on: disconnected:unix:qmp.sock"
    (tmp_path / QEMU_STDERR).write_text(f"qemu-system-x86_64: {waits}\nboom\n")
    assert collect(tmp_path, 1).stderr == "boom"
    (tmp_path / QEMU_STDERR).write_text(f"qemu-system-x86_64: {waits}\n")
    assert collect(tmp_path, 1).stderr == ""
