"""A distribution's packages, fetched and unpacked by mmdebstrap; as root or as anybody."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from insula.kit.run import CommandFailed, run, stream
from insula.model.operation import Progress
from insula.storage.errors import BuildFailed
from insula.storage.recipe import BaseRecipe, DiskRecipe

Report = Callable[[Progress], None]

SCRATCH_LINK = "scratch"  # in a build's directory: leads to what must be removed with it

_NEW_PACKAGES = re.compile(r"(\d+) newly installed")
# What mmdebstrap says when it begins something long, and what we say then.
_PHASES = {
    "running apt-get update": "Reading the package lists",
    "downloading packages": "Downloading packages",
    "extracting archives": "Unpacking packages",
    "installing essential": "Installing the base system",
    "installing remaining": "Installing packages",
    "running --customize-hook": "Configuring",
    "cleaning package lists": "Cleaning up",
    "creating tarball": "Collecting the files",
}
_STEP = re.compile(r"(Get:\d+|Unpacking|Setting up) ")
# The suites of a Debian release, and the two last parts of the URIs where Debian's own archive is found.
_ARCHIVE = re.compile(r"/debian(?:-security)?/?$")


async def fetch_packages(
    recipe: BaseRecipe, packages: Sequence[str], target: Path, options: Sequence[str], report: Report
) -> None:
    """Make a tar of a system with these packages. options: further ones for mmdebstrap.

    Raises BuildFailed with mmdebstrap's last words.
    """
    async with _scratch(target.parent, needs_others=isinstance(recipe, DiskRecipe)) as scratch:
        argv = [
            "mmdebstrap",
            "--verbose",
            "--format=tar",
            f"--include={','.join(packages)}",
            f"--components={','.join(recipe.components)}",
            *options,
            recipe.suite,
            str(target),
            *(recipe.mirrors or host_mirrors(recipe.suite)),
        ]
        # The build's own locale and temporary directory; the rest (a proxy, say) is the caller's.
        environment = {**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C.UTF-8"}
        count = _Counter(report)
        try:
            async for line in stream(argv, env=environment):
                count.see(line)
        except CommandFailed as error:
            raise BuildFailed(
                f"The packages of image '{recipe.name}' could not be fetched and unpacked.",
                hint=_guess_reason(str(error.evidence.get("stderr", ""))),
                evidence=error.evidence,
            ) from error


def _guess_reason(output: str) -> str:
    if "Unable to locate package" in output or "has no installation candidate" in output:
        return "A package of the recipe does not exist in its suite; see the last lines of the output."
    if re.search(r"Could not resolve|Connection (failed|refused|timed out)|Failed to fetch", output):
        return "Look whether this host reaches the distribution's package archive: apt-get update"
    if "No space left" in output:
        return "Make room on the file system, or keep images elsewhere: set INSULA_IMAGES."
    if "NO_PUBKEY" in output or "not signed" in output:
        return "The archive's keys are not on this host: sudo apt-get install debian-archive-keyring"
    return ""


class _Counter:
    """How far mmdebstrap is: each package is fetched, unpacked and set up; apt says how many there are."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._packages = 0
        self._steps = 0
        self._message = "Preparing"
        report(Progress(message=self._message))

    def see(self, line: str) -> None:
        phase = next((words for said, words in _PHASES.items() if line.startswith(f"I: {said}")), None)
        if phase is not None:
            self._message = phase
        elif found := _NEW_PACKAGES.search(line):
            self._packages += int(found[1])
            return
        elif _STEP.match(line):
            self._steps += 1
        else:
            return
        total = 3 * self._packages
        fraction = min(1.0, self._steps / total) if total else None
        self._report(Progress(message=self._message, fraction=fraction))


