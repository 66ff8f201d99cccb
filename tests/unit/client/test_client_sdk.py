from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import insula
from insula.client.errors import DaemonGarbled, DaemonLost, DaemonUnreachable, GuestCommandFailed
from insula.client.sdk import Client
from insula.client.transport import Transport
from insula.kit.errors import Bug, Conflict, Invalid, NotFound
from tests.unit.client.stub import MACHINES, OPERATION, WEB, Asked, Peer, Stub, machine, operation


def test_every_request_says_our_version(stub: Stub, client: Client) -> None:
    stub.answer("GET", "/v1/machines", [machine("a"), machine("b")])
    assert [m.name for m in client.machines()] == ["a", "b"]
    assert stub.requests[0].headers["insula-version"] == insula.__version__


def test_errors_come_back_as_their_classes(stub: Stub, client: Client) -> None:
    stub.refuse(
        "POST",
        f"{WEB}/start",
        code="already-running",
        detail="Machine 'web' runs already.",
        hint="Look: insula ls",
        evidence={"pid": 7},
        causes=["because"],
        exit_status=73,
    )
    with pytest.raises(Conflict) as caught:
        client.machine("web").start()
    error = caught.value
    assert (error.code, error.message, error.hint) == (
        "already-running",
        "Machine 'web' runs already.",
        "Look: insula ls",
    )
    assert (error.exit_status, error.evidence, error.causes()) == (73, {"pid": 7}, ["because"])


def test_unknown_code_with_404_is_not_found(stub: Stub, client: Client) -> None:
    stub.refuse(
        "GET", WEB, code="made-up-not-found", family="invalid", status=404, detail="No.", exit_status=66
    )
    with pytest.raises(NotFound) as caught:
        _ = client.machine("web").info
    assert (caught.value.code, caught.value.exit_status) == ("made-up-not-found", 66)


def test_operation_is_waited_for_with_progress(stub: Stub, client: Client) -> None:
    stub.answer("POST", f"{WEB}/start", operation(state="queued"), status=202)
    stub.answer(
        "GET",
        OPERATION,
        operation(state="running", progress={"message": "unpacking", "fraction": 0.5}),
        operation(state="done", notes=["It took long."]),
    )
    seen: list[Any] = []
    info = client.machine("web").start(progress=lambda o: seen.append(o["progress"]))
    assert seen == [{"message": "unpacking", "fraction": 0.5}]
    assert info["notes"] == ["It took long."]


def test_failed_operation_raises_its_problem(stub: Stub, client: Client) -> None:
    problem = {"code": "launch-failed", "family": "unavailable", "detail": "QEMU ended.", "exit_status": 69}
    stub.answer("POST", f"{WEB}/start", operation(state="running"))
    stub.answer("GET", OPERATION, operation(state="failed", problem=problem))
    with pytest.raises(insula.Unavailable, match="QEMU ended") as caught:
        client.machine("web").start()
    assert vars(caught.value)["operation"] == "0123456789abcdef"


def test_cancelled_operation(stub: Stub, client: Client) -> None:
    stub.answer("POST", f"{WEB}/start", operation(state="cancelled"))
    with pytest.raises(Conflict, match="cancelled") as caught:
        client.machine("web").start()
    assert caught.value.code == "cancelled"


def talk_of(*steps: tuple[int, bytes], exit: dict[str, Any] | None = None) -> Any:
    def talk(peer: Peer) -> None:
        peer.hear()
        peer.say(type="started")
        for channel, data in steps:
            peer.output(channel, data)
        peer.say(type="exit", **(exit or {"code": 0, "signal": None, "status": 0}))
        peer.close_with()

    return talk


