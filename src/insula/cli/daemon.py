"""insula daemon status, stop, start."""

from __future__ import annotations

from insula.cli.groups import run_subcommand
from insula.cli.output import ago, print_json, say
from insula.cli.parser import Parser
from insula.client.sdk import connect
from insula.kit.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.types import DaemonInfo


def run(_command: str, argv: list[str]) -> int:
    table = {
        "status": ("Say whether the daemon runs, and what its last start found", _status),
        "stop": ("Stop the daemon; machines go on", _stop),
        "start": ("Start the daemon, which any other command does too", _start),
    }
    return run_subcommand("daemon", "Show, stop and start the daemon of this home.", table, argv)


def _status(argv: list[str]) -> int:
    options = Parser("daemon status", "Say whether the daemon runs. Never starts it.").parse(argv)
    _print(connect().daemon_status(), options.json)
    return 0


def _start(argv: list[str]) -> int:
    parser = Parser("daemon start", "Start the daemon unless it runs.")
    parser.flag(
        "--recover-ledger",
        help="set a damaged ledger aside and make a new one from the machines' directories",
    )
    options = parser.parse(argv)
    _print(connect().daemon_start(recover_ledger=options.recover_ledger), options.json)
    return 0


def _stop(argv: list[str]) -> int:
    options = Parser("daemon stop", "Stop the daemon; machines go on running.").parse(argv)
    stopped = connect().daemon_stop()
    if options.json:
        print_json({"running": False, "stopped": stopped})
    elif not options.quiet:
        say("The daemon is stopped; machines go on." if stopped else "The daemon does not run.")
    return 0


def _print(status: DaemonInfo | None, as_json: bool) -> None:
    if as_json:
        print_json({"running": status is not None, **(status or {})})
        return
    if status is None:
        print("The daemon does not run. Any command that needs it starts it.")
        return
    machines = status["machines"]
    rows = [
        ("running", f"process {status['pid']} since {ago(status['started'])}"),
        ("version", status["version"]),
        ("home", status["home"]),
        ("socket", status["socket"]),
        ("memory", format_size(status["resident_bytes"])),
        ("machines", f"{machines['running']} running of {machines['total']}"),
    ]
    print("\n".join(f"{key + ':':<13}{value}" for key, value in rows))
    for line in status["recovered"]:
        print(f"{'at start:':<13}{line}")
