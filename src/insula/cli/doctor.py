"""insula doctor: what this host has and lacks, each with the command that mends it.

The daemon examines the host. When it cannot start, that is the first finding, and what can be seen from here
is examined all the same.
"""

from __future__ import annotations

import os
import sys

from insula.cli.output import GREEN, RED, YELLOW, paint, print_json, say
from insula.cli.parser import Parser
from insula.client.sdk import connect
from insula.kit.errors import InsulaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.types import FindingInfo

MISSING_STATUS = 69  # EX_UNAVAILABLE
_MARKS = {"ok": ("ok", GREEN), "limited": ("limited", YELLOW), "missing": ("MISSING", RED)}


def parser() -> Parser:
    return Parser(
        "doctor",
        "Say what this host has and lacks, with the command that mends it. Exits with 69 when something\n"
        "is missing that will not work without; 'limited' means slower, or less.",
    )


def run(_command: str, argv: list[str]) -> int:
    options = parser().parse(argv)
    client = connect()
    failure: InsulaError | None = None
    try:
        findings = client.findings()
    except InsulaError as error:
        failure = error
        findings = [_about(error), *examine_locally(client.home)]
    if options.json:
        print_json(findings)
    else:
        _print(findings, options.quiet)
    if failure is not None and options.verbose:
        from insula.cli.report import render

        say(render(failure))
    return MISSING_STATUS if any(finding["state"] == "missing" for finding in findings) else 0


def _about(error: InsulaError) -> FindingInfo:
    detail = " ".join([error.message, *(f"({cause})" for cause in error.causes())])
    log = str(error.evidence.get("log") or "").strip().splitlines()
    if log:
        detail += f" Its last word: {log[-1].strip()}"
    return {"name": "daemon", "state": "missing", "detail": detail, "mend": error.hint}


def examine_locally(home: str) -> list[FindingInfo]:
    """What can be said without the daemon: programs, /dev/kvm, the home."""
    findings: list[FindingInfo] = []
    for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("qemu-img", "qemu-utils")):
        path = _find(program)
        mend = "" if path else f"sudo apt-get install {package}"
        findings.append(
            {
                "name": program,
                "state": "ok" if path else "missing",
                "detail": path or "is not installed",
                "mend": mend,
            }
        )
    findings.append(_examine_kvm())
    writable = _is_writable(home)
    findings.append(
        {
            "name": "home",
            "state": "ok" if writable else "missing",
            "detail": home if writable else f"{home} cannot be written",
            "mend": "" if writable else "INSULA_HOME=DIR, with a directory that you may write",
        }
    )
    return findings


def _examine_kvm() -> FindingInfo:
    if not os.path.exists("/dev/kvm"):  # noqa: PTH110
        detail, mend = "there is no /dev/kvm: machines run on TCG, slower", "sudo modprobe kvm"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        detail, mend = "you may not use /dev/kvm: machines run on TCG, slower", "sudo usermod -aG kvm $USER"
    else:
        return {
            "name": "kvm",
            "state": "ok",
            "detail": "/dev/kvm may be opened; whether it works only the daemon tries",
            "mend": "",
        }
    return {"name": "kvm", "state": "limited", "detail": detail, "mend": mend}


def _find(program: str) -> str | None:
    for directory in os.environ.get("PATH", os.defpath).split(":"):
        path = f"{directory}/{program}"
        if os.access(path, os.X_OK):
            return path
    return None


def _is_writable(home: str) -> bool:
    path = home
    while not os.path.lexists(path):
        path = os.path.dirname(path) or "/"  # noqa: PTH120
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)  # noqa: PTH112


def _print(findings: list[FindingInfo], quiet: bool) -> None:
    width = max((len(finding["name"]) for finding in findings), default=0)
    for finding in findings:
        if quiet and finding["state"] == "ok":
            continue
        word, colour = _MARKS[finding["state"]]
        mark = paint(f"{word:<7}", colour, sys.stdout)
        sys.stdout.write(f"{mark}  {finding['name']:<{width}}  {finding['detail']}\n")
        if finding["mend"] and finding["state"] != "ok":
            sys.stdout.write(f"{'':<9}{'':<{width}}  mend: {finding['mend']}\n")
