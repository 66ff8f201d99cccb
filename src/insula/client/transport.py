"""A request to the home's daemon and its answer, or the error it stands for. Starts the daemon when none
listens.

connect ── nobody listens ──> daemon.start ──> connect
GET, and the daemon dies before it has answered: again, on a daemon that is started again
anything else, and the daemon dies: DaemonLost; nobody may guess whether it was done
"""

from __future__ import annotations

import time

import insula
from insula.client.errors import DaemonGarbled, DaemonLost, DaemonSilent, DaemonUnreachable
from insula.client.jsontext import read_json
from insula.client.locate import daemon_socket, find_home
from insula.client.wire import Disconnected, Garbled, Response, open_socket, send_request
from insula.kit.errors import error_from_problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from _socket import socket as Socket
    from collections.abc import Callable
    from typing import Any, TypeVar

    Answer = TypeVar("Answer")

ANSWER_TIMEOUT = 60.0  # seconds for an answer that needs no waiting; a loaded host is slow, not silent
_PAUSES = (0.0, 0.05, 0.2)  # seconds before a question is asked again; a new daemon takes 0.3 s to listen


class Transport:
    """The way to one home's daemon. Safe to use from several threads: each request has its own connection.

    start: start the daemon when none listens; without it that is DaemonUnreachable.
    """

    def __init__(self, home: str | os.PathLike[str] | None = None, *, start: bool = True) -> None:
        self.home = find_home(home)
        self.socket_path = daemon_socket(self.home)
        self.start = start

    def connect(self) -> Socket:
        """A fresh connection. Raises DaemonUnreachable, DaemonNotStarted and what the starting daemon
        reported."""
        try:
            return open_socket(self.socket_path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if not self.start:
                raise DaemonUnreachable(
                    f"No daemon runs for '{self.home}'.", hint="Any other command starts it: insula ls"
                ) from error
        except OSError as error:
            raise DaemonUnreachable(
                f"Cannot connect to the daemon at '{self.socket_path}'.",
                hint="It serves its own user only. A home of your own: INSULA_HOME=DIR insula ...",
            ) from error
        from insula.client.daemon import start_daemon

        return start_daemon(self.home)

    def call(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        timeout: float | None = ANSWER_TIMEOUT,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """The answer's JSON (None when it has no body). timeout: seconds of silence before DaemonSilent.

        Raises the error the answer tells, DaemonLost, DaemonSilent, DaemonGarbled and what `connect` raises.
        """
        return self._again(method, target, lambda: self._call(method, target, body, timeout, headers))

    def _again(self, method: str, target: str, ask: Callable[[], Answer]) -> Answer:
        """What is asked changes nothing: then it is asked again when the daemon dies before it answers.

        Not once only: one that was killed takes connections for the moment in which the kernel clears it
        away.
        """
        for pause in _PAUSES if method == "GET" else ():
            try:
                return ask()
            except Disconnected:
                time.sleep(pause)
        try:
            return ask()
        except Disconnected as error:
            raise _lost(method, target) from error

    def _call(
        self, method: str, target: str, body: object, timeout: float | None, headers: dict[str, str] | None
    ) -> Any:
        response = self._ask(method, target, body, timeout, headers)
        try:
            data = response.read()
        except Garbled as error:
            raise _garbled(self.socket_path) from error
        except TimeoutError as error:
            raise _silent(method, target, timeout) from error
        return self.decode(response, data)

    def decode(self, response: Response, data: bytes) -> Any:
        """The JSON of an answer that was read whole; raises the error when it tells of one."""
        try:
            answer = read_json(data) if data else None
        except ValueError as error:
            raise _garbled(self.socket_path, f"status {response.status}: {data[:200]!r}") from error
        if response.status < 400:
            return answer
        if isinstance(answer, dict) and "detail" in answer:
            told = error_from_problem({"status": response.status, **answer})
            if "operation" in answer:
                vars(told)["operation"] = answer["operation"]
            raise told
        raise _garbled(self.socket_path, f"status {response.status}: {data[:200]!r}")

    def stream(self, target: str, headers: dict[str, str] | None = None) -> Response:
        """An answer to GET whose body is read as it comes (no timeout). Asked again when the daemon dies
        before it."""
        response = self._again("GET", target, lambda: self._ask("GET", target, None, None, headers))
        if response.status >= 400:
            self.decode(response, response.read())
        return response

    def upgrade(self, target: str, headers: dict[str, str]) -> Response:
        """The answer 101 to a request for a websocket; its channel is the caller's from now on."""
        try:
            response = self._ask("GET", target, None, None, headers)
        except Disconnected as error:
            raise _lost("GET", target) from error
        if response.status != 101:
            self.decode(response, response.read())
            raise _garbled(self.socket_path, f"status {response.status} where 101 was expected")
        return response

    def _ask(
        self,
        method: str,
        target: str,
        body: object,
        timeout: float | None,
        headers: dict[str, str] | None,
    ) -> Response:
        channel = self.connect()
        channel.settimeout(timeout)
        head = {"Insula-Version": insula.__version__, "Accept": "*/*", **(headers or {})}
        if "Upgrade" not in head:
            head["Connection"] = "close"
        raw = None
        if body is not None:
            import json

            raw = json.dumps(body, separators=(",", ":")).encode()
            head["Content-Type"] = "application/json"
        try:
            return send_request(channel, method, target, head, raw)
        except Garbled as error:
            raise _garbled(self.socket_path) from error
        except TimeoutError as error:
            raise _silent(method, target, timeout) from error


def _lost(method: str, target: str) -> DaemonLost:
    asked = f"{method} {target.partition('?')[0]}"
    hint = (
        "See what became of it: insula op ls --all"
        if method != "GET"
        else "Try again: the daemon is started anew."
    )
    return DaemonLost(f"The daemon went away before it answered '{asked}'.", hint=hint)


def _silent(method: str, target: str, timeout: float | None) -> DaemonSilent:
    return DaemonSilent(
        f"The daemon did not answer '{method} {target.partition('?')[0]}' within {timeout:g}s.",
        hint="Stop it (no machine is stopped): insula daemon stop; the next command starts it anew.",
    )


def _garbled(path: str, answer: str = "") -> DaemonGarbled:
    return DaemonGarbled(
        f"What answers at '{path}' does not speak Insula's language.",
        hint="Is another program listening there? Otherwise report this.",
        evidence={"answer": answer} if answer else None,
    )