@asynccontextmanager
async def _scratch(work: Path, *, needs_others: bool) -> AsyncIterator[Path]:
    """A temporary directory for mmdebstrap which is removed with the build's directory, even much later.

    Other users (apt's own; in user namespaces all of the system that is built) must be able to enter it, so
    where a parent directory is closed to them it lies in /var/tmp.
    """
    scratch = work / "mmdebstrap"
    if needs_others and not _others_can_enter(work):
        scratch = Path("/var/tmp") / f"insula-{os.getuid()}-{work.name}"
    (work / SCRATCH_LINK).symlink_to(scratch)
    scratch.mkdir(mode=0o755)
    try:
        yield scratch
    finally:
        await remove_tree(scratch)
        (work / SCRATCH_LINK).unlink(missing_ok=True)


def _others_can_enter(path: Path) -> bool:
    return all(place.stat().st_mode & 0o001 for place in [path, *path.parents])


async def remove_tree(path: Path) -> None:
    """Remove a directory, also one with files of this user's subordinate ids in it."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists() and os.geteuid() != 0 and can_unshare():
        await run(["mmdebstrap", "--unshare-helper", "rm", "-rf", "--", str(path)], check=False)


def can_unshare() -> bool:
    """Whether this user may have a user namespace with subordinate ids (mmdebstrap's mode 'unshare')."""
    user = pwd.getpwuid(os.getuid()).pw_name
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        return False
    owners = {line.split(":")[0] for line in lines}
    return bool({user, str(os.getuid())} & owners) and shutil.which("newuidmap") is not None


def host_mirrors(suite: str, root: Path = Path("/")) -> tuple[str, ...]:
    """Lines of sources.list for the suite from the host's own apt sources, where the host is a Debian.

    Empty where it is not, or where they do not name Debian's archive: then mmdebstrap's default is right.
    """
    release = _read_release(root / "etc/os-release")
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        return ()
    wanted = {codename: suite, f"{codename}-updates": f"{suite}-updates"}
    wanted[f"{codename}-security"] = f"{suite}-security"
    lines: list[str] = []
    for uri, name, options in _read_sources(root / "etc/apt"):
        if name in wanted and _ARCHIVE.search(uri):
            line = " ".join(["deb", *([options] if options else []), uri, wanted[name], "main"])
            if line not in lines:
                lines.append(line)
    # Updates alone would be no distribution.
    return tuple(lines) if any(line.split()[-2] == suite for line in lines) else ()


def _read_release(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines)
    return {key: value.strip("\"'") for key, separator, value in pairs if separator}


def _read_sources(apt: Path) -> list[tuple[str, str, str]]:
    """(URI, suite, "[signed-by=...]" or "") of every enabled source with main; sources.list(5)."""
    found: list[tuple[str, str, str]] = []
    lists = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]
    for path in lists:
        if path.is_file():
            found += _read_one_line_style(path.read_text())
    for path in sorted((apt / "sources.list.d").glob("*.sources")):
        found += _read_deb822_style(path.read_text())
    return found


def _read_one_line_style(text: str) -> list[tuple[str, str, str]]:
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*deb\s+(?:\[(.*?)\]\s*)?(\S+)\s+(\S+)\s+([^#]*)(?:#.*)?", line)
        if match and "main" in match[4].split():
            keyring = re.search(r"signed-by=(\S+)", match[1] or "")
            found.append((match[2], match[3], f"[signed-by={keyring[1]}]" if keyring else ""))
    return found


def _read_deb822_style(text: str) -> list[tuple[str, str, str]]:
    found = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        fields = {key.lower(): value.split() for key, value in re.findall(r"(?m)^([\w-]+):(.*)$", stanza)}
        if "deb" not in fields.get("types", []) or "main" not in fields.get("components", []):
            continue
        if fields.get("enabled") == ["no"]:
            continue
        keyring = fields.get("signed-by", [])
        options = f"[signed-by={keyring[0]}]" if keyring and keyring[0].startswith("/") else ""
        found += [
            (uri, suite, options) for uri in fields.get("uris", []) for suite in fields.get("suites", [])
        ]
    return found
