"""How a machine's process ended, as far as its directory and what was heard can tell."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from insula.kit.clock import boot_id, utc_now
from insula.kit.paths import COMMAND, EXIT_STATUS, QEMU_STDERR, SERIAL_LOG
from insula.model.observation import ExitCause, ExitEvidence, ProcessIdentity

TAIL = 4000  # characters of stderr and of the serial log that are kept

_WAITED_FOR_US = "info: QEMU waiting for connection on:"  # its first words at each launch (plan.MONITOR)


def read_tail(path: Path, limit: int = TAIL) -> str:
    """The last characters of a file, fit to be shown: control characters are spelt out."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - 4 * limit))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return printable(text.replace("\r\n", "\n"))[-limit:].strip("\n")


def read_stderr(directory: Path) -> str:
    """What QEMU complained of, at most TAIL characters: without the line that every launch begins with."""
    lines = read_tail(directory / QEMU_STDERR).split("\n")
    return "\n".join(line for line in lines if _WAITED_FOR_US not in line)


def printable(text: str) -> str:
    """Text in which nothing can steer a terminal: ESC becomes \\x1b, and so on."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else _spelt(character)
        for character in text
    )


def _spelt(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def read_command(directory: Path) -> str:
    """The command as it was started, to be pasted."""
    try:
        lines = (directory / COMMAND).read_text().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def judge_cause(
    status: int | None,
    stderr: str,
    *,
    killed: bool = False,
    shutdown: Mapping[str, Any] | None = None,
    identity: ProcessIdentity | None = None,
) -> ExitCause:
    """Who asked for the end. shutdown: the data of QMP's SHUTDOWN, if it was heard (qapi/run-state.json).

    QEMU ends with status 0 both when its guest powers off and when the host sends it SIGTERM; it writes
    down the latter ("terminating on signal 15"), which tells them apart when nobody was listening.
    """
    if identity is not None and identity.boot_id != boot_id():
        return "host-reboot"
    if killed and status in (128 + 9, None):
        return "host-kill"
    if shutdown is not None and status in (0, None):
        if shutdown.get("reason") == "guest-panic":
            return "crash"
        return "guest-shutdown" if shutdown.get("guest") else "host-stop"
    if status == 128 + 15 or (status == 0 and "terminating on signal" in stderr):
        return "host-stop"
    return "guest-shutdown" if status == 0 else "crash"


def collect(
    directory: Path,
    status: int | None,
    *,
    killed: bool = False,
    shutdown: Mapping[str, Any] | None = None,
    identity: ProcessIdentity | None = None,
) -> ExitEvidence:
    """Everything that can be said of an end. status: 0..255 as a shell sees it, None if unknowable."""
    stderr = read_stderr(directory)
    return ExitEvidence(
        at=_ended_at(directory),
        cause=judge_cause(status, stderr, killed=killed, shutdown=shutdown, identity=identity),
        exit_status=status,
        signal=status - 128 if status is not None and 128 < status < 128 + 65 else None,
        command=read_command(directory),
        stderr=stderr,
        serial=read_tail(directory / SERIAL_LOG),
    )


def _ended_at(directory: Path) -> datetime:
    try:
        seconds = (directory / EXIT_STATUS).stat().st_mtime
    except OSError:
        return utc_now()
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
