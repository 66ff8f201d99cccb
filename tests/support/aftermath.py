"""What must be there after an operation beside the machine's own, however it ended: all of it, or nothing.

Then it is done again, if there was nothing of it, and what came of it is removed.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.boots import RealShell
from tests.support.mirror import Mirror
from tests.support.pattern import Pattern

DISK_BYTES = 16 * 2**20  # so that qemu-img has some work
CAME = "came"  # the name of every image that comes
OLD = b"what was there before"


@dataclass
class Images:
    """An image that comes by import or pull, and one that is exported; all of one disk.

    digests: of the image by the way on which it came; the same each time. target: of the last export.
    """

    insula: RealShell
    disk: Path
    digests: dict[str, str] = field(default_factory=dict)
    target: Path = Path()
    target_format: str = ""

    @classmethod
    def furnish(cls, insula: RealShell, mirror: Mirror, draw: random.Random) -> Images:
        """Write the disk, as raw and as a compressed qcow2, list it in a catalogue, and import it."""
        files = insula.home.parent
        disk = files / "disk.raw"
        disk.write_bytes(draw.randbytes(DISK_BYTES))
        argv = ["qemu-img", "convert", "-c", "-O", "qcow2", str(disk), str(files / "disk.qcow2")]
        subprocess.run(argv, check=True)
        mirror.files["/far.raw"] = disk.read_bytes()
        (insula.home / "catalogues").mkdir(parents=True)
        entry = {
            **{"name": "far", "version": "1", "os": "none", "format": "raw", "url": mirror.url("/far.raw")},
            "sha256": hashlib.sha256(disk.read_bytes()).hexdigest(),
        }
        (insula.home / "catalogues" / "far.json").write_text(json.dumps({"version": 1, "images": [entry]}))
        insula("image", "import", str(disk), "--format", "raw", "--name", "imported")
        (files / "exports").mkdir()
        return cls(insula, disk)

    def words(self, verb: str, draw: random.Random) -> list[str]:
        """The command line, in one of its shapes."""
        if verb == "pull":
            return ["image", "pull", "far", "--name", CAME]
        if verb == "import":
            source = draw.choice([self.disk, self.disk.with_suffix(".qcow2")])
            return ["image", "import", str(source), "--format", source.suffix[1:], "--name", CAME]
        self.target_format = draw.choice(["qcow2", "vmdk", "vhdx", "raw"])
        self.target = self.disk.parent / "exports" / f"disk.{self.target_format}"
        words = ["image", "export", "imported", str(self.target), "--format", self.target_format]
        if draw.random() < 0.5:
            return words
        self.target.write_bytes(OLD)
        return [*words, "--replace"]

    def check(self, verb: str, words: list[str], status: int) -> None:
        if verb == "export":
            self._check_export(words, status)
        else:
            self._check_image(verb, words, status)
        images = self.disk.parent / "images"
        for room in ("builds", "downloads"):
            left = list((images / room).glob("*"))
            assert not left, left

    def _check_image(self, verb: str, words: list[str], status: int) -> None:
        names = {image["name"] for image in self.insula.data("image", "ls") if image["built"]}
        if CAME not in names:
            assert status != 0
            self.insula(*words)
        found = self.insula.data("image", "info", CAME)
        way = f"{verb} {words[2]}"
        assert found["digest"] == self.digests.setdefault(way, found["digest"])
        blob = self.disk.parent / "images" / "blobs" / found["digest"].removeprefix("sha256:")
        assert {path.name for path in blob.iterdir()} == {"manifest.json", found["disk"]["file"]}
        assert (blob / found["disk"]["file"]).read_bytes() == self.disk.read_bytes()
        self.insula("image", "rm", CAME)
        assert not blob.exists()

    def _check_export(self, words: list[str], status: int) -> None:
        before = OLD if "--replace" in words else None
        now = self.target.read_bytes() if self.target.exists() else None
        if now == before:
            assert status != 0
            self.insula(*words)
        assert [path.name for path in self.target.parent.iterdir()] == [self.target.name]
        if self.target_format != "raw":
            require_clean(self.target, self.target_format)
        argv = ["qemu-img", "compare", "-f", self.target_format, "-F", "raw"]
        done = subprocess.run(
            [*argv, str(self.target), str(self.disk)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.target.unlink()


@dataclass(frozen=True)
class Sibling:
    """What a fork was to make of a machine. kept, mark, least: what its disks must hold (`pattern`).

    was_live: so is it. may_be_hit: it may have been killed itself. may_be_full: its disks had no room.
    """

    insula: RealShell
    parent: Pattern
    name: str
    kept: str
    mark: str
    least: int
    was_live: bool
    may_be_hit: bool
    may_be_full: bool

    @property
    def is_there(self) -> bool:
        machines = {machine["name"] for machine in self.insula.data("ls", "--all")}
        assert machines <= {self.parent.machine, self.name}, machines
        return self.name in machines

    def check(self, status: int) -> str:
        """It is whole, or was never there; what was seen, in words. It is left: its files are looked at."""
        assert not any((self.insula.home / "captures").glob("*"))
        if not self.is_there:
            assert status != 0
            return "there is no sibling"
        phase = self._let_run()
        seen = Pattern(self.insula, self.name, self.parent.one, self.parent.two).look()
        told = f"expected {self}; it was {phase}; seen {seen}"
        assert seen.is_one_moment, told
        assert (seen.kept[0], seen.mark[0]) == (self.kept, self.mark), told
        assert seen.newest[1] >= self.least, told
        assert seen.told is None or seen.newest == (seen.told, seen.told), told
        assert phase != "running" or seen.told is not None, told
        assert self.insula.text("exec", self.name, "--", "hostname") == f"{self.name}\n", told
        return told

    def _let_run(self) -> str:
        """The phase in which it was before."""
        phase = str(self.insula.info(self.name)["phase"])
        if phase == "paused" and self.may_be_full:
            self.insula("resume", self.name)
        elif phase != "running":
            assert phase == ("crashed" if self.was_live else "created")
            assert self.may_be_hit or not self.was_live
            self.insula("start", self.name)
        return phase


def require_nothing_found(insula: RealShell) -> None:
    """`insula system check` finds nothing but notes."""
    found = json.loads(insula("system", "check", "--json", status=None).stdout)
    assert found["clean"], found["problems"]


def find_fault(path: Path, format: str = "qcow2") -> str:
    """What is wrong with a disk; "" for nothing, or when it is not there any more."""
    argv = ["qemu-img", "check", "-U", "-f", format, str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return f"{path}: {done.stdout}{done.stderr}" if done.returncode != 0 and path.exists() else ""


def require_clean(path: Path, format: str = "qcow2") -> None:
    assert not (fault := find_fault(path, format)), fault
