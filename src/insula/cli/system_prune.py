"""insula system prune: what is to go is shown first; on a terminal one is asked."""

from __future__ import annotations

import os
import sys

from insula.cli.operate import perform
from insula.cli.output import print_json, say, size
from insula.cli.parser import Parser
from insula.client.sdk import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from insula.cli.parser import Options
    from insula.client.sdk import Client
    from insula.client.types import PartInfo, RemovedInfo


def prune(argv: list[str]) -> int:
    options = _parse(argv)
    client = connect()
    going = _find_problems(client, options.lost)
    templates, images = options.templates or options.all, options.images or options.all
    parts = client.system.usage(parts=True)["parts"] if templates or images else []
    listed = [*going, *map(_as_removed, _choose(parts, templates, images))]
    if options.dry_run:
        return _tell_dry(listed, options)
    if listed and not options.yes and not _consents(listed):
        say("Nothing was removed.")
        return 0
    removed: list[RemovedInfo] = []
    if templates or images:
        removed += _remove_parts(client, parts, templates, images, options.quiet)
    lost: list[str] = options.lost
    done = _outcome(perform(lambda: client.system.submit_prune(lost=lost), quiet=options.quiet))
    removed, left = [*removed, *done["removed"]], done["left"]
    return _report(removed, left, options)


def _parse(argv: list[str]) -> Options:
    parser = Parser(
        "system prune",
        "Remove what `insula system check` finds that nobody needs: what a crash has left, never what a\n"
        "document, a name or an unfinished operation needs. On a terminal you are asked.",
        examples="insula system prune --dry-run\ninsula system prune --all --yes",
    )
    parser.flag("--templates", help="every template, too, as `insula template prune` does")
    parser.flag("--images", help="unused images and parts of downloads, too, as `insula image prune` does")
    parser.flag("-a", "--all", help="both")
    parser.option(
        "--lost",
        metavar="UID",
        repeat=True,
        help="the files of this machine, volume or snapshot, whose document is lost, and all on them, too",
    )
    parser.flag("-n", "--dry-run", help="say what would be removed, and remove nothing")
    parser.flag("-y", "--yes", help="do not ask")
    return parser.parse(argv)


def _find_problems(client: Client, lost: Sequence[str]) -> list[RemovedInfo]:
    """What a check says is to go, as it will be told once it is gone."""
    return [
        {
            "code": problem["code"],
            "what": problem["what"],
            "path": problem["path"],
            "freed_bytes": problem["size_bytes"],
            "freed_memory_bytes": problem["memory_bytes"],
        }
        for problem in client.system.check()["problems"]
        if problem["remedy"] == "prune" or (problem["remedy"] == "lost" and problem["uid"] in lost)
    ]


def _choose(parts: Sequence[PartInfo], templates: bool, images: bool) -> list[PartInfo]:
    """Those that may go because that was asked for."""
    wanted = {"template": templates, "image": images, "download": images}
    return [part for part in parts if part["state"] in ("cache", "unused") and wanted.get(part["kind"])]


def _as_removed(part: PartInfo) -> RemovedInfo:
    return {
        "code": part["kind"],
        "what": part["owner"],
        "path": part["path"],
        "freed_bytes": part["exclusive_bytes"],
        "freed_memory_bytes": part["memory_bytes"],
    }


def _line(one: RemovedInfo) -> str:
    memory = f" + {size(one['freed_memory_bytes'])} memory" if one["freed_memory_bytes"] else ""
    return f"{one['path']}  {size(one['freed_bytes'])}{memory}  {one['what']}"


def _tell_dry(listed: Sequence[RemovedInfo], options: Options) -> int:
    if options.json:
        print_json({"would_remove": listed})
        return 0
    for one in listed:
        print(one["path"] if options.quiet else _line(one))
    if not listed and not options.quiet:
        say("There is nothing to remove.")
    return 0


def _consents(listed: Sequence[RemovedInfo]) -> bool:
    """Whether the person at the terminal wants it; where there is none, who said it meant it."""
    if not (os.isatty(0) and os.isatty(2)):
        return True
    for one in listed:
        say(_line(one))
    sys.stderr.write(f"Remove {'this' if len(listed) == 1 else f'these {len(listed)}'}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _remove_parts(
    client: Client, parts: Sequence[PartInfo], templates: bool, images: bool, quiet: bool
) -> list[RemovedInfo]:
    """Have the verbs of templates and images do theirs. Templates first: they hold on to images. parts: all
    there are, since with its templates an image may go that was needed before."""
    names: list[str] = []
    if templates:
        done = _outcome(perform(client.submit_prune_templates, quiet=quiet))
        names += done["removed"]
    if images:
        done = _outcome(perform(client.submit_prune_images, quiet=quiet))
        names += [digest.removeprefix("sha256:") for digest in done["removed"]]
        names += [part["name"] for part in _choose(parts, False, True) if part["kind"] == "download"]
    return [_as_removed(part) for part in parts if part["name"] in names]


def _outcome(info: Any) -> dict[str, Any]:
    found: dict[str, Any] = info["outcome"] or {}
    return found


def _report(removed: Sequence[RemovedInfo], left: Sequence[dict[str, str]], options: Options) -> int:
    disk = sum(one["freed_bytes"] for one in removed)
    memory = sum(one["freed_memory_bytes"] for one in removed)
    if options.json:
        print_json({"removed": removed, "left": left, "freed_bytes": disk, "freed_memory_bytes": memory})
        return 0
    for one in removed:
        print(one["path"])
    if not options.quiet:
        held = f" and {size(memory)} of memory" if memory else ""
        say(f"Freed {size(disk)}{held}." if removed else "There was nothing to remove.")
    return 0
