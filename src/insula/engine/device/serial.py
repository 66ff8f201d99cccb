"""The serial console: a socket for whoever types, and a log that is kept whether anybody listens or not."""

from __future__ import annotations

from insula.engine.device.base import Fragment, Surroundings, launches, option
from insula.kit.paths import SERIAL_LOG, SERIAL_SOCKET
from insula.model.device.serial import Serial


@launches("serial")
def launch(serial: Serial, surroundings: Surroundings) -> Fragment:
    backend = option(
        "socket",
        id=f"{serial.id}-socket",
        path=SERIAL_SOCKET,
        server="on",
        wait="off",
        logfile=SERIAL_LOG,
        logappend="on",
    )
    return ("-chardev", backend, "-device", option("isa-serial", id=serial.id, chardev=f"{serial.id}-socket"))
