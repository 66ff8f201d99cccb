"""insula image pull, import, export: images that come from elsewhere, and go there."""

from __future__ import annotations

from insula.cli.operate import perform
from insula.cli.output import print_json, print_table, say
from insula.cli.parser import Parser, size
from insula.client.sdk import connect
from insula.kit.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.cli.parser import Options
    from insula.client.sdk import Client
    from insula.client.types import CatalogueInfo

# As docs/reference/images.md has them; the daemon checks again, and knows what it can.
_DISKS = ("raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "qed", "parallels")
_FORMATS = (*_DISKS, "iso")
_EXPORTS = (*_DISKS[:3], "vmdk-stream", *_DISKS[3:])


def list_catalogue(client: Client, options: Options) -> int:
    """insula image ls --catalogue"""
    entries: list[CatalogueInfo] = client.catalogue()
    if options.json:
        print_json(entries)
    elif options.quiet:
        for entry in entries:
            print(entry["name"])
    else:
        rows = [
            [
                e["name"],
                e["version"],
                e["architecture"],
                e["os"],
                format_size(e["size"]) if e["size"] else "-",
            ]
            for e in entries
        ]
        print_table(["NAME", "VERSION", "ARCHITECTURE", "OS", "SIZE"], rows)
    return 0


def pull(argv: list[str]) -> int:
    parser = Parser(
        "image pull",
        "Download an image that a catalogue lists, and check it against its publisher's checksum.\n"
        "What has come is kept for a day when it fails or Ctrl-C ends it: pulling again goes on there.",
    )
    parser.argument("source", "IMAGE", "image in a catalogue: insula image ls --catalogue")
    parser.option("--name", metavar="NAME", help="what to call it here, if not as there")
    options = parser.parse(argv)
    client = connect()
    name = options.name or options.source
    perform(lambda: client.submit_pull(name, options.source), quiet=options.quiet)
    return _tell(client, options, name, "Pulled")


def import_file(argv: list[str]) -> int:
    """insula image import FILE"""
    parser = Parser(
        "image import",
        "Make an image of a disk in a file: raw, qcow2, VMDK, VHD, VHDX, VDI, QED or Parallels.\n"
        "The header is read first; what names other files, is damaged or absurd is refused with the reason.",
        examples="insula image import server.vmdk --name server --os 'Debian 11' --cloud-init --user debian",
    )
    parser.argument("file", "FILE", "the disk; of a split VMDK its descriptor")
    parser.option("--name", metavar="NAME", help="what to call it (default: from the file's name)")
    parser.option("--format", choices=_FORMATS, help="what it is (default: what its header says)")
    parser.option("--os", metavar="TEXT", help="which system is on it, for people")
    parser.option("--summary", metavar="TEXT", help="one line for insula image ls")
    parser.option("--user", metavar="NAME", help="its login name (default: root)")
    parser.option("--agent", choices=("qemu", "none"), help="the guest agent on it (default: none)")
    parser.flag("--cloud-init", help="cloud-init is on it, so that users and keys can be set")
    parser.option("--memory", metavar="SIZE", convert=size, help="for a machine of it (default: 1GiB)")
    parser.option("--firmware", choices=("bios", "uefi"), help="what it boots by (default: bios)")
    parser.flag("--replace", help="in the place of an image that has the name")
    options = parser.parse(argv)
    client = connect()
    name = options.name or _name_of(options.file)
    perform(
        lambda: client.submit_import(
            options.file,
            name,
            format=options.format,
            os=options.os,
            summary=options.summary,
            default_user=options.user,
            agent=options.agent,
            cloud_init=options.cloud_init or None,
            memory=options.memory,
            firmware=options.firmware,
            replace=options.replace or None,
        ),
        quiet=options.quiet,
    )
    return _tell(client, options, name, "Imported")


def export(argv: list[str]) -> int:
    """insula image export NAME FILE"""
    parser = Parser(
        "image export",
        "Write an image's disk to a file, sparse. The file is there once it is whole, or not at all.",
    )
    parser.add_name("image")
    parser.argument("file", "FILE", "the file to make")
    parser.option("--format", choices=_EXPORTS, default="qcow2", help="of the file (default: qcow2)")
    parser.flag("--replace", help="in the place of a file that is there")
    options = parser.parse(argv)
    client = connect()
    info = perform(
        lambda: client.submit_export(options.name, options.file, options.format, options.replace),
        quiet=options.quiet,
    )
    outcome = info["outcome"] or {}
    if options.json:
        print_json(outcome)
    elif not options.quiet:
        say(f"Exported as {outcome.get('format')}: {format_size(outcome.get('size_bytes', 0))}.")
        print(outcome.get("path"))
    return 0


def _tell(client: Client, options: Options, name: str, done: str) -> int:
    image = client.image(name)
    if options.json:
        print_json(image)
    elif not options.quiet:
        say(f"{done} {format_size(image['size_bytes'])}.")
        print(image["name"])
    return 0


def _name_of(file: str) -> str:
    """A name for an image out of a file's name: 'Server 1.vmdk' -> 'server-1'."""
    stem = file.rsplit("/", 1)[-1].split(".", 1)[0].lower()
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem)
    return "-".join(word for word in letters.split("-") if word)[:63].strip("-") or "imported"
