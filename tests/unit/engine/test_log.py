"""The serial log: its tail, following it, and keeping it small."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from insula.engine.console import follow_log, rotate_log
from insula.kit.paths import SERIAL_LOG


@pytest.mark.parametrize(
    ("text", "tail", "shown"),
    [
        (b"a\nb\nc\n", None, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 0, b""),
        (b"", 3, b""),
        (b"x" * 100_000 + b"\n" + b"y" * 100_000 + b"\n", 1, b"y" * 100_000 + b"\n"),
    ],
)
async def test_the_tail(tmp_path: Path, text: bytes, tail: int | None, shown: bytes) -> None:
    (tmp_path / SERIAL_LOG).write_bytes(text)
    assert b"".join([data async for data in follow_log(tmp_path, follow=False, tail=tail)]) == shown


async def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert [data async for data in follow_log(tmp_path)] == []


async def test_following_through_growth_and_rotation(tmp_path: Path) -> None:
    path = tmp_path / SERIAL_LOG
    log = follow_log(tmp_path, follow=True)
    first = asyncio.ensure_future(anext(log))
    await asyncio.sleep(0)
    with path.open("ab", buffering=0) as guest:  # QEMU opens it for appending too
        guest.write(b"one\n")
        async with asyncio.timeout(5):
            assert await first == b"one\n"
            second = asyncio.ensure_future(anext(log))
            await asyncio.sleep(0)
            guest.write(b"two\n")
            assert await second == b"two\n"
            third = asyncio.ensure_future(anext(log))
            await asyncio.sleep(0)
            assert rotate_log(tmp_path, limit=4)
            guest.write(b"3\n")
            assert await third == b"3\n"
    await log.aclose()  # type: ignore[attr-defined]
    assert path.read_bytes() == b"3\n"
    assert (tmp_path / f"{SERIAL_LOG}.1").read_bytes() == b"two\n"


def test_a_small_log_is_left_alone(tmp_path: Path) -> None:
    assert not rotate_log(tmp_path)
    (tmp_path / SERIAL_LOG).write_bytes(b"1234")
    assert not rotate_log(tmp_path, limit=4)
