"""insula start, stop, restart, reset, pause, resume, suspend, kill, rm: they take several machines."""

from __future__ import annotations

from insula.cli.main import commands
from insula.cli.operate import perform_each
from insula.cli.parser import Parser, UsageError, duration
from insula.client.sdk import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.operation import Operation

STOP_TIMEOUT = 30.0


def parser(command: str) -> Parser:
    p = Parser(command, f"{commands()[command]}.")
    if command in ("stop", "restart"):
        p.option(
            "--timeout",
            metavar="TIME",
            convert=duration,
            default=STOP_TIMEOUT,
            help="how long the guest may take to shut down (default: 30s)",
        )
        p.flag("--force", default=True, help="then force it (the default)")
        p.flag(
            "--no-force", attribute="force", value=False, default=True, help="then leave it running and fail"
        )
    if command == "start":
        p.flag("--cold", help="boot one that is suspended, and lose the memory that was saved of it")
    if command == "rm":
        p.flag("-f", "--force", help="also machines that run")
        p.flag("-a", "--all", help="all of them (running ones with --force)")
    p.add_names(count="*" if command == "rm" else "+")
    p.add_project()
    return p


def run(command: str, argv: list[str]) -> int:
    options = parser(command).parse(argv)
    client = connect()
    body = {"timeout": options.timeout, "force": options.force} if command in ("stop", "restart") else None
    if command == "start" and options.cold:
        body = {"cold": True}
    names = options.names
    if command == "rm":
        if bool(names) == options.all:
            raise UsageError("Say which machines: names, or --all.", hint="See: insula rm --help")
        if options.all:
            machines = client.machines(options.project)
            names = [m.name for m in machines if options.force or not _has_process(m.last_info)]

    def submit(name: str) -> Operation:
        machine = client.machine(name, options.project)
        if command == "rm":
            return machine.submit_remove(force=options.force)
        return machine.submit(command, body)

    return perform_each(options, names, submit)


def _has_process(info: object) -> bool:
    return isinstance(info, dict) and info["phase"] in ("starting", "running", "paused", "stopping")
