from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.client.sdk import Client
from insula.client.websocket import BINARY, TEXT, Decoder, WebSocket, encode_frame
from insula.client.wire import Garbled
from insula.kit.errors import Bug, Unavailable
from tests.unit.client.stub import WEB, Peer, Stub


def unmask(frame: bytes) -> bytes:
    size, start = frame[1] & 0x7F, 2
    if size >= 126:
        start = 4 if size == 126 else 10
    mask, body = frame[start : start + 4], frame[start + 4 :]
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(body))


@given(st.binary(max_size=300))
def test_small_frames_are_masked(payload: bytes) -> None:
    frame = encode_frame(BINARY, payload)
    assert frame[0] == 0x82
    assert frame[1] & 0x80
    assert unmask(frame) == payload


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200001])
def test_length_forms(size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    frame = encode_frame(TEXT, payload)
    assert len(frame) == size + 4 + (2 if size < 126 else 4 if size < 65536 else 10)
    assert unmask(frame) == payload


def server_frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    sent = []

    class Recording(Peer):
        def send(self, data: bytes) -> None:
            sent.append(data)

    Recording(None).frame(opcode, payload, final)  # type: ignore[arg-type]
    return sent[0]


@given(st.lists(st.binary(max_size=400), max_size=5), st.integers(min_value=1, max_value=50))
def test_decoding_does_not_depend_on_how_it_was_cut(payloads: list[bytes], step: int) -> None:
    stream = b"".join(server_frame(BINARY, payload) for payload in payloads)
    decoder = Decoder()
    got = [m for i in range(0, len(stream), step) for m in decoder.feed(stream[i : i + step])]
    assert got == [(BINARY, payload) for payload in payloads]


def test_fragments_are_joined_and_control_frames_pass_between() -> None:
    stream = server_frame(TEXT, b"he", False) + server_frame(9, b"!") + server_frame(0, b"y")
    assert Decoder().feed(stream) == [(9, b"!"), (TEXT, b"hey")]


@pytest.mark.parametrize(
    "stream",
    [
        server_frame(0, b"x"),
        server_frame(TEXT, b"x", False) + server_frame(TEXT, b"y"),
        b"\x82\x80aaaa",
        b"\xc2\x00",
    ],
)
def test_wrong_frames(stream: bytes) -> None:
    with pytest.raises(Garbled):
        Decoder().feed(stream)


def test_ping_is_answered_and_close_is_told() -> None:
    ours, theirs = socket.socketpair()
    peer = Peer(theirs)
    peer.frame(9, b"are you there")
    peer.frame(8, (1011).to_bytes(2, "big") + b"why")
    websocket = WebSocket(ours)  # type: ignore[arg-type]
    assert websocket.exchange()[0] == []
    assert (websocket.closed, websocket.close_code, websocket.close_reason) == (True, 1011, "why")
    assert peer.read(2)[0] == 0x8A


def test_both_sides_may_send_more_than_fits() -> None:
    """`cat` with a large input: whoever only sends would wait forever."""
    ours, theirs = socket.socketpair()
    amount, piece = 8 * 2**20, b"\0" + b"x" * 65536

    def echo() -> None:
        peer = Peer(theirs)
        for _ in range(amount // 65536):
            peer.frame(2, b"\1" + b"y" * 65536)  # blocks unless the client reads
        for _ in range(amount // 65536):
            peer.read(2 + 8 + 4 + len(piece))
        peer.close_with()

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    websocket = WebSocket(ours)  # type: ignore[arg-type]
    sent = received = 0
    while not websocket.closed:
        while sent < amount and not websocket.congested:
            websocket.send(piece)
            sent += 65536
        received += sum(len(m) - 1 for m in websocket.exchange(timeout=20)[0])
    assert (sent, received) == (amount, amount)
    thread.join(20)


def test_refused_handshake_is_the_error_it_tells(stub: Stub, client: Client) -> None:
    stub.refuse("GET", f"{WEB}/console", code="console-busy", detail="Somebody has it.")
    with pytest.raises(Exception, match="Somebody has it"):
        client.machine("web").console()


def test_plain_answer_to_a_handshake(stub: Stub, client: Client) -> None:
    stub.answer("GET", f"{WEB}/console", {})
    with pytest.raises(Bug):
        client.machine("web").console()


def test_lost_console_is_closed(stub: Stub, client: Client) -> None:
    stub.websocket(f"{WEB}/console", lambda peer: peer.frame(2, b"login: "))
    with client.machine("web").console() as console:
        assert console.read() == b"login: "
        assert console.read() == b""
        assert console.closed


def test_console_error_is_raised(stub: Stub, client: Client) -> None:
    problem = {"code": "no-class-here", "family": "unavailable", "detail": "Busy."}
    stub.websocket(f"{WEB}/console", lambda peer: peer.say(type="error", problem=problem))
    with client.machine("web").console() as console, pytest.raises(Unavailable, match=r"Busy\."):
        console.read()