def test_exec(stub: Stub, client: Client) -> None:
    heard: list[Any] = []

    def talk(peer: Peer) -> None:
        heard.append(peer.hear())
        peer.say(type="started")
        data = b""
        while isinstance(message := peer.hear(), bytes):
            assert message[:1] == b"\0"
            data += message[1:]
        heard.append(message)
        peer.output(1, b"out " + data)
        peer.output(2, b"err\xff")
        peer.say(type="exit", code=None, signal=9, status=137)
        peer.close_with()

    stub.websocket(f"{WEB}/exec", talk)
    result = client.machine("web").exec("cat", "-", input="ïn", env={"A": "b"}, cwd="/tmp", user="me")
    assert (result.stdout, result.stderr, result.exit_code, result.signal) == ("out ïn", "err\ufffd", 137, 9)
    assert result.stderr_bytes == b"err\xff"
    assert heard[0] == {
        "argv": ["cat", "-"],
        "environment": {"A": "b"},
        "working_directory": "/tmp",
        "user": "me",
        "tty": False,
        "rows": 24,
        "columns": 80,
        "timeout": None,
    }
    assert heard[1] == {"type": "stdin-eof"}


def test_exec_check(stub: Stub, client: Client) -> None:
    stub.websocket(f"{WEB}/exec", talk_of((2, b"no such"), exit={"code": 3, "signal": None, "status": 3}))
    with pytest.raises(GuestCommandFailed, match="status 3") as caught:
        client.machine("web").exec("false", check=True)
    assert caught.value.evidence["stderr"] == "no such"


def test_exec_timeout_ends_the_command(stub: Stub, client: Client) -> None:
    heard: list[Any] = []

    def talk(peer: Peer) -> None:
        peer.hear()
        peer.say(type="started")
        heard.append(peer.hear())  # stdin-eof
        heard.append(peer.hear())
        peer.say(type="exit", code=None, signal=15, status=143)

    stub.websocket(f"{WEB}/exec", talk)
    with pytest.raises(insula.Unavailable, match="had not ended"):
        client.machine("web").exec("sleep", "9", timeout=0.01)
    assert heard[1] == {"type": "signal", "number": 15}


def test_exec_error_of_the_daemon(stub: Stub, client: Client) -> None:
    problem = {
        "code": "guest-command-not-found",
        "family": "invalid",
        "detail": "No 'x'.",
        "exit_status": 127,
    }

    def talk(peer: Peer) -> None:
        peer.hear()
        peer.say(type="error", problem=problem)
        peer.close_with(1011)

    stub.websocket(f"{WEB}/exec", talk)
    with pytest.raises(Invalid, match="No 'x'") as caught:
        client.machine("web").exec("x")
    assert caught.value.exit_status == 127


def test_exec_whose_daemon_dies(stub: Stub, client: Client) -> None:
    stub.websocket(f"{WEB}/exec", lambda peer: peer.hear() and peer.say(type="started"))
    with pytest.raises(DaemonLost):
        client.machine("web").exec("sleep", "9")


