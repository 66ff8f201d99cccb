"""insula volume create, ls, info, attach, detach, resize, clone, rm."""

from __future__ import annotations

from insula.cli.groups import run_subcommand
from insula.cli.operate import perform, perform_each
from insula.cli.output import age, ago, print_json, print_table
from insula.cli.output import size as shown_size
from insula.cli.parser import Parser, size
from insula.client.sdk import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from insula.cli.parser import Options
    from insula.client.operation import Operation
    from insula.client.types import VolumeInfo


def run(_command: str, argv: list[str]) -> int:
    table = {
        "ls": ("List volumes, and which machines have them", _ls),
        "create": ("Make an empty volume", _create),
        "info": ("Show a volume", _info),
        "attach": ("Give a machine a volume, also while it runs", _attach),
        "detach": ("Take a volume back from a machine", _detach),
        "resize": ("Let a volume grow, also under a machine that runs", _resize),
        "clone": ("Copy a volume", _clone),
        "rm": ("Remove volumes with all that is on them", _rm),
    }
    return run_subcommand("volume", "Disks that outlive machines.", table, argv)


def _parser(command: str, summary: str, *arguments: tuple[str, str, str], examples: str = "") -> Parser:
    parser = Parser(f"volume {command}", summary, examples=examples)
    for attribute, metavar, help in arguments:
        parser.argument(attribute, metavar, help)
    parser.add_project()
    return parser


_VOLUME = ("name", "VOLUME", "name of the volume")
_MACHINE = ("machine", "MACHINE", "name of the machine")


def _ls(argv: list[str]) -> int:
    options = Parser("volume ls", "List volumes, and which machines have them.").parse(argv)
    volumes = [volume.last_info for volume in connect().volumes() if volume.last_info is not None]
    if options.json:
        print_json(volumes)
    elif options.quiet:
        for volume in volumes:
            print(volume["name"])
    else:
        headers = ["NAME", "SIZE", "ON DISK", "AGE", "ATTACHED TO"]
        print_table(headers, [_row(volume) for volume in volumes])
    return 0


def _row(volume: VolumeInfo) -> list[str]:
    taken = shown_size(volume["allocated_bytes"])
    return [volume["name"], shown_size(volume["size_bytes"]), taken, age(volume["created"]), _users(volume)]


def _users(volume: VolumeInfo) -> str:
    users = [
        user["machine"] + (" (read-only)" if user["read_only"] else "") for user in volume["attached_to"]
    ]
    return ", ".join(users) or "-"


def _info(argv: list[str]) -> int:
    options = _parser("info", "Show a volume.", _VOLUME).parse(argv)
    volume = connect().volume(options.name, options.project).info
    if options.json:
        print_json(volume)
        return 0
    rows = [
        ("name", volume["name"]),
        ("uid", f"{volume['uid']}, generation {volume['generation']}"),
        ("size", f"{shown_size(volume['size_bytes'])} ({volume['size_bytes']} bytes)"),
        ("on disk", f"{shown_size(volume['allocated_bytes'])}, {volume['format']}"),
        ("created", ago(volume["created"])),
        ("attached to", _users(volume)),
        ("in a guest", f"/dev/disk/by-id/virtio-{volume['serial']} (bus virtio)"),
        ("directory", volume["directory"]),
    ]
    print("\n".join(f"{key + ':':<13}{value}" for key, value in rows))
    return 0


def _create(argv: list[str]) -> int:
    parser = _parser(
        "create", "Make an empty volume. It takes no space until something is written.", _VOLUME,
        examples="insula volume create data --size 10GiB",
    )  # fmt: skip
    parser.option("--size", metavar="SIZE", convert=size, default=2**30, help="such as 10GiB (default: 1GiB)")
    options = parser.parse(argv)
    client = connect()
    return _do(options, lambda: client.submit_create_volume(options.name, options.size, options.project))


def _attach(argv: list[str]) -> int:
    parser = _parser(
        "attach",
        "Give a machine a volume, at once when it runs. One machine may write to it, or any number read.",
        _VOLUME,
        _MACHINE,
    )
    parser.flag("--ro", help="the machine may only read it")
    parser.option("--bus", choices=("virtio", "scsi"), default="virtio", help="what it is to the guest")
    options = parser.parse(argv)
    machine = connect().machine(options.machine, options.project)
    body = {"volume": options.name, "read_only": options.ro, "bus": options.bus}
    return _do(options, lambda: machine.submit("attach", body))


def _detach(argv: list[str]) -> int:
    parser = _parser(
        "detach",
        "Take a volume back from a machine. Unmount it in the guest first: a guest that holds on keeps it.",
        _VOLUME,
        _MACHINE,
    )
    options = parser.parse(argv)
    machine = connect().machine(options.machine, options.project)
    return _do(options, lambda: machine.submit("detach", {"volume": options.name}))


def _resize(argv: list[str]) -> int:
    parser = _parser("resize", "Let a volume grow, also while a machine that has it runs.", _VOLUME)
    parser.argument("size", "SIZE", "its new size, such as 20GiB; it never shrinks")
    options = parser.parse(argv)
    volume = connect().volume(options.name, options.project)
    return _do(options, lambda: volume.submit_resize(size(options.size)))


def _clone(argv: list[str]) -> int:
    parser = _parser("clone", "Make a whole, independent copy of a volume.", _VOLUME)
    parser.argument("new_name", "NEW", "name of the copy")
    options = parser.parse(argv)
    volume = connect().volume(options.name, options.project)
    return _do(options, lambda: volume.submit_clone(options.new_name), told=options.new_name)


def _rm(argv: list[str]) -> int:
    parser = Parser(
        "volume rm", "Remove volumes with all that is on them. One that a machine has is refused."
    )
    parser.add_names("volume")
    parser.add_project()
    options = parser.parse(argv)
    client = connect()
    return perform_each(
        options, options.names, lambda name: client.volume(name, options.project).submit_remove()
    )


def _do(options: Options, submit: Callable[[], Operation], *, told: str = "") -> int:
    info = perform(submit, quiet=options.quiet)
    if options.json:
        print_json(info)
    elif not options.quiet:
        print(told or options.name)
    return 0
