"""The program as a process: signals, terminals, pipes that break."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import termios
import threading
from typing import Any

import pytest

from tests.unit.cli.conftest import start
from tests.unit.client.stub import MACHINES, OPERATION, WEB, Peer, Stub, machine, operation

pytestmark = pytest.mark.slow
LONG = 30  # seconds after which a test gives up on the program


def end(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LONG)
    return process.returncode, out.decode(), err.decode()


class Guest:
    """A command in a guest that runs until it is told to end; what it heard is in `heard`."""

    def __init__(self, *, started: bool = True, ends_on_signal: bool = True) -> None:
        self.heard: list[Any] = []
        self.gone = threading.Event()
        self._started = started
        self._ends = ends_on_signal

    def __call__(self, peer: Peer) -> None:
        self.heard.append(peer.hear())
        if self._started:
            peer.say(type="started")
            peer.output(1, b"ready\n")
        try:
            while (message := peer.hear()) is not None:
                self.heard.append(message)
                if isinstance(message, dict) and message["type"] == "signal":
                    peer.output(1, b"caught\n")
                    if self._ends:
                        peer.say(type="exit", code=None, signal=2, status=130)
        except EOFError:
            pass
        self.gone.set()


def test_interrupt_goes_to_the_guest_command(stub: Stub) -> None:
    guest = Guest()
    stub.websocket(f"{WEB}/exec", guest)
    process = start("exec", "web", "--", "sleep", "9")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "caught\n", "")
    assert guest.heard[1:] == [{"type": "stdin-eof"}, {"type": "signal", "number": 2}]


def test_second_interrupt_leaves_a_command_that_does_not_listen(stub: Stub) -> None:
    guest = Guest(ends_on_signal=False)
    stub.websocket(f"{WEB}/exec", guest)
    process = start("exec", "web", "--", "sleep", "9")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"caught\n"
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130
    assert guest.gone.wait(LONG)


def test_interrupt_while_the_agent_is_silent(stub: Stub) -> None:
    guest = Guest(started=False)
    stub.websocket(f"{WEB}/exec", guest)
    process = start("exec", "web", "--", "true")
    stub.wait_asked("GET", f"{WEB}/exec")
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_run_rm_removes_when_it_is_ended(stub: Stub, number: int, status: int) -> None:
    stub.answer("POST", MACHINES, operation("create"))
    stub.answer("GET", WEB, machine())
    stub.answer("DELETE", WEB, operation("rm"))
    stub.websocket(f"{WEB}/exec", Guest())
    process = start("run", "--rm", "micro", "--", "sleep", "9")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert end(process) == (status, "", "")
    assert len(stub.asked("DELETE", WEB)) == 1


def cancelling(stub: Stub, method: str, path: str, verb: str) -> None:
    """An operation that runs until it is cancelled."""
    cancelled = threading.Event()
    running, steps = operation(verb, "running"), [{"name": "prepare disks", "state": "undone"}]
    stub.answer(method, path, running, status=202)

    def wait(_asked: object, peer: Peer) -> None:
        cancelled.wait(LONG)
        peer.respond(operation(verb, "cancelled", steps=steps))

    def cancel(_asked: object, peer: Peer) -> None:
        cancelled.set()
        peer.respond(running, 202)

    stub.on("GET", OPERATION, wait)
    stub.on("POST", f"{OPERATION}/cancel", cancel)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_cancels_the_operation_and_says_what_was_undone(
    stub: Stub, number: int, status: int
) -> None:
    cancelling(stub, "POST", f"{WEB}/start", "start")
    process = start("start", "web")
    stub.wait_asked("GET", OPERATION)
    process.send_signal(number)
    told, out, err = end(process)
    assert (told, out) == (status, "")
    assert err.splitlines()[-1] == "'start' of machine 'web' was cancelled; undone: prepare disks."


def test_interrupt_of_a_run_cancels_the_creation(stub: Stub) -> None:
    cancelling(stub, "POST", MACHINES, "create")
    process = start("run", "--rm", "micro", "--", "true")
    stub.wait_asked("GET", OPERATION)
    process.send_signal(signal.SIGINT)
    told, _, err = end(process)
    assert told == 130
    assert "'create' of machine 'web' was cancelled" in err
    assert stub.asked("DELETE", WEB) == []


def test_interrupt_while_submitting_is_held_until_it_can_be_cancelled(stub: Stub) -> None:
    interrupted = threading.Event()

    def submit(_asked: object, peer: Peer) -> None:
        interrupted.wait(LONG)
        peer.respond(operation(state="running"), 202)

    stub.on("POST", f"{WEB}/start", submit)
    stub.answer("POST", f"{OPERATION}/cancel", operation(state="running"))
    stub.answer("GET", OPERATION, operation(state="cancelled"))
    process = start("start", "web")
    stub.wait_asked("POST", f"{WEB}/start")
    process.send_signal(signal.SIGINT)
    interrupted.set()
    assert end(process)[0] == 130
    assert len(stub.asked("POST", f"{OPERATION}/cancel")) == 1


def test_second_interrupt_leaves_the_operation_to_the_daemon(stub: Stub) -> None:
    stub.answer("POST", f"{WEB}/start", operation(state="running"))
    stub.answer("POST", f"{OPERATION}/cancel", operation(state="running"))
    waits = [threading.Event(), threading.Event()]

    def wait(index: int) -> Any:
        def handler(_asked: object, peer: Peer) -> None:
            waits[index].set()
            peer.channel.recv(1)  # until the program hangs up

        return handler

    stub.on("GET", OPERATION, wait(0), wait(1))
    process = start("start", "web")
    for event in waits:
        assert event.wait(LONG)
        process.send_signal(signal.SIGINT)
    told, _, err = end(process)
    assert told == 130
    assert "The daemon goes on with it: insula op wait 0123456789abcdef" in err


def test_interrupt_of_a_plain_command_is_silent(stub: Stub) -> None:
    hold = threading.Event()
    stub.on("GET", "/v1/machines", lambda *_: hold.wait(LONG) and None)
    process = start("ls")
    stub.wait_asked("GET", "/v1/machines")
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", "")
    hold.set()


@pytest.mark.parametrize("line", ["ls --json", "logs web", "exec web -- yes"])
def test_broken_pipe_is_silent(stub: Stub, line: str) -> None:
    stub.answer("GET", "/v1/machines", [machine()])
    stub.raw("GET", f"{WEB}/log", b"HTTP/1.1 200 OK\r\n\r\nboot\n")
    stub.websocket(f"{WEB}/exec", Guest())
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*line.split(), stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=LONG)
    assert (process.returncode, err) == (141, b"")


def test_large_input_and_output_at_once(stub: Stub) -> None:
    """`cat`: the guest's answer must be read while its input is written."""
    size = 3 * 2**20

    def cat(peer: Peer) -> None:
        peer.hear()
        peer.say(type="started")
        while isinstance(message := peer.hear(), bytes):
            peer.output(1, message[1:])
        peer.say(type="exit", code=0, signal=None, status=0)

    stub.websocket(f"{WEB}/exec", cat)
    process = start("exec", "web", "--", "cat", stdin=-1)
    out, _ = process.communicate(b"x" * size, timeout=LONG)
    assert (process.returncode, len(out)) == (0, size)


