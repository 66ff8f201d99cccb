from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.client import jsontext
from insula.client.events import parse_events
from insula.client.jsontext import read_json
from insula.client.wire import Disconnected, Garbled, Response, open_socket, quote, send_request, with_query


def ask(*pieces: bytes) -> Response:
    """The answer to a request, coming in these pieces, each its own packet."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for piece in pieces:
        theirs.send(piece)
    theirs.shutdown(socket.SHUT_WR)
    response = send_request(ours, "GET", "/x", {"A": "b"})  # type: ignore[arg-type]
    vars(response)["peer"] = theirs  # closed with our request unread, it would reset the connection
    return response


OK = b"HTTP/1.1 200 OK\r\n"


def test_counted_body() -> None:
    response = ask(OK + b"Content-Length: 5\r\nX-Odd:  a:b \r\n\r\nhelloIGNORED")
    assert (response.status, response.headers["x-odd"], response.read()) == (200, "a:b", b"hello")


def test_chunked_body_with_extensions_and_trailers() -> None:
    response = ask(
        OK + b"Transfer-Encoding: Chunked\r\n\r\n5;x=y\r\nhello\r\nA\r\n0123456789\r\n0\r\nT: v\r\n\r\n"
    )
    assert response.read() == b"hello0123456789"


def test_body_until_the_end() -> None:
    assert ask(OK + b"\r\nabc", b"def").read() == b"abcdef"


def test_interim_answers_are_skipped() -> None:
    assert ask(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n").read() == b""


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 11\r\n\r\nhello world",
        OK + b"Transfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n",
    ],
)
def test_cut_at_every_byte(answer: bytes) -> None:
    for cut in range(1, len(answer)):
        assert ask(answer[:cut], answer[cut:]).read() == b"hello world"
    assert ask(*(bytes([byte]) for byte in answer)).read() == b"hello world"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        OK + b"Content-Length: 5\r\n\r\nhell",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
)
def test_end_in_the_middle(answer: bytes) -> None:
    with pytest.raises(Disconnected):
        ask(*([answer] if answer else [])).read()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"Content-Length: -5\r\n\r\n",
        OK + b"Content-Length: 1_0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n",
    ],
)
def test_what_is_not_http(answer: bytes) -> None:
    with pytest.raises(Garbled):
        ask(answer).read()


def test_head_without_end_is_refused() -> None:
    with pytest.raises(Garbled, match="no end"):
        ask(*([OK] + [b"X: " + b"y" * 8000 + b"\r\n"] * 12))


def test_huge_body_in_pieces(tmp_path: Path) -> None:
    import threading

    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    size = 20 * 2**20

    def serve() -> None:
        with listener.accept()[0] as channel:
            channel.recv(65536)
            channel.sendall(OK + b"Content-Length: %d\r\n\r\n" % size)
            for _ in range(20):
                channel.sendall(b"x" * 2**20)

    threading.Thread(target=serve, daemon=True).start()
    assert sum(map(len, send_request(open_socket(path), "GET", "/", {}).pieces())) == size
    listener.close()


def test_socket_at_a_long_path(tmp_path: Path) -> None:
    import os

    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    here = os.open(deep, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/s.sock")
        listener.listen()
        open_socket(str(deep / "s.sock")).close()
    os.close(here)


def test_quoting() -> None:
    assert quote("web-1") == "web-1"
    assert quote("a/b ü?") == "a%2Fb%20%C3%BC%3F"
    assert with_query("/p", a=None) == "/p"
    assert with_query("/p", a=True, b="x y", c=0) == "/p?a=true&b=x%20y&c=0"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.slow
@given(JSON, st.booleans())
def test_json_is_read_as_json_reads_it(value: object, ascii: bool) -> None:
    assert read_json(json.dumps(value, ensure_ascii=ascii, indent=1).encode() + b"\n") == value


@pytest.mark.parametrize("text", [b"", b" ", b"{", b"[1,]", b"1 2", b"nul", b'"\n"', b"\xff", b"{1:2}"])
def test_bad_json_is_a_value_error(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_json(text)
    monkeypatch.setattr(jsontext, "make_scanner", None)
    with pytest.raises(ValueError, match=r".*"):
        read_json(text)


def test_events_however_they_are_cut() -> None:
    stream = b': hello\nid: 1\nevent: machine.phase\ndata: {"seq":1,\ndata: "n":2}\n\r\n\n\n'
    stream += b'data:{"seq":2}\r\n\r\ndata: {"seq'
    for size in (1, 2, 7, 1000):
        pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert list(parse_events(pieces)) == [{"seq": 1, "n": 2}, {"seq": 2}]
