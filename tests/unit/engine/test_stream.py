"""A monitor's stream without zero pages: what is left out, and that nothing else ever is."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.engine.stream import ZeroFilter

PAGE = 4096
NUMBER = (2).to_bytes(4)
END = (0x10).to_bytes(8) + b"\x7e" + NUMBER
HEAD = b"QEVM" + (3).to_bytes(4) + b"\x07" + (13).to_bytes(4) + b"pc-i440fx-7.2"
DEVICES = b"\x04" + (7).to_bytes(4) + b"\x05timer" + os.urandom(5000)
BYTES = os.urandom(PAGE)


def first(blocks: dict[str, int], number: bytes = NUMBER) -> bytes:
    named = b"".join(bytes([len(n)]) + n.encode() + size.to_bytes(8) for n, size in blocks.items())
    total = (sum(blocks.values()) | 4).to_bytes(8)
    return b"\x01" + number + b"\x03ram" + bytes(4) + (4).to_bytes(4) + total + named + END


def page(at: int, content: bytes | None, block: str = "") -> bytes:
    """A record; content None: of zeros."""
    kind = (0x02 if content is None else 0x08) | (0 if block else 0x20)
    name = bytes([len(block)]) + block.encode() if block else b""
    return (at * PAGE | kind).to_bytes(8) + name + (b"\0" if content is None else content)


def part(*records: bytes, kind: bytes = b"\x02") -> bytes:
    return kind + NUMBER + b"".join(records) + END


def passed(stream: bytes, *sizes: int) -> tuple[bytes, bool]:
    """What comes out when it comes in pieces of these sizes, in turn; whether all zeros were left out."""
    zeros, out, at = ZeroFilter("ram"), b"", 0
    while at < len(stream):
        for size in sizes or (len(stream),):
            out += b"".join(zeros.feed(stream[at : at + size]))
            at += size
    out += zeros.end()
    return out, zeros.thorough


BLOCKS = {"ram": 2**29, "/rom@etc/acpi/tables": 0x20000, "pc.bios": 0x40000}
START = HEAD + first(BLOCKS)


@pytest.mark.parametrize("sizes", [(), (1,), (7, 4096), (100000,)])
def test_zero_pages_of_the_memory_are_left_out_and_all_else_is_there(sizes: tuple[int, ...]) -> None:
    named, full, other = page(0, None, "ram"), page(3, BYTES), page(0, None, "pc.bios")
    rest = [page(1, None), page(2, BYTES), page(0, BYTES, "/rom@etc/acpi/tables"), page(1, None)]
    last = page(9 * 2**12, bytes(PAGE - 1) + b"\1")
    stream = START + part(named, page(1, None), page(2, None), full, page(4, None), other, *rest)
    stream += part(page(0, BYTES, "ram"), *(page(n, None) for n in range(5, 9)), last, kind=b"\x03") + DEVICES
    wanted = (
        START + part(named, full, other, *rest) + part(page(0, BYTES, "ram"), last, kind=b"\x03") + DEVICES
    )
    assert passed(stream, *sizes) == (wanted, True)


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", "", "", "ram", "pc.bios"])), max_size=30),
    st.lists(st.integers(1, 9000), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_pieces(pages: list[tuple[bool, str]], sizes: list[int]) -> None:
    stream, wanted, block = part(), part(), ""
    for at, (is_zero, name) in enumerate([(False, "ram"), *pages]):
        block = name or block
        record = page(at, None if is_zero else BYTES, name)
        stream += part(record)
        wanted += part(b"" if is_zero and not name and block == "ram" else record)
    assert passed(START + stream + DEVICES, *sizes) == (START + wanted + DEVICES, True)


@pytest.mark.parametrize(
    "strange",
    [
        (0x1000 | 0x120).to_bytes(8) + b"compressed",  # a kind of record that is not known
        (0x30).to_bytes(8),  # an end that goes on
        (0x10).to_bytes(8) + b"\x7e" + (3).to_bytes(4),  # another section's end
        (0x10).to_bytes(8) + b"no footer",
    ],
)
def test_after_what_is_not_known_all_is_passed_on(strange: bytes) -> None:
    before = START + b"\x02" + NUMBER + page(0, BYTES, "ram")
    after = strange + b"".join(page(n, None) for n in range(20)) + END + DEVICES
    for sizes in ((), (1,), (4096, 13)):
        assert passed(before + page(1, None) + after, *sizes) == (before + after, False)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"QEVM",
        HEAD,
        os.urandom(300_000),
        HEAD + bytes(100_000),
        HEAD + first(BLOCKS)[:60] + b"\xff" * 200_000,  # blocks without end
        HEAD + b"\x01" + NUMBER + b"\x03ram" + bytes(4) + (5).to_bytes(4) + bytes(100_000),  # another version
        START + b"\x02" + (9).to_bytes(4) + page(0, None, "ram") + page(1, None) + bytes(10_000),
        START + part(page(0, BYTES, "ram")),  # cut short
    ],
)
def test_what_is_no_such_stream_is_passed_on_as_it_is(stream: bytes) -> None:
    for sizes in ((), (1000,), (2**16, 1)):
        assert passed(stream, *sizes) == (stream, False)


def test_zeros_in_memory_that_is_called_otherwise_stay() -> None:
    stream = HEAD + first({"pc.ram": 2**20}) + part(page(0, None, "pc.ram"), page(1, None)) + DEVICES
    assert passed(stream) == (stream, True)


def test_what_has_come_is_passed_on_without_waiting() -> None:
    """A monitor that waits for the rest of what it could have had already would wait for its sender."""
    zeros = ZeroFilter("ram")
    stream = START + part(page(0, BYTES, "ram"), *(page(n, BYTES) for n in range(1, 300)))
    sent = 0
    for start, end in pairwise(range(0, len(stream) + 5000, 5000)):
        sent += sum(map(len, zeros.feed(stream[start:end])))
        assert min(end, len(stream)) - sent < PAGE + 9
