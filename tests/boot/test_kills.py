"""Whatever dies, and whenever: machines have the old state or the new one, and nothing is left behind.

An operation is drawn, a victim, and a moment; the victim is killed with -9 while the operation goes on. Then
the next command is to find everything in order. A failure prints the seed; INSULA_KILL_SEED draws the same
again, INSULA_KILL_ROUNDS has it go on for longer than CI does, and say what it did, and INSULA_KILL_ONLY
names the operations that are to be drawn where they can be, with commas between.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.aftermath import Images, Sibling, find_fault, require_nothing_found
from tests.support.boots import ROOT, RealShell, copy_image, has_image, real_home
from tests.support.mirror import Mirror
from tests.support.pattern import Pattern
from tests.support.victims import COMES_AND_GOES, Killer, Victim

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(not has_image("micro"), reason="the image micro is not built (./scripts/test does)"),
]

ROUNDS = int(os.environ.get("INSULA_KILL_ROUNDS") or 10)
ONLY = os.environ.get("INSULA_KILL_ONLY", "").split(",")
NAME = "web"
MIB = 2**20
# Seconds that an operation takes on an idle host; the moment of the kill is drawn from the first of them.
LASTS = {
    "create": 0.4,
    "create --memory": 1.2,
    "restore": 2.0,
    "rm": 0.7,
    "suspend": 1.0,
    "start": 1.2,
    "resize": 0.35,
    "fork": 1.6,
    "fork off": 0.5,
    "clone": 0.5,
    "import": 0.6,
    "export": 0.5,
    "pull": 0.6,
}
IMAGES = ("import", "export", "pull")
# Who has a part in an operation, where it is not the daemon, the machine's monitor and qemu-img.
VICTIMS: dict[str, tuple[Victim, ...]] = {
    "suspend": ("daemon", "machine"),
    "start": ("daemon", "machine"),
    "rm": ("daemon", "machine"),
    "fork": ("daemon", "machine", "keeper", "sibling", "tool"),
    "fork off": ("daemon", "tool"),
    **dict.fromkeys(("clone", *IMAGES), ("daemon", "tool", "tool")),
}
EVERYBODY: tuple[Victim, ...] = ("daemon", "machine", "tool")


@dataclass(frozen=True)
class Moment:
    """What the disks held when a snapshot was made: the mark, and which blocks at least and at most."""

    mark: str
    least: int
    most: int


@dataclass
class Web:
    """The machine, and what is expected of it. least: the newest block that must be there.

    subject: the snapshot, volume or sibling that the last operation was about.
    """

    insula: RealShell = field(repr=False)
    pattern: Pattern = field(repr=False)
    images: Images = field(repr=False)
    draw: random.Random = field(repr=False)
    kept: str = ""
    mark: str = ""
    least: int = 0
    moments: dict[str, Moment] = field(default_factory=dict)
    size: int = 16
    made: int = 0
    subject: str = ""

    @property
    def phase(self) -> str:
        return str(self.insula.info(NAME)["phase"])

    # What is done

    def choose(self) -> str:
        phase = self.phase
        can = ["create", "resize", "clone", *IMAGES] if phase != "suspended" else ["start"] * 4
        if phase == "running":
            can += ["create --memory", "suspend", "fork"] * 3 + ["fork off"]
        if self.moments:
            can += ["restore", "rm"] * 3
        return self.draw.choice([verb for verb in can if verb in ONLY] or can)

    def words(self, verb: str) -> list[str]:
        """The command line of an operation."""
        self.made += 1
        self.subject = name = f"n{self.made}"
        if verb in IMAGES:
            return self.images.words(verb, self.draw)
        match verb:
            case "create" | "create --memory":
                return ["snapshot", "create", NAME, name, *verb.split()[1:]]
            case "restore":
                self.subject = self.draw.choice(list(self.moments))
                only = ["--disks-only"] if self.draw.random() < 0.3 else []
                return ["snapshot", "restore", "-y", *only, NAME, self.subject]
            case "rm":
                self.subject = self.draw.choice(list(self.moments))
                return ["snapshot", "rm", NAME, self.subject]
            case "resize":
                self.size += 1
                return ["volume", "resize", "one", f"{self.size}MiB"]
            case "clone":
                return ["volume", "clone", "spare", name]
            case "fork" | "fork off":
                return ["fork", NAME, "--name", name]
        return [verb, NAME]

    def round(self, told: list[str], harm: Harm) -> None:
        """An operation, with harm done to it; and what then is. told: what is said of a failure."""
        verb = self.choose()
        runs = self.phase == "running"
        if runs:
            self.mark = self.pattern.write_mark()
            self.least = self.pattern.told()
        if verb == "fork off":
            self.insula("kill", NAME)
            runs = False
        before, was = self.mark, self.phase
        moment = Moment(self.mark, self.least, 0)
        words = self.words(verb)
        status, victim = harm(self, verb, words, told)
        settle(self.insula)
        if victim == "disk" and self.phase == "paused":
            self.insula("resume", NAME)  # it could not write; nothing was said to be written that is not
        phase = self.phase
        told.append(f"then it was {phase}: {self.insula.info(NAME)['reason']}")
        self.check_phase(verb, was, status, victim, phase)
        sibling = self.find_sibling(verb, victim)
        if sibling is not None:
            told.append(sibling.check(status))
        elif verb in IMAGES:
            require_nothing_found(self.insula)
            self.images.check(verb, words, status)
        if phase == "suspended" and verb == "suspend":
            return  # it is looked at once it has been started
        wakes = phase == "suspended"
        if phase != "running":
            self.insula("start", NAME, timeout=120)
        seen = self.pattern.look()
        told.append(f"expected {self}; seen {seen}")
        assert seen.is_one_moment
        assert seen.kept[0] == self.kept
        if wakes or (runs and phase == "running" and verb != "restore"):
            assert seen.told is not None, "what it had in memory is lost"
        if seen.told is not None:
            assert seen.newest == (seen.told, seen.told), "memory and disks are not of one moment"
        restored = verb == "restore" and seen.mark[0] == self.moments[self.subject].mark
        if restored and status == 0:
            told.append("restored")
        if restored and (before != seen.mark[0] or self.moments[self.subject].most < self.least):
            then = self.moments[self.subject]
            assert then.least <= seen.newest[1]
            assert seen.told is not None or seen.newest[1] <= then.most  # with memory it has gone on since
        else:
            assert seen.mark[0] == before
            assert seen.newest[1] >= self.least, "what was flushed is lost"
            assert not (verb == "restore" and status == 0), "it was not restored"
        self.mark, self.least = seen.mark[0], seen.newest[1]
        self.check_snapshots(verb, status, Moment(moment.mark, moment.least, seen.newest[0]))
        self.check_files()
        require_nothing_found(self.insula)
        if sibling is not None:
            self.remove_sibling(sibling, words)

    def find_sibling(self, verb: str, victim: str) -> Sibling | None:
        """What a fork was to make."""
        if not verb.startswith("fork"):
            return None
        return Sibling(
            self.insula,
            self.pattern,
            self.subject,
            self.kept,
            self.mark,
            self.least,
            was_live=verb == "fork",
            may_be_hit=victim == "sibling",
            may_be_full=victim == "disk",
        )

    def remove_sibling(self, sibling: Sibling, words: list[str]) -> None:
        """It goes without a trace; one that had not come comes when it is asked for again."""
        if not sibling.is_there:
            self.insula(*words)
        self.insula("rm", "-f", sibling.name)
        own = Path(self.insula.info(NAME)["directory"])
        assert list((self.insula.home / "machines").iterdir()) == [own]

    # What must be

    def check_phase(self, verb: str, was: str, status: int, victim: str, phase: str) -> None:
        if victim in ("machine", "disk"):
            return  # whether it was hit, and what the operation then did with it, is shown by what it holds
        if verb in ("suspend", "start"):
            assert phase in ("running", "suspended")
        elif verb != "restore":
            assert phase == was
        if status == 0 and verb == "suspend":
            assert phase == "suspended"

    def check_snapshots(self, verb: str, status: int, moment: Moment) -> None:
        """What is listed is what is there, and each operation has been done or has not."""
        listed = {snapshot["name"]: snapshot for snapshot in self.insula.data("snapshot", "ls", NAME)}
        assert all(snapshot["taken"] for snapshot in listed.values())
        assert sum(snapshot["current"] for snapshot in listed.values()) <= 1
        expected = set(self.moments)
        if verb.startswith("create"):
            if self.subject in listed:
                self.moments[self.subject] = moment
            assert self.subject in listed or status != 0
        elif verb == "rm":
            if self.subject not in listed:
                del self.moments[self.subject]
            assert self.subject not in listed or status != 0
        assert set(self.moments) == set(listed), expected
        directories = {path.name for path in (self.insula.home / "snapshots").glob("*")}
        assert directories == {snapshot["uid"] for snapshot in listed.values()}

    def find_faults(self) -> list[str]:
        paths = self.insula.home.glob("*/*/**/*.qcow2")
        return [fault for path in paths if (fault := find_fault(path))]

    def check_files(self) -> None:
        """Every layer is clean, and nothing is there that nobody has."""
        names = [machine["name"] for machine in self.insula.data("ls")]
        for name in names:
            self.insula("pause", name)  # so that all is in the files
        try:
            settle(self.insula)
            if self.find_faults():
                # What is left over is merged by itself, and writes meanwhile: a merge may just have begun.
                # That has its end; what is lost stays lost.
                settle(self.insula)
                assert not (faults := self.find_faults()), faults
        finally:
            for name in names:
                self.insula("resume", name)
        rooms = ("machines", "volumes", "snapshots", "captures")
        hidden = [path for room in rooms for path in (self.insula.home / room).glob("**/.*")]
        assert not hidden, hidden
        assert not any((self.insula.home / "captures").glob("*"))
        tools = [line for line in self.insula.processes() if "qemu-img" in line]
        assert not tools, tools


# Moments are drawn from the time that an operation takes here: a host that emulates is slow, and so is CI.
SLOWNESS = float(os.environ.get("INSULA_KILL_SLOWNESS") or 1)


def settle(insula: RealShell) -> None:
    """The next command brings the daemon back, and it finishes or undoes what was begun."""
    deadline = time.monotonic() + 120
    while operations := insula.data("op", "ls"):
        assert time.monotonic() < deadline, operations
        for operation in operations:
            insula("op", "wait", operation["uid"], status=None)


Harm = Callable[[Web, str, list[str], list[str]], tuple[int, str]]


def kill_one(web: Web, verb: str, words: list[str], told: list[str]) -> tuple[int, str]:
    """Run the operation, and kill a victim at some moment of it; its exit status, and who that was."""
    victim = web.draw.choice(VICTIMS.get(verb, EVERYBODY))
    delay = web.draw.uniform(0, COMES_AND_GOES.get(victim, LASTS[verb]) * SLOWNESS)
    told.append(f"{' '.join(words)}; {victim} killed after {delay:.3f}s")
    killer = Killer.of(web.insula, NAME)
    with web.insula.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as doing:
        told.append(f"killed: {killer.kill(victim, doing, delay)}")
        said = doing.communicate(timeout=120)[0].decode()
    told.append(f"status {doing.returncode}: {said[-600:]}")
    return doing.returncode, victim


def fill_disk(web: Web, verb: str, words: list[str], told: list[str]) -> tuple[int, str]:
    """Run the operation where only so much room is left; it is there again afterwards."""
    left = web.draw.choice((0, web.draw.randrange(256 * 1024), web.draw.randrange(8 * MIB)))
    told.append(f"{' '.join(words)}; with {left} bytes left on the disk")
    filler = web.insula.home / "filler"
    free = os.statvfs(web.insula.home)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, free.f_bavail * free.f_frsize - left))
    with web.insula.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as doing:
        try:
            # What cannot be written down waits for room: then so does the command.
            doing.wait(2 + web.draw.uniform(0, 2))
        except subprocess.TimeoutExpired:
            told.append("it waits for room")
        finally:
            filler.unlink()
        said = doing.communicate(timeout=120)[0].decode()
    told.append(f"status {doing.returncode}: {said[-900:]}")
    return doing.returncode, "disk"


@pytest.fixture
def draw() -> random.Random:
    seed = int(os.environ.get("INSULA_KILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"INSULA_KILL_SEED={seed}")
    return random.Random(seed)


@contextlib.contextmanager
def web_in(tmp_path: Path, draw: random.Random) -> Iterator[Web]:
    """A home with the machine and its disks, one on virtio and one on scsi, and images to work with."""
    images = copy_image("micro", tmp_path / "images")
    with (
        Mirror() as mirror,
        real_home(tmp_path / "home", ROOT / "test-artifacts" / "kills", images) as insula,
    ):
        yield make(insula, draw, Images.furnish(insula, mirror, draw))


def make(insula: RealShell, draw: random.Random, images: Images) -> Web:
    for name in ("one", "two", "spare"):
        insula("volume", "create", name, "--size", "16MiB")
    words = ["--volume", "one", "--volume", "two:scsi", "--run-policy", "once"]
    insula("run", "-d", "--name", NAME, "--memory", "160MiB", *words, "micro")
    serials = [insula.data("volume", "info", name)["serial"] for name in ("one", "two")]
    web = Web(insula, Pattern(insula, NAME, *serials), images, draw)
    web.pattern.begin()
    web.kept = web.pattern.look().kept[0]
    return web


def go_through(web: Web, harm: Harm, rounds: int) -> None:
    for number in range(rounds):
        told = [f"round {number}"]
        try:
            web.round(told, harm)
        except BaseException:
            print("\n".join(told))
            raise
        if os.environ.get("INSULA_KILL_ROUNDS"):
            print("\n".join(told), flush=True)
    finish(web)


@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new(tmp_path: Path, draw: random.Random) -> None:
    with web_in(tmp_path, draw) as web:
        go_through(web, kill_one, ROUNDS)


@pytest.mark.timeout(120 + 60 * ROUNDS)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_the_old_state_or_the_new(tmp_path: Path, draw: random.Random) -> None:
    (tmp_path / "home").mkdir()
    options = ["-t", "tmpfs", "-o", "size=640M,mode=700", "tmpfs", str(tmp_path / "home")]
    subprocess.run(["mount", *options], check=True)
    try:
        with web_in(tmp_path, draw) as web:
            go_through(web, fill_disk, max(ROUNDS // 2, 1))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "home")], check=True)


def finish(web: Web) -> None:
    """Once no snapshot is left, each disk is one file, and holds what it held."""
    if web.phase != "running":
        web.insula("start", NAME)
    web.insula("snapshot", "create", NAME, "last")  # what forks have left is merged when one is removed
    for name in [*web.moments, "last"]:
        web.insula("snapshot", "rm", NAME, name)
    settle(web.insula)
    for name in ("one", "two"):
        directory = Path(web.insula.data("volume", "info", name)["directory"])
        layers = [path.name for path in directory.glob("*.qcow2") if not path.is_symlink()]
        assert len(layers) == 1, layers
    seen = web.pattern.look()
    assert seen.is_one_moment
    assert seen.kept[0] == web.kept
    assert seen.mark[0] == web.mark
    web.insula("rm", "-f", NAME)
    for name in [volume["name"] for volume in web.insula.data("volume", "ls")]:
        web.insula("volume", "rm", name)
    assert not any((web.insula.home / "volumes").iterdir())
    require_nothing_found(web.insula)
