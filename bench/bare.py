"""The peer: a launch plan's command line started by hand, and its guest asked by the shortest way there is.

    python3 bench/bare.py PLAN.json NEW_DIRECTORY -- COMMAND...

Start the monitor, greet it, let the guest run, greet the guest's agent, which answers as soon as it is there,
have it run the command, pull the plug. Standard library only, and as little of it as will do.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from typing import Any

# docs/reference/guest-agent.md
_MAGIC = b"\x89INS"
_HEADER = struct.Struct("<4sIII")
_SYNC, _SYNC_REPLY, _EXEC, _STDOUT, _STDERR, _EXIT, _ERROR = 1, 2, 16, 20, 21, 25, 31
_VERSION = 1
_NONCE = 0x1234567890ABCDEF
_WINDOW = 256 * 1024
_POLL = 0.0005  # seconds between looks for the monitor's socket, where the monitor waits for us
_TIMEOUT = 300.0  # seconds for anything: then it is not a measurement any more


class Bare:
    """A machine without Insula. directory: of its own, where its files are and come."""

    def __init__(self, argv: list[str], directory: str) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            argv,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._monitor = connect(f"{directory}/qmp.sock", self.process)
            self._heard = self._monitor.makefile("rb")
            self._hear()  # the greeting
            self.say("qmp_capabilities")
        except BaseException:
            self.kill()
            raise

    def run(self) -> None:
        """Let the guest run."""
        self.say("cont")

    def say(self, command: str, **arguments: Any) -> Any:
        """Have the monitor do something; its answer."""
        text = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        self._monitor.sendall(text.encode() + b"\n")
        return self._answer()

    def give(self, name: str, descriptor: int) -> None:
        """Hand the monitor a descriptor, by which it reads or writes what it may not open."""
        text = json.dumps({"execute": "getfd", "arguments": {"fdname": name}})
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
        self._monitor.sendmsg([text.encode() + b"\n"], rights)
        self._answer()

    def wait_agent(self) -> None:
        """To where the guest's agent has answered."""
        self._agent = Agent(connect(f"{self.directory}/agent.sock", self.process))
        self._agent.greet()

    def ask(self, argv: list[str]) -> int:
        """Have the guest run a command to its end; its exit status."""
        return self._agent.ask(argv)

    def hear(self, argv: list[str]) -> bytes:
        """Have the guest run a command to its end; what it printed."""
        return self._agent.hear(argv)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> Any:
        while True:
            heard = self._hear()
            if "error" in heard:
                raise RuntimeError(f"the monitor refuses: {heard['error']}")
            if "return" in heard:
                return heard["return"]

    def _hear(self) -> dict[str, Any]:
        line = self._heard.readline()
        if not line:
            raise RuntimeError("the monitor has gone")
        heard: dict[str, Any] = json.loads(line)
        return heard


class Agent:
    """The agent of a guest, behind the socket of its port."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._stream = 0  # a number serves once in a session
        self.said = b""  # by the last command, at most a window of it

    def greet(self) -> None:
        """Until it answers; while there is none, the monitor keeps the greetings."""
        pause = 0.1
        while True:
            # Said again as Insula's own client says it again: one in thirty is lost, and a peer that waits
            # for the answer to a lost one would make us look good.
            self._send(_SYNC, 0, struct.pack("<QI", _NONCE, _VERSION))
            if select.select([self._socket], [], [], pause)[0]:
                break
            pause = min(2 * pause, 8.0)
        kind, _ = self._receive()
        if kind != _SYNC_REPLY:
            raise RuntimeError(f"the agent greets with {kind}")

    def ask(self, argv: list[str]) -> int:
        """Have it run a command to its end; its exit status (128+N: signal N)."""
        words = b"".join(struct.pack("<I", len(word)) + word for word in map(os.fsencode, argv))
        request = struct.pack("<IIHHI", _WINDOW, 0, 24, 80, len(argv)) + words + struct.pack("<III", 0, 0, 0)
        self._stream += 1
        self.said = b""
        self._send(_EXEC, self._stream, request)
        while True:
            kind, payload = self._receive()
            if kind in (_STDOUT, _STDERR):
                self.said += payload
            if kind == _EXIT:
                killed, number = struct.unpack("<II", payload)
                return int(number) + (128 if killed else 0)
            if kind == _ERROR:
                raise RuntimeError(f"the agent refuses: {payload!r}")

    def hear(self, argv: list[str]) -> bytes:
        """Have it run a command, which must succeed; what that printed."""
        if self.ask(argv) != 0:
            raise RuntimeError(f"{argv} failed in the guest: {self.said!r}")
        return self.said

    def close(self) -> None:
        """Leave the port to the next, who greets anew."""
        self._socket.close()

    def _send(self, kind: int, stream: int, payload: bytes) -> None:
        seal = struct.pack("<I", _NONCE & 0xFFFFFFFF)
        self._socket.sendall(_HEADER.pack(_MAGIC, kind, stream, len(payload)) + payload + seal)

    def _receive(self) -> tuple[int, bytes]:
        _, kind, _, length = _HEADER.unpack(self._exactly(_HEADER.size))
        return kind, self._exactly(length + 4)[:-4]

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise RuntimeError("the agent has gone")
            data += piece
        return data


def connect(path: str, process: subprocess.Popen[bytes] | None = None) -> socket.socket:
    """Connect to what is about to listen there; process: which does, unless it ends before."""
    deadline = time.monotonic() + _TIMEOUT
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if (process and process.poll() is not None) or time.monotonic() > deadline:
                raise
            time.sleep(_POLL)
        else:
            connection.settimeout(_TIMEOUT)
            return connection


def main() -> int:
    plan, directory, _, *command = sys.argv[1:]
    with open(plan, encoding="utf-8") as file:  # noqa: PTH123
        argv = json.load(file)["argv"]
    os.mkdir(directory, 0o700)  # noqa: PTH102 - pathlib is 5 ms of import in a script that is measured
    bare = Bare(argv, directory)
    try:
        bare.run()
        bare.wait_agent()
        return bare.ask(command)
    finally:
        bare.kill()


if __name__ == "__main__":
    sys.exit(main())
