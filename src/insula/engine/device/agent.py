"""The guest agent's channel: a virtio-serial bus with one named port."""

from __future__ import annotations

from insula.engine.device.base import Fragment, Surroundings, launches, option
from insula.kit.paths import AGENT_SOCKET, QGA_SOCKET
from insula.model.device.agent import AGENT_PORTS, AgentPort

SOCKETS = {"insula": AGENT_SOCKET, "qemu": QGA_SOCKET}


@launches("agent")
def launch(agent: AgentPort, surroundings: Surroundings) -> Fragment:
    """max_ports=2: port 0 is kept for a console, ours is 1; the default of 31 makes 64 queues for nothing."""
    backend = option("socket", id=f"{agent.id}-socket", path=SOCKETS[agent.protocol], server="on", wait="off")
    bus = f"virtio-serial-pci,id={agent.id}-bus,max_ports=2"
    port = option(
        "virtserialport",
        id=agent.id,
        bus=f"{agent.id}-bus.0",
        nr=1,
        chardev=f"{agent.id}-socket",
        name=AGENT_PORTS[agent.protocol],
    )
    return ("-chardev", backend, "-device", bus, "-device", port)
