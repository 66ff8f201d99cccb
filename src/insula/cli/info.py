"""insula info NAME: all about a machine, and how to reach it."""

from __future__ import annotations

import sys

from insula.cli.output import PHASE_COLOURS, ago, paint, print_json
from insula.cli.parser import Parser
from insula.client.sdk import connect
from insula.kit.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.types import AttachedVolumeInfo, CdromInfo, ExitInfo, MachineInfo

_CAUSES = {
    "guest-shutdown": "the guest powered itself off",
    "host-stop": "it was stopped",
    "host-kill": "it was killed",
    "crash": "it crashed",
    "host-reboot": "the host went down",
}


def parser() -> Parser:
    p = Parser("info", "Show all about a machine: what it is, how it is, how to reach it, how it last ended.")
    p.add_names()
    p.add_project()
    return p


def run(_command: str, argv: list[str]) -> int:
    options = parser().parse(argv)
    client = connect()
    found = [client.machine(name, options.project).info for name in options.names]
    if options.json:
        print_json(found[0] if len(found) == 1 else found)
    else:
        sys.stdout.write("\n".join(_render(info) for info in found))
    return 0


def _render(info: MachineInfo) -> str:
    phase = paint(info["phase"], PHASE_COLOURS.get(info["phase"], ""), sys.stdout)
    rows = [
        ("name", info["name"] + (f" (project {info['project']})" if info["project"] != "default" else "")),
        ("uid", f"{info['uid']}, generation {info['generation']}"),
        ("phase", f"{phase} since {ago(info['since'])}"),
        ("because", info["reason"]),
        ("image", f"{info['image']} ({info['image_digest'][:19]})"),
        ("created", ago(info["created"])),
        ("cpus", str(info["cpus"])),
        ("memory", format_size(info["memory_bytes"])),
        ("boot", info["boot"] + (", by UEFI" if info["firmware"] == "uefi" else "")),
        ("accelerator", _accelerator(info)),
        ("process", f"{info['pid']}" if info["pid"] else ""),
        ("engine", info["engine_version"]),
        ("agent", info["agent"]),
        ("network", _network(info)),
        ("volumes", ", ".join(_volume(volume) for volume in info["volumes"])),
        ("cdrom", describe_drive(info["cdrom"])),
        ("addresses", ", ".join(info["addresses"])),
        ("run policy", _policy(info)),
        ("directory", info["directory"]),
    ]
    lines = [f"{key + ':':<13}{value}" for key, value in rows if value]
    lines += _how_to_reach(info)
    if info["last_exit"] and info["phase"] != "suspended":  # its process had to end, and was ended by us
        lines += _last_exit(info["last_exit"], info["phase"])
    return "\n".join(lines) + "\n"


def _accelerator(info: MachineInfo) -> str:
    accelerator = info["accelerator"]
    return f"{accelerator['name']}: {accelerator['reason']}" if accelerator else ""


def _network(info: MachineInfo) -> str:
    ports = [
        f"{p['host_address']}:{p['host_port']} -> {p['guest_port']}/{p['protocol']}" for p in info["publish"]
    ]
    return ", ".join([info["network"], *ports])


def _volume(volume: AttachedVolumeInfo) -> str:
    how = f"{volume['bus']}, read-only" if volume["read_only"] else volume["bus"]
    return f"{volume['name']} ({how})"


def describe_drive(drive: CdromInfo | None) -> str:
    """'tools (ata)', 'empty (scsi)', or nothing."""
    return f"{drive['image'] or 'empty'} ({drive['bus']})" if drive else ""


def _policy(info: MachineInfo) -> str:
    words = [info["run_policy"]]
    if info["ephemeral"]:
        words.append("removed once it has ended")
    if info["restarts"]:
        words.append(f"restarted {info['restarts']} times since it was last started by hand")
    return ", ".join(words)


def _how_to_reach(info: MachineInfo) -> list[str]:
    if info["phase"] not in ("running", "starting"):
        return []
    lines = ["reach it:", f"  insula shell {info['name']}"]
    if info["agent"] != "none":
        lines.append(f"  insula exec {info['name']} -- COMMAND")
    for port in info["publish"]:
        if port["guest_port"] == 22 and port["protocol"] == "tcp":
            lines.append(f"  ssh -p {port['host_port']} {port['host_address']}")
    return lines


def _last_exit(last: ExitInfo, phase: str) -> list[str]:
    how = _CAUSES.get(last["cause"], last["cause"])
    if last["signal"]:
        how += f", by signal {last['signal']}"
    elif last["exit_status"] is not None:
        how += f", exit status {last['exit_status']}"
    lines = [f"{'last exit:':<13}{ago(last['at'])}: {how}"]
    if last["cause"] == "crash" or (last["cause"] == "host-kill" and phase == "stopped"):
        for key in ("command", "stderr", "serial"):
            text = str(last[key]).rstrip("\n")
            if text:
                lines += [f"  {key}:", *(f"    {line}" for line in text.splitlines()[-20:])]
    return lines
