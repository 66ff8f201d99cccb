"""What is measured of templates and forks: how much sooner, and how much smaller, than a boot."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import insula
from bench.bed import IMAGE, PATIENCE, Bed, at_once, pss, timed
from bench.figure import Bound, Figure, in_turn
from insula.kit.paths import DEVICE_STATE, LAUNCH_PLAN, PID_FILE
from insula.storage import late_boot

CROWD = 20
SIBLINGS = 10
MEMORY_DESCRIPTOR = 8  # where a monitor finds the memory that it shares
DIRTY_MB = 50  # a second, of the machine that is forked
DIRTIER = (
    f"while :; do dd if=/dev/urandom of=/tmp/d bs=1M count={DIRTY_MB} conv=notrunc 2>/dev/null; sleep 1; done"
)


def measure_warm(bed: Bed, runs: int) -> Iterator[Figure]:
    """A launch that is a fork of a template, against one that boots; its part until vCPUs run, by hand."""
    command = ("--rm", IMAGE, "--", "true")
    bed.cli("run", *command)  # makes the template
    ours, peer = in_turn(
        2 * runs,
        lambda: timed(lambda: bed.cli("run", *command)),
        lambda: timed(lambda: bed.cli("run", "--cold", *command)),
    )
    what = "insula run --rm micro -- true, forked from a template / the same with --cold"
    yield Figure("warm run", what, "s", ours, peer, (Bound("times", 1 / 8),))
    with bed.client.run(IMAGE, name="recipe") as machine:
        recipe = Recipe(bed, machine)
        ours, peer = in_turn(4 * runs, lambda: _until_running(bed), recipe.run)
    what = "from the request to running vCPUs / the bare recipe by hand: spawn, load the state, cont"
    yield Figure("warm launch", what, "s", ours, peer, (Bound("times", 1.5),))


def measure_debian(bed: Bed, runs: int) -> Iterator[Figure]:
    """The same with a whole distribution: systemd, SSH keys, a disk."""
    bed.build("debian-12")
    command = ("--rm", "debian-12", "--", "true")
    bed.cli("run", *command)  # makes the template
    ours, peer = in_turn(
        max(1, runs // 2),  # a boot takes half a minute without KVM
        lambda: timed(lambda: bed.cli("run", *command)),
        lambda: timed(lambda: bed.cli("run", "--cold", *command)),
    )
    what = "insula run --rm debian-12 -- true, forked from a template / the same with --cold"
    yield Figure("warm run, debian", what, "s", ours, peer, (Bound("times", 1 / 12),))


def _until_running(bed: Bed) -> float:
    with bed.client.run(IMAGE) as machine:
        (made,) = [o.info for o in bed.client.operations(all=True) if o.info["target"] == machine.uid][:1]
        return float((made["outcome"] or {})["running_after_seconds"])


class Recipe:
    """A fork started by hand: the monitor's command line of one of Insula's, and as few words as it takes."""

    def __init__(self, bed: Bed, machine: insula.Machine) -> None:
        self._bed = bed
        plan = json.loads((Path(machine.info["directory"]) / LAUNCH_PLAN).read_text())
        self._argv: list[str] = plan["argv"]
        template = Path(plan["memory"]["template"])
        holder = (template / PID_FILE).read_text().split()[0]
        self._memory = f"/proc/{holder}/fd/{MEMORY_DESCRIPTOR}"
        self._state = template / DEVICE_STATE

    def run(self) -> float:
        directory = self._bed.bare_directory()
        directory.mkdir()
        late_boot.link(self._state.parent, directory)
        began = time.monotonic()
        memory = os.open(self._memory, os.O_RDWR)
        os.dup2(memory, MEMORY_DESCRIPTOR, inheritable=True)
        process = subprocess.Popen(
            self._argv,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(MEMORY_DESCRIPTOR,),
        )
        try:
            with Qmp(directory / "qmp.sock") as qmp:
                states = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
                qmp.say("migrate-set-capabilities", capabilities=states)
                qmp.give("state", self._state)
                qmp.say("migrate-incoming", uri="fd:state")
                qmp.wait_migrated()
                qmp.say("cont")
            return time.monotonic() - began
        finally:
            os.close(memory)
            os.close(MEMORY_DESCRIPTOR)
            process.kill()
            process.wait()


class Qmp:
    """As little of the monitor's protocol as a fork by hand needs."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                time.sleep(0.0005)  # the monitor waits for us
        self._stream = self._socket.makefile("rb")
        self._stream.readline()
        self.say("qmp_capabilities")

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def say(self, command: str, **arguments: Any) -> dict[str, Any]:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            heard: dict[str, Any] = json.loads(self._stream.readline())
            if "return" in heard or "error" in heard:
                return heard

    def give(self, name: str, path: Path) -> None:
        with path.open("rb") as file:
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file.fileno()))]
            text = json.dumps({"execute": "getfd", "arguments": {"fdname": name}})
            self._socket.sendmsg([text.encode() + b"\n"], passed)
        self._stream.readline()

    def wait_migrated(self) -> None:
        while True:
            heard = json.loads(self._stream.readline())
            if heard.get("event") == "MIGRATION" and heard["data"]["status"] == "completed":
                return


