"""insula cdrom insert, eject, info."""

from __future__ import annotations

from insula.cli.groups import run_subcommand
from insula.cli.operate import perform
from insula.cli.output import print_json
from insula.cli.parser import Parser
from insula.client.sdk import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from insula.cli.parser import Options


def run(_command: str, argv: list[str]) -> int:
    table = {
        "insert": ("Put an image into a machine's CD drive, also while it runs", _insert),
        "eject": ("Empty a machine's CD drive", _eject),
        "info": ("Show what is in a machine's CD drive", _info),
    }
    return run_subcommand("cdrom", "CDs and DVDs: images in the drives of machines.", table, argv)


def _parser(command: str, summary: str, examples: str = "") -> Parser:
    parser = Parser(f"cdrom {command}", summary, examples=examples)
    parser.argument("machine", "MACHINE", "name of the machine")
    parser.add_project()
    return parser


def _insert(argv: list[str]) -> int:
    parser = _parser(
        "insert",
        "Put an image into a machine's CD drive, at once when it runs, in place of what is in it.\n"
        "A machine without a drive gets one.",
        examples="insula image import tools.iso --name tools\ninsula cdrom insert web tools",
    )
    parser.argument("image", "IMAGE", "name of an image that was imported from an ISO file")
    parser.option(
        "--bus",
        choices=("ata", "scsi"),
        help="of a drive that it gets: ata (IDE or SATA; only while it is off) or scsi (virtio)",
    )
    options = parser.parse(argv)
    body = {"image": options.image, **({"bus": options.bus} if options.bus else {})}
    return _do(options, "cdrom-insert", body)


def _eject(argv: list[str]) -> int:
    parser = _parser(
        "eject", "Empty a machine's CD drive. Unmount it in the guest first: a guest that uses it locks it."
    )
    parser.flag("--force", help="also from a guest that has locked it; what it reads then fails")
    options = parser.parse(argv)
    return _do(options, "cdrom-eject", {"force": options.force})


def _info(argv: list[str]) -> int:
    options = _parser("info", "Show what is in a machine's CD drive.").parse(argv)
    drive = connect().machine(options.machine, options.project).info["cdrom"]
    if options.json:
        print_json(drive)
    else:
        from insula.cli.info import describe_drive

        print(describe_drive(drive) or "no drive")
    return 0


def _do(options: Options, verb: str, body: dict[str, Any]) -> int:
    machine = connect().machine(options.machine, options.project)
    info = perform(lambda: machine.submit(verb, body), quiet=options.quiet)
    if options.json:
        print_json(info)
    elif not options.quiet:
        print(options.machine)
    return 0
