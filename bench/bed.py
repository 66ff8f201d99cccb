"""The test bed: a home of its own with a daemon, machines and plans, gone without a trace at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TypeVar

import insula
from bench.bare import Bare
from insula.kit.paths import LAUNCH_PLAN
from insula.model.image import ImageDisk
from insula.storage.images import ImageStore

IMAGE = "micro"
WITH_DISK = "bench-disk"  # the same with an empty disk, for what is to be measured of disks
DISK_SIZE = 2**30
PATIENCE = 300.0  # seconds for a guest to answer: twenty that boot without KVM on two processors take long
BARE = Path(__file__).with_name("bare.py")
T = TypeVar("T")


class Bed:
    """An Insula of its own. `cli` is the program as users start it."""

    def __init__(self, images: Path) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="insula-bench."))
        self.home = self.directory / "home"
        self.images = images
        self.environment = {**os.environ, "INSULA_HOME": str(self.home), "INSULA_IMAGES": str(images)}
        os.environ.update(self.environment)  # for the SDK in this process
        self.program = str(Path(sys.executable).with_name("insula"))
        self.client = insula.connect(self.home)
        self.plan = self.directory / "plan.json"
        self.argv: list[str] = []
        self._numbers = count()
        self._bares: list[Bare] = []

    def close(self) -> None:
        for bare in self._bares:
            bare.kill()
        with contextlib.suppress(insula.InsulaError):
            for machine in self.client.machines():
                machine.remove(force=True)
        with contextlib.suppress(insula.InsulaError):
            self.client.prune_templates()  # their memory would outlive the home
        with contextlib.suppress(insula.InsulaError):
            self.client.daemon_stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def cli(self, *arguments: str) -> str:
        """Run the command line to its end; its stdout."""
        done = subprocess.run(
            [self.program, *arguments], env=self.environment, stdin=subprocess.DEVNULL, capture_output=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"insula {' '.join(arguments)} failed:\n{done.stderr.decode()}")
        return done.stdout.decode()

    def start_empty_daemon(self) -> float:
        """Seconds in which `insula ls` starts the daemon of another home, which knows no machine."""
        empty = insula.connect(self.directory / "empty")
        environment = {**self.environment, "INSULA_HOME": empty.home}
        try:
            return timed(lambda: subprocess.run([self.program, "ls", "-q"], env=environment, check=True))
        finally:
            empty.daemon_stop()

    def add_recipe(self, name: str, text: str) -> None:
        recipes = self.home / "recipes"
        recipes.mkdir(parents=True, exist_ok=True)
        (recipes / f"{name}.toml").write_text(text)

    def build(self, image: str) -> None:
        """Have the image, built now if it was not."""
        if not any(known["name"] == image for known in self.client.images()):
            print(f"building the image '{image}'", file=sys.stderr, flush=True)
            self.client.build_image(image)

    @contextlib.contextmanager
    def image_with_disk(self) -> Iterator[str]:
        """The name of an image that is IMAGE, and has a disk. No recipe gives that: a guest in memory needs
        none, so it is put together from what is there."""
        store = ImageStore(self.images)
        source = store.get(IMAGE)
        with store.new_build() as work:
            files = work / "image"
            shutil.copytree(store.directory(IMAGE), files, dirs_exist_ok=True)
            disk = ImageDisk(file="disk.qcow2", format="qcow2", virtual_size_bytes=DISK_SIZE)
            create = ["qemu-img", "create", "-q", "-f", "qcow2", str(files / disk.file), str(DISK_SIZE)]
            subprocess.run(create, check=True)
            digest = hashlib.sha256(f"{source.digest} {WITH_DISK}".encode()).hexdigest()
            image = source.changed(name=WITH_DISK, disk=disk, digest=f"sha256:{digest}")
            store.publish(image, files, replace=True)
        try:
            yield WITH_DISK
        finally:
            with contextlib.suppress(insula.InsulaError):
                self.client.remove_image(WITH_DISK)

    def kill_daemon(self) -> None:
        status = self.client.daemon_status()
        if status is None:
            return
        descriptor = os.pidfd_open(status["pid"])
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                _wait_readable(descriptor)
        finally:
            os.close(descriptor)

    def make_vmdk(self, path: Path, size: int) -> None:
        """A disk without a hole in it."""
        raw = path.with_suffix(".raw")
        with raw.open("wb") as stream:
            for _ in range(size // 2**24):
                stream.write(os.urandom(2**24))
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, path], check=True)
        raw.unlink()
        subprocess.run(["sync", path], check=True)

    def record_plan(self) -> None:
        """Keep the launch plan of a machine that Insula ran, for the peer to run by hand: `plan`, `argv`."""
        machine = self.client.run(IMAGE, name="plan", cold=True)
        try:
            text = (Path(machine.info["directory"]) / LAUNCH_PLAN).read_text()
        finally:
            machine.remove(force=True)
        self.plan.write_text(text)
        self.argv = json.loads(text)["argv"]

    def bare_directory(self) -> Path:
        return self.directory / f"bare{next(self._numbers)}"

    def run_bare_script(self, *command: str) -> None:
        """The peer as a program of its own, like the command line is one."""
        directory = self.bare_directory()
        subprocess.run(
            [sys.executable, str(BARE), str(self.plan), str(directory), "--", *command], check=True
        )
        shutil.rmtree(directory)

    def start_bare(self, argv: list[str] | None = None, machine: Path | None = None) -> Bare:
        """The peer in this process, to where its agent has answered. machine: directory of one of Insula's
        that has not written to its disks yet; the peer gets copies of them."""
        directory = self.bare_directory()
        directory.mkdir(mode=0o700)
        for path in machine.iterdir() if machine else ():
            if path.suffix in (".qcow2", ".iso"):
                shutil.copyfile(path, directory / path.name)
        bare = Bare(argv or self.argv, str(directory))
        self._bares.append(bare)
        try:
            bare.run()
            bare.wait_agent()
            bare.ask(["true"])
        except BaseException:
            bare.kill()
            raise
        return bare

    def start_machine(self, name: str) -> insula.Machine:
        """A machine of Insula's, to where its agent has answered."""
        machine = self.client.run(IMAGE, name=name, cold=True)
        machine.exec("true", check=True, agent_timeout=PATIENCE)
        return machine

    @contextlib.contextmanager
    def fleet(self, size: int) -> Iterator[list[insula.Machine]]:
        """`size` idle machines, running."""
        machines = at_once(self.start_machine, (f"fleet{number}" for number in range(size)))
        try:
            yield machines
        finally:
            at_once(lambda machine: machine.remove(force=True), machines)


def at_once(work: Callable[..., T], items: Iterable[object]) -> list[T]:
    """work(item) of all items at the same time, each in a thread."""
    wanted = list(items)
    with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
        return list(pool.map(work, wanted))


def timed(work: Callable[[], object]) -> float:
    """Seconds it takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def pss(pid: int) -> float:
    """Proportional set size in MB (proc(5), smaps_rollup): what is shared counts in parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no Pss for {pid}")


def resident(pid: int) -> float:
    """Resident set size in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _wait_readable(descriptor: int) -> None:
    import select

    if not select.select([descriptor], [], [], 10)[0]:
        raise TimeoutError