def test_run_removes_its_machine_and_no_other(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSULA_HOME", str(stub.home))
    stub.answer("POST", MACHINES, operation("create"))
    stub.answer("GET", WEB, machine(generation=7))
    stub.answer("DELETE", WEB, operation("rm"))
    with insula.run("micro", memory="1GiB", publish=["2222:22"], hostname="h") as vm:
        assert (vm.name, vm.uid) == ("web", "uid-web")
    created, removed = stub.asked("POST", MACHINES)[0], stub.asked("DELETE", WEB)[0]
    assert created.json == {
        "image": "micro",
        "memory": "1GiB",
        "publish": ["2222:22"],
        "cloud_init": {"hostname": "h"},
    }
    assert created.query == "start=true"
    assert (removed.query, removed.headers["if-match"]) == ("force=true", '"7"')


def test_name_that_another_machine_carries_now_is_left_alone(stub: Stub, client: Client) -> None:
    stub.answer("POST", MACHINES, operation("create"))
    stub.answer("GET", WEB, machine(uid="another"))
    with client.run("micro"):
        pass
    assert stub.asked("DELETE", WEB) == []


def test_removal_that_somebody_began_is_waited_for(stub: Stub, client: Client) -> None:
    stub.refuse("DELETE", WEB, code="being-removed", detail="It is being removed.")
    stub.answer("GET", "/v1/operations", [operation("rm", "running")])
    stub.answer("GET", OPERATION, operation("rm", "done"))
    assert client.machine("web").remove()["state"] == "done"


def test_wait_asks_again_until_its_own_timeout(stub: Stub, client: Client) -> None:
    late = {"code": "wait-timeout", "family": "unavailable", "status": 408, "detail": "Not yet."}
    stub.on("GET", f"{WEB}/wait", lambda _, peer: peer.respond(late, 408), lambda _, p: p.respond(machine()))
    assert client.machine("web").wait("running")["phase"] == "running"
    stub.refuse("GET", f"{MACHINES}/db/wait", **late)
    with pytest.raises(insula.Unavailable, match="Not yet"):
        client.machine("db").wait("stopped", timeout=0)


def hang_up(_asked: Asked, _peer: Peer) -> None:
    """The daemon dies before it answers."""


@pytest.mark.parametrize("deaths", [1, 2, 3])
def test_get_is_sent_again_when_the_daemon_dies(stub: Stub, client: Client, deaths: int) -> None:
    """A killed one goes on taking connections for a moment."""
    stub.on("GET", "/v1/machines", *[hang_up] * deaths, lambda _, peer: peer.respond([]))
    assert client.machines() == []
    assert len(stub.requests) == deaths + 1


def test_get_is_not_sent_for_ever(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/machines", *[hang_up] * 9)
    with pytest.raises(DaemonLost, match="GET /v1/machines"):
        client.machines()
    assert len(stub.requests) == 4


def test_post_is_never_sent_again(stub: Stub, client: Client) -> None:
    stub.on("POST", f"{WEB}/start", hang_up)
    with pytest.raises(DaemonLost, match=r"POST .*/start"):
        client.machine("web").start()
    assert len(stub.requests) == 1


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<x>"])
def test_other_program_at_the_socket(stub: Stub, client: Client, answer: bytes) -> None:
    stub.raw("GET", "/v1/machines", answer)
    with pytest.raises(DaemonGarbled):
        client.machines()


def test_silent_daemon(stub: Stub) -> None:
    done = threading.Event()
    stub.on("GET", "/v1/machines", lambda *_: done.wait(20) and None)
    with pytest.raises(insula.Unavailable, match=r"did not answer .* within 0.02s"):
        Transport(stub.home, start=False).call("GET", "/v1/machines", timeout=0.02)
    done.set()


def test_no_daemon(tmp_path: Path) -> None:
    client = Client(tmp_path, start=False)
    with pytest.raises(DaemonUnreachable, match="No daemon runs"):
        client.machines()
    assert client.daemon_status() is None
    assert client.daemon_stop() is False


def event(seq: int) -> bytes:
    return f"id: {seq}\nevent: machine.phase\ndata: {json.dumps({'seq': seq})}\n\n".encode()


def test_events_go_on_after_the_daemon_died(stub: Stub, client: Client) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def chunk(data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data)

    stub.on("GET", "/v1/events", lambda _, peer: peer.send(head + chunk(event(4)) + chunk(event(5))))
    stub.on("GET", "/v1/events", lambda _, peer: peer.send(head + chunk(event(6))))
    events = client.events(follow=True)
    assert [next(events)["seq"] for _ in range(3)] == [4, 5, 6]
    assert [asked.query for asked in stub.requests] == ["follow=true", "after=5&follow=true"]


def test_logs_are_bytes_as_they_are(stub: Stub, client: Client) -> None:
    stub.raw("GET", f"{WEB}/log", b"HTTP/1.1 200 OK\r\n\r\n", b"\xff\x00boot\r\n", b"login: ")
    assert b"".join(client.machine("web").logs(tail=5)) == b"\xff\x00boot\r\nlogin: "
    assert stub.requests[0].query == "follow=false&tail=5"


def test_unreadable_problem_is_a_bug(stub: Stub, client: Client) -> None:
    stub.answer("GET", "/v1/images", ["what"], status=500)
    with pytest.raises(Bug):
        client.images()


def test_templates(stub: Stub, client: Client) -> None:
    stub.answer("GET", "/v1/templates", [{"key": "0123456789ab"}])
    assert client.templates()[0]["key"] == "0123456789ab"
    freed = {"removed": ["0123456789ab"], "freed_bytes": 7}
    stub.answer("DELETE", "/v1/templates/micro", operation("template-rm", "done", outcome=freed))
    assert client.remove_template("micro") == 7
    stub.answer("POST", "/v1/templates/prune", operation("template-prune", "done", outcome=freed))
    assert client.prune_templates(3600) == 7
    assert stub.requests[-1].json == {"unused_for": 3600}