# Terminals


class Terminal:
    """A pseudo-terminal with the program on it."""

    def __init__(self, *argv: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.process = start(*argv, stdin=self.slave, stdout=self.slave, stderr=self.slave)
        self.seen = ""

    def read_until(self, text: str) -> None:
        while text not in self.seen:
            self.seen += os.read(self.master, 65536).decode()

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def end(self) -> int:
        """The exit status; the terminal must be as it was."""
        status = self.process.wait(LONG)
        os.set_blocking(self.master, False)
        with contextlib.suppress(BlockingIOError):
            self.seen += os.read(self.master, 65536).decode()
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.master)
        os.close(self.slave)
        return status


def echoing(heard: list[Any]) -> Any:
    def console(peer: Peer) -> None:
        peer.frame(2, b"login: ")
        try:
            while (message := peer.hear()) is not None:
                heard.append(message)
                peer.frame(2, b"<" + message + b">")
        except EOFError:
            pass

    return console


def shell(stub: Stub, heard: list[Any]) -> Terminal:
    stub.raw("GET", f"{WEB}/log", b"HTTP/1.1 200 OK\r\n\r\nbooted\r\n")
    stub.websocket(f"{WEB}/console", echoing(heard))
    terminal = Terminal("shell", "web")
    terminal.read_until("login: ")
    assert terminal.is_raw()
    return terminal


