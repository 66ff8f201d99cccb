"""Where Insula keeps things: the layout of a home and the file names of a run directory, once.

HOME/                        $INSULA_HOME, else /var/lib/insula (root) or $XDG_DATA_HOME/insula
  insula.db                  the ledger (SQLite, WAL)
  host.json                  what was probed about this host, cached per boot
  images/NAME/               images (elsewhere with $INSULA_IMAGES)
  catalogues/*.json          what can be pulled, besides what is shipped
  machines/UID/              a machine: disks and run directory in one
  volumes/UID/               a volume: its disk and a copy of its document
  templates/KEY/             a template: frozen disks and devices; its memory is a process's
  captures/UID/              a machine as it was when it was forked, until its forks have it
  snapshots/UID/             a snapshot: links to frozen disks, memory if it has any, a copy of its document
  daemon/                    socket, lock, log of insulad
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# The files of a machine's directory. Every name is a line in docs/reference/run-directory.md.
MACHINE_DOCUMENT = "machine.json"  # copy of the document, for recovery of a lost ledger
LAUNCH_PLAN = "plan.json"
COMMAND = "command.sh"  # the QEMU command as started, pasteable
PID_FILE = "qemu.pid"  # "PID STARTTIME BOOT_ID" of QEMU, written by the supervisor
RUN_LOCK = "run.lock"  # flock held as long as QEMU or its supervisor lives
EXIT_STATUS = "exit"  # QEMU's exit status as the supervisor's shell saw it (128+N: signal N)
QMP_SOCKET = "qmp.sock"
AGENT_SOCKET = "agent.sock"  # Insula's guest agent
QGA_SOCKET = "qga.sock"  # the QEMU guest agent
SERIAL_SOCKET = "serial.sock"
SERIAL_LOG = "serial.log"
QEMU_STDERR = "qemu.stderr"
SEED_ISO = "seed.iso"
UEFI_VARIABLES = "uefi-vars.qcow2"  # what the firmware of a machine with UEFI remembers
DEVICE_STATE = "device.state"  # of a frozen machine: its processors and devices, without memory
LATE_KERNEL = "late.kernel"  # boot files of a fork, for the case that its guest reboots
LATE_INITRD = "late.initrd"
TEMPLATE_DOCUMENT = "template.json"  # what a template is; there once it is whole
CAPTURE_DOCUMENT = "capture.json"  # of a machine that is forked; there once the capture is whole
SUSPENDED_STATE = "suspended.state"  # memory and devices of a suspended machine
SUSPENDED_DOCUMENT = "suspended.json"  # which disks the state belongs to, as they were then
RESUMING_DOCUMENT = "resuming.json"  # the same, once a process has been told to go on with it

# The files of a volume's directory.
VOLUME_DOCUMENT = "volume.json"  # copy of the document, for recovery of a lost ledger
VOLUME_DISK = "disk.qcow2"

# The files of a snapshot's directory, besides its disks.
SNAPSHOT_DOCUMENT = "snapshot.json"  # copy of the document, for recovery of a lost ledger
SNAPSHOT_STATE = "machine.state"  # memory and devices

DAEMON_SOCKET = "insula.sock"
DAEMON_LOCK = "insulad.lock"
DAEMON_LOG = "insulad.log"
DAEMON_STATUS = "insulad.json"


@dataclass(frozen=True)
class Home:
    """One host's state; several may live on one machine, knowing nothing of each other."""

    root: Path
    images_override: Path | None = None

    @classmethod
    def from_environment(cls) -> Home:
        """The home that $INSULA_HOME names, or this user's own."""
        images = os.environ.get("INSULA_IMAGES")
        override = Path(images).absolute() if images else None
        named = os.environ.get("INSULA_HOME")
        if named:
            return cls(Path(named).absolute(), override)
        if os.geteuid() == 0:
            return cls(Path("/var/lib/insula"), override)
        data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111
        return cls(Path(data) / "insula", override)

    @property
    def ledger(self) -> Path:
        return self.root / "insula.db"

    @property
    def host_facts(self) -> Path:
        return self.root / "host.json"

    @property
    def images(self) -> Path:
        return self.images_override or self.root / "images"

    @property
    def machines(self) -> Path:
        return self.root / "machines"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def templates(self) -> Path:
        return self.root / "templates"

    @property
    def captures(self) -> Path:
        return self.root / "captures"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def daemon(self) -> Path:
        return self.root / "daemon"

    @property
    def daemon_socket(self) -> Path:
        return self.daemon / DAEMON_SOCKET

    def machine(self, uid: str) -> Path:
        """The directory of one machine."""
        return self.machines / uid

    def volume(self, uid: str) -> Path:
        """The directory of one volume."""
        return self.volumes / uid

    def snapshot(self, uid: str) -> Path:
        """The directory of one snapshot."""
        return self.snapshots / uid


def write_atomically(path: Path, data: str | bytes, mode: int = 0o600) -> None:
    """Replace a file so that a reader, or a crash, sees the old content or the new, never a part."""
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fdatasync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def socket_address(path: Path) -> tuple[str, int | None]:
    """An address for a unix socket that fits sun_path's 108 bytes (unix(7)), however deep the home is.

    Returns (address, descriptor): a too long path goes by way of /proc/self/fd/N/NAME, and the caller closes
    the descriptor once connected or bound.
    """
    if len(os.fsencode(path)) < 108:
        return str(path), None
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{directory}/{path.name}", directory