def measure_crowd(bed: Bed, runs: int) -> Iterator[Figure]:
    """Twenty launches at once: forks against boots, to the last agent; and what each takes of memory."""
    bed.client.run(IMAGE).remove(force=True)  # makes the template
    sizes: dict[bool, list[float]] = {False: [], True: []}

    def crowd(start: Callable[[str, bool], insula.Machine], cold: bool) -> float:
        machines: list[insula.Machine] = []
        try:
            took = timed(lambda: machines.extend(at_once(lambda name: start(str(name), cold), _names())))
            pids = [machine.info["pid"] or 0 for machine in machines]
            sizes[cold].append(sum(map(pss, pids)) / len(pids))
        finally:
            at_once(lambda machine: machine.remove(force=True), machines)
        return took

    def answering(name: str, cold: bool) -> insula.Machine:
        # A fork's agent has answered by the time it is said to run: it has made it itself. Of a boot nothing
        # tells so soon; a command in all of twenty is a fortieth of what they take.
        return _start(bed, name, cold) if cold else bed.client.run(IMAGE, name=name)

    few = max(1, runs // 2)
    ours, peer = in_turn(few, lambda: crowd(answering, False), lambda: crowd(answering, True))
    what = f"{CROWD} machines at once to the last agent's answer: forked / booted"
    yield Figure("crowd", what, "s", ours, peer, (Bound("times", 1 / 15),))
    sizes = {False: [], True: []}
    ours, peer = in_turn(few, lambda: crowd(_from(bed), False), lambda: crowd(_from(bed), True))
    what = f"{CROWD} machines at once to the end of the last one's first command (true): forked / booted"
    yield Figure("crowd, command", what, "s", ours, peer, (Bound("times", 1 / 15),))
    what = f"PSS of each of {CROWD} micro machines: forked / booted"
    yield Figure(
        "crowd memory", what, "MB", tuple(sizes[False]), tuple(sizes[True]), (Bound("times", 1 / 5),)
    )


def _from(bed: Bed) -> Callable[[str, bool], insula.Machine]:
    return lambda name, cold: _start(bed, name, cold)


def _names() -> list[str]:
    return [f"crowd{number}" for number in range(CROWD)]


def _start(bed: Bed, name: str, cold: bool) -> insula.Machine:
    machine = bed.client.run(IMAGE, name=name, cold=cold)
    machine.exec("true", check=True, agent_timeout=PATIENCE)
    return machine


def measure_fork(bed: Bed, runs: int) -> Iterator[Figure]:
    """Forks of a running machine that writes: how long it stands, and when ten siblings answer."""
    pauses: list[float] = []

    def siblings(parent: insula.Machine) -> float:
        began = time.monotonic()
        with parent.fork(SIBLINGS) as forked:
            at_once(lambda vm: vm.exec("true", check=True, agent_timeout=PATIENCE), forked)
            took = time.monotonic() - began
            pauses.append(forked.stood_seconds)
        return took

    def boots() -> float:
        machines: list[insula.Machine] = []
        names = [f"boot{number}" for number in range(SIBLINGS)]
        try:
            return timed(lambda: machines.extend(at_once(lambda name: _start(bed, str(name), True), names)))
        finally:
            at_once(lambda machine: machine.remove(force=True), machines)

    with bed.client.run(IMAGE, name="parent") as parent, _dirtying(parent):
        ours, peer = in_turn(runs, lambda: siblings(parent), boots)
    what = (
        f"{SIBLINGS} siblings of a machine that dirties {DIRTY_MB} MB/s, to the last answer / as many boots"
    )
    yield Figure("fork", what, "s", ours, peer, (Bound("times", 1 / 10),))
    what = "how long the machine's vCPUs stood for that"
    yield Figure("fork pause", what, "s", tuple(pauses))


@contextlib.contextmanager
def _dirtying(machine: insula.Machine) -> Iterator[None]:
    """Meanwhile the guest writes to its memory."""
    with machine.popen("sh", "-c", DIRTIER) as session:
        session.close_stdin()
        yield


CASES = {"warm": measure_warm, "debian": measure_debian, "crowd": measure_crowd, "fork": measure_fork}