def test_shell_passes_keys_on_and_leaves_with_the_escape_key(stub: Stub) -> None:
    heard: list[Any] = []
    terminal = shell(stub, heard)
    assert "booted" in terminal.seen
    assert "Ctrl-] leaves it" in terminal.seen
    terminal.type(b"root\r\x03")
    terminal.read_until("<root\r\x03>")
    terminal.type(b"x\x1dnever sent")
    assert terminal.end() == 0
    assert "Left the console of 'web'." in terminal.seen
    assert b"".join(heard) in (b"root\r\x03x", b"root\r\x03")


def test_shell_restores_the_terminal_when_it_is_ended(stub: Stub) -> None:
    terminal = shell(stub, [])
    terminal.process.terminate()
    assert terminal.end() == 143


def test_shell_ends_with_the_machine(stub: Stub) -> None:
    stub.raw("GET", f"{WEB}/log", b"HTTP/1.1 200 OK\r\n\r\n")

    def power_down(peer: Peer) -> None:
        peer.frame(2, b"Power down.")
        peer.close_with()

    stub.websocket(f"{WEB}/console", power_down)
    terminal = Terminal("shell", "web")
    assert terminal.end() == 0
    assert "Power down." in terminal.seen
    assert "The machine has closed the console of 'web'." in terminal.seen


def test_shell_that_is_busy(stub: Stub) -> None:
    stub.raw("GET", f"{WEB}/log", b"HTTP/1.1 200 OK\r\n\r\n")
    problem = {"code": "console-busy", "family": "conflict", "exit_status": 73, "detail": "Somebody has it."}
    stub.websocket(f"{WEB}/console", lambda peer: peer.say(type="error", problem=problem))
    terminal = Terminal("shell", "web")
    assert terminal.end() == 73
    assert "Somebody has it." in terminal.seen


def test_exec_with_a_terminal(stub: Stub) -> None:
    heard: list[Any] = []

    def talk(peer: Peer) -> None:
        heard.append(peer.hear())
        peer.say(type="started")
        peer.output(1, b"# ")
        heard.append(peer.hear())
        peer.output(1, b"got it")
        heard.append(peer.hear())
        peer.say(type="exit", code=5, signal=None, status=5)

    stub.websocket(f"{WEB}/exec", talk)
    terminal = Terminal("exec", "-t", "web", "--", "sh")
    terminal.read_until("# ")
    assert terminal.is_raw()
    terminal.type(b"\x03")
    terminal.read_until("got it")
    termios.tcsetwinsize(terminal.slave, (50, 132))
    terminal.process.send_signal(signal.SIGWINCH)
    assert terminal.end() == 5
    assert heard[0]["tty"] is True
    assert heard[1:] == [b"\0\x03", {"type": "resize", "rows": 50, "columns": 132}]


def test_exec_on_a_terminal_does_not_wait_for_it(stub: Stub) -> None:
    heard: list[Any] = []

    def talk(peer: Peer) -> None:
        peer.hear()
        heard.append(peer.hear())
        peer.say(type="exit", code=0, signal=None, status=0)

    stub.websocket(f"{WEB}/exec", talk)
    assert Terminal("exec", "web", "--", "cat").end() == 0
    assert heard == [{"type": "stdin-eof"}]


def test_run_on_a_terminal_opens_the_console(stub: Stub) -> None:
    stub.answer("POST", MACHINES, operation("create"))
    stub.websocket(f"{WEB}/console", echoing([]))
    terminal = Terminal("run", "micro")
    terminal.read_until("login: ")
    terminal.type(b"\x1d")
    assert terminal.end() == 0
    assert "Machine 'web' goes on running." in terminal.seen


def test_progress_on_a_terminal_is_one_line(stub: Stub) -> None:
    stub.answer("POST", "/v1/images/micro/build", operation("image-build", "queued", target_kind="image"))
    running = operation("image-build", "running", progress={"message": "unpacking", "fraction": 0.25})
    stub.answer("GET", OPERATION, running, operation("image-build"))
    stub.answer("GET", "/v1/images/micro", {"name": "micro", "size_bytes": 2**20})
    terminal = Terminal("image", "build", "micro")
    assert terminal.end() == 0
    assert "\r\x1b[K 25% unpacking\r\x1b[K" in terminal.seen


@pytest.mark.parametrize("no_color", [False, True])
def test_colour_on_a_terminal_only_if_wanted(
    stub: Stub, no_color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1" if no_color else "")
    stub.answer("GET", "/v1/machines", [machine()])
    terminal = Terminal("ls")
    assert terminal.end() == 0
    assert ("\x1b[32mrunning\x1b[0m" in terminal.seen) is not no_color
