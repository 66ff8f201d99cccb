"""Telling whoever started the daemon that it is ready, or why it cannot be."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any

from insula.kit.errors import InsulaError

READY_VARIABLE = "INSULA_READY_FD"


class Ready:
    """One report, to a pipe and to systemd; a second one is not heard. Nobody need be listening.

    The pipe ($INSULA_READY_FD) gets one line, {"ok": true} or {"problem": {...}}, and is closed. systemd
    ($NOTIFY_SOCKET, sd_notify(3)) gets READY=1, and STOPPING=1 at the end.
    """

    def __init__(self, descriptor: int | None = None, notify: str | None = None) -> None:
        self._descriptor = descriptor
        self._notify = notify

    @classmethod
    def from_environment(cls) -> Ready:
        """As our starter set it up; taken out of the environment, so that no child inherits it."""
        text = os.environ.pop(READY_VARIABLE, "")
        notify = os.environ.pop("NOTIFY_SOCKET", None)
        descriptor = int(text) if text.isdecimal() else None
        if descriptor is not None:
            try:
                os.set_inheritable(descriptor, False)
            except OSError:
                descriptor = None
        return cls(descriptor, notify)

    def succeed(self) -> None:
        self._report({"ok": True})
        self._tell_systemd("READY=1")

    def fail(self, error: InsulaError) -> None:
        self._report({"problem": error.to_problem()})
        self._tell_systemd(f"STATUS={error.message}")

    def stop(self) -> None:
        self._tell_systemd("STOPPING=1")

    def _report(self, line: dict[str, Any]) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        # A starter that went away (BrokenPipeError) does not want to know any more.
        with contextlib.suppress(OSError), os.fdopen(descriptor, "w") as pipe:
            pipe.write(json.dumps(line, default=repr) + "\n")

    def _tell_systemd(self, state: str) -> None:
        if self._notify is None:
            return
        # '@' is the abstract namespace, whose names begin with a null byte (unix(7)).
        address = "\0" + self._notify[1:] if self._notify.startswith("@") else self._notify
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), address)
