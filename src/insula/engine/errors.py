"""The engine's errors.

Unavailable ── EngineMissing, AcceleratorUnavailable, LaunchFailed, EngineLost, TemplateGone
Conflict ── ConsoleBusy, MachineDirectoryBusy, EngineRefused, DiskFileInUse, DiskNotReleased,
             MergeFailed, MediumLocked
Invalid ── NoAgent, NoConsole, UnsupportedDevice
"""

from __future__ import annotations

from insula.kit.errors import Conflict, Invalid, Unavailable


class EngineMissing(Unavailable):
    """QEMU is not installed, or too old."""

    code = "engine-missing"


class AcceleratorUnavailable(Unavailable):
    """The accelerator that was asked for does not work on this host."""

    code = "accelerator-unavailable"


class LaunchFailed(Unavailable):
    """The monitor did not come up; evidence: exit_status, command, stderr, serial."""

    code = "launch-failed"


class EngineLost(Unavailable):
    """The monitor ended, or stopped answering, in the middle of a request."""

    code = "engine-lost"


class TemplateGone(Unavailable):
    """The frozen memory that a machine was to be a fork of is not there any more."""

    code = "template-gone"


class ConsoleBusy(Conflict):
    """Somebody else holds the console."""

    code = "console-busy"


class MachineDirectoryBusy(Conflict):
    """A process holds the run directory's lock and cannot be spoken to."""

    code = "machine-directory-busy"


class EngineRefused(Conflict):
    """The monitor understood the request and said no; evidence: request, answer."""

    code = "engine-refused"


class DiskFileInUse(Conflict):
    """Another process has the disk's file open in a way that excludes this one."""

    code = "disk-file-in-use"


class DiskNotReleased(Conflict):
    """The guest did not let go of a disk; it still has it."""

    code = "disk-not-released"


class MergeFailed(Conflict):
    """Layers of a disk could not be made one; the disk is as it was."""

    code = "merge-failed"


class MediumLocked(Conflict):
    """The guest uses the medium in its drive, and has locked the tray."""

    code = "medium-locked"


class NoAgent(Invalid):
    """The machine has no port for a guest agent."""

    code = "no-agent"


class NoConsole(Invalid):
    """The machine has no serial console."""

    code = "no-console"


class UnsupportedDevice(Invalid):
    """This engine cannot do what the device asks."""

    code = "unsupported-device"
