"""Network cards on QEMU's user-mode stack, which needs no privilege."""

from __future__ import annotations

from insula.engine.device.base import Fragment, Surroundings, launches, option
from insula.model.device.nic import NetworkMode, Nic, Publish

# QEMU's DHCP server gives addresses from .15 on to cards in the order in which it first hears of them, and
# keeps the list in its state (slirp/src/bootp.c; it knows no release). A fork's card is the second that it
# hears of.
_FORKS_ADDRESS = "10.0.2.16"


def _forward(publish: Publish, guest: str) -> str:
    return f"{publish.protocol}:{publish.host_address}:{publish.host_port}-{guest}:{publish.guest_port}"


@launches("nic")
def launch(nic: Nic, surroundings: Surroundings) -> Fragment:
    """restrict=on lets nothing out, neither to the host nor beyond, but answers on published ports.

    romfile is empty: the PXE boot ROM costs memory and time, and there is nobody to boot from.
    """
    if nic.mode is NetworkMode.NONE:
        return ()
    guest = _FORKS_ADDRESS if surroundings.forked else ""  # "": the first that is given
    published = () if surroundings.vessel else nic.publish  # the ports are the live machine's
    forwards = [option("", hostfwd=_forward(publish, guest)).lstrip(",") for publish in published]
    restrict = "on" if nic.mode is NetworkMode.ISOLATED else "off"
    netdev = ",".join([option("user", id=f"{nic.id}-net", restrict=restrict), *forwards])
    card = option("virtio-net-pci", id=nic.id, netdev=f"{nic.id}-net", mac=nic.mac, romfile="")
    return ("-netdev", netdev, "-device", card)
