"""insula image ls, info, build, rm, prune; pull, import and export are in cli/transfer.py."""

from __future__ import annotations

from insula.cli.groups import run_subcommand
from insula.cli.operate import perform, perform_each
from insula.cli.output import DIM, age, ago, print_json, print_table, say
from insula.cli.parser import Parser
from insula.cli.transfer import export, import_file, list_catalogue, pull
from insula.client.sdk import connect
from insula.kit.units import format_duration, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from insula.client.types import ImageInfo


def run(_command: str, argv: list[str]) -> int:
    table = {
        "ls": ("List images, and what can be built", _ls),
        "pull": ("Download an image that a catalogue lists", pull),
        "import": ("Make an image of a disk in a file", import_file),
        "export": ("Write an image's disk to a file", export),
        "build": ("Build an image from its recipe", _build),
        "info": ("Show an image", _info),
        "rm": ("Remove images", _rm),
        "prune": ("Remove what no image and no machine needs any more", _prune),
    }
    return run_subcommand("image", "Pull, import, export, build, list and remove images.", table, argv)


def _ls(argv: list[str]) -> int:
    parser = Parser("image ls", "List images, and recipes that have not been built yet.")
    parser.flag("--catalogue", help="what can be pulled, instead")
    options = parser.parse(argv)
    client = connect()
    if options.catalogue:
        return list_catalogue(client, options)
    images = client.images()
    built = {image["name"] for image in images}
    recipes = [recipe for recipe in client.recipes() if recipe["name"] not in built]
    if options.json:
        listed: list[dict[str, Any]] = [{**image, "built": True} for image in images]
        print_json([*listed, *({**recipe, "built": False} for recipe in recipes)])
        return 0
    if options.quiet:
        for image in images:
            print(image["name"])
        return 0
    rows = [
        [
            "yes",
            i["name"],
            format_size(i["size_bytes"]),
            ",".join(i["boots"]),
            age(i["created"]),
            i["summary"],
        ]
        for i in images
    ]
    rows += [["no", r["name"], "-", "-", "-", r["summary"]] for r in recipes]
    order = (1, 0, 2, 3, 4, 5)
    headers = ["NAME", "BUILT", "SIZE", "BOOTS", "AGE", "SUMMARY"]
    print_table(headers, [[row[i] for i in order] for row in rows], {"BUILT": {"no": DIM}})
    return 0


def _build(argv: list[str]) -> int:
    import time

    parser = Parser(
        "image build",
        "Build an image from its recipe. Ctrl-C gives it up and leaves nothing behind.\n"
        "`insula run` does this by itself when an image is not there yet.",
    )
    parser.add_name("recipe")
    options = parser.parse(argv)
    client = connect()
    begin = time.monotonic()
    perform(lambda: client.submit_build(options.name), quiet=options.quiet)
    image = client.image(options.name)
    if options.json:
        print_json(image)
    elif not options.quiet:
        say(f"Built {format_size(image['size_bytes'])} in {format_duration(time.monotonic() - begin)}.")
        print(image["name"])
    return 0


def _info(argv: list[str]) -> int:
    parser = Parser("image info", "Show an image.")
    parser.add_name("image")
    options = parser.parse(argv)
    image = connect().image(options.name)
    if options.json:
        print_json(image)
    else:
        print(_render(image))
    return 0


def _render(image: ImageInfo) -> str:
    defaults = image["defaults"]
    kernel, disk = image["kernel"], image["disk"]
    rows = [
        ("name", image["name"]),
        ("summary", image["summary"]),
        ("digest", image["digest"]),
        ("os", f"{image['os']}, {image['architecture']}"),
        ("created", ago(image["created"])),
        ("size", format_size(image["size_bytes"])),
        ("kernel", f"{kernel['file']} {kernel.get('arguments', '')}" if kernel else ""),
        (
            "disk",
            f"{disk['file']}, {format_size(disk['virtual_size_bytes'])} {disk['format']}" if disk else "",
        ),
        ("boots", ", ".join(image["boots"]) + ("; by UEFI" if defaults["firmware"] == "uefi" else "")),
        ("agents", ", ".join(image["agents"])),
        ("cloud-init", "yes" if image["cloud_init"] else "no"),
        ("user", image["default_user"]),
        ("origin", image["origin"]),
        ("at least", f"{format_size(image['minimum_memory_bytes'])} of memory"),
        ("by default", f"{defaults['cpus']} cpus, {format_size(defaults['memory_bytes'])} of memory"),
    ]
    return "\n".join(f"{key + ':':<13}{value}" for key, value in rows if value)


def _rm(argv: list[str]) -> int:
    parser = Parser("image rm", "Remove images. One that a machine stands on is refused.")
    parser.add_names("image")
    options = parser.parse(argv)
    return perform_each(options, options.names, connect().submit_remove_image)


def _prune(argv: list[str]) -> int:
    parser = Parser(
        "image prune",
        "Remove the files of images that no name means and no machine uses, and parts of downloads.",
    )
    options = parser.parse(argv)
    client = connect()
    outcome = perform(client.submit_prune_images, quiet=options.quiet)["outcome"] or {}
    removed: list[str] = outcome.get("removed", [])
    if options.json:
        print_json({"removed": removed})
    else:
        for digest in removed:
            print(digest)
    return 0
