"""Headers: what is in order is read, what is hostile is refused for its reason, and nothing else ever
happens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.kit.errors import InsulaError
from insula.storage.errors import ImageDamaged, ImageRefused, UnknownFormat
from insula.storage.formats import FORMATS, Header, inspect
from insula.storage.formats.header import MOST_PIECE, MOST_READ, MOST_VIRTUAL
from insula.storage.formats.vhdx import crc32c
from tests.support.hostile import GOOD, MIB, Hostile, corpus, qcow2, vhd_footer, vmdk_text

HOSTILE = list(corpus())


HeaderOf = Callable[[bytes], Header]


@pytest.fixture
def header_of(tmp_path: Path) -> Iterator[HeaderOf]:
    """The header of a file with these bytes, whose name says nothing."""
    with ExitStack() as stack:

        def make(data: bytes) -> Header:
            path = tmp_path / "gift.jpeg"
            path.write_bytes(data)
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            return Header(descriptor, path.name)

        yield make


@pytest.mark.parametrize("format", GOOD)
def test_a_header_in_order_is_read(header_of: HeaderOf, format: str) -> None:
    facts = inspect(header_of(GOOD[format]))
    assert facts.format == format
    assert facts.virtual_size == MIB
    assert inspect(header_of(GOOD[format]), format) == facts


@pytest.mark.parametrize("image", HOSTILE, ids=[image.name for image in HOSTILE])
def test_a_hostile_header_is_refused_for_its_reason(header_of: HeaderOf, image: Hostile) -> None:
    with pytest.raises(InsulaError) as refused:
        inspect(header_of(image.data), image.format)
    assert refused.value.code == image.code
    assert image.says in refused.value.message
    assert refused.value.message.isprintable()


@pytest.mark.parametrize("standard", [b"CD001", b"BEA01"])
def test_a_cd_that_would_boot_as_a_disk_is_a_cd(header_of: HeaderOf, standard: bytes) -> None:
    hybrid = bytearray(GOOD["raw"])
    hybrid[0x8001:0x8006] = standard
    assert inspect(header_of(bytes(hybrid))).format == "iso"
    assert inspect(header_of(bytes(hybrid)), "raw").format == "raw"


def test_a_fixed_vhd_is_found_by_its_end(header_of: HeaderOf) -> None:
    facts = inspect(header_of(bytes(MIB) + vhd_footer(kind=2, table=2**64 - 1)))
    assert (facts.format, facts.virtual_size) == ("vhd", MIB)


def test_a_disk_named_raw_is_raw_whatever_its_guest_has_written(header_of: HeaderOf) -> None:
    facts = inspect(header_of(qcow2(backing=b"/etc/shadow")), "raw")
    assert (facts.driver, facts.extents) == ("raw", ())


def test_the_largest_disk_is_let_through(header_of: HeaderOf) -> None:
    facts = inspect(header_of(vmdk_text(f"RW {MOST_VIRTUAL // 512} ZERO")))
    assert facts.virtual_size == MOST_VIRTUAL


def test_extents_are_plain_names(header_of: HeaderOf) -> None:
    text = vmdk_text(
        'RW 8 FLAT "disk-f001.vmdk" 4', 'RW 8 SPARSE "Größe 2.vmdk"', kind="twoGbMaxExtentSparse"
    )
    first, second = inspect(header_of(text)).extents
    assert (first.file, first.sectors, first.offset, first.sparse) == ("disk-f001.vmdk", 8, 4, False)
    assert (second.file, second.sparse) == ("Größe 2.vmdk", True)


def test_pieces_are_bounded(header_of: HeaderOf) -> None:
    header = header_of(bytes(2 * MIB))
    with pytest.raises(ImageDamaged):
        header.at(0, MOST_PIECE + 1)
    with pytest.raises(ImageDamaged):
        header.at(2 * MIB - 4, 5)
    with pytest.raises(ImageDamaged):
        header.at(-1, 1)
    for _ in range(MOST_READ // MOST_PIECE):
        header.at(0, MOST_PIECE)
    with pytest.raises(ImageDamaged):
        header.at(0, 1)


def test_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value


class Watched(Header):
    """Notes the reads that go beyond the file."""

    def at(self, offset: int, size: int) -> bytes:
        data = super().at(offset, size)
        assert 0 <= offset <= offset + size <= self.size
        assert len(data) == size
        return data


@pytest.mark.slow
@pytest.mark.parametrize("format", [name for name in GOOD if name != "raw"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_the_bytes_nothing_but_our_errors(format: str, data: st.DataObject) -> None:
    """Mutated headers: bytes overwritten in the first KiBs or the last, or the file cut short."""
    image = bytearray(GOOD[format])
    near = st.one_of(
        st.integers(0, min(1024, len(image) - 8)),
        st.integers(max(0, len(image) - 1024), len(image) - 8),
        st.integers(0, len(image) - 8),
    )
    word = st.one_of(
        st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\x80" + bytes(7)])
    )
    for at, value in data.draw(st.lists(st.tuples(near, word), min_size=1, max_size=6)):
        image[at : at + len(value)] = value
    length = data.draw(st.one_of(st.just(len(image)), st.integers(0, len(image))))
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, bytes(image[:length]))
        for named in (None, format):
            try:
                facts = inspect(Watched(descriptor, "mutant"), named)
            except (ImageDamaged, ImageRefused, UnknownFormat):
                continue
            assert 0 < facts.virtual_size <= MOST_VIRTUAL
            assert facts.format in FORMATS
            assert all("/" not in (extent.file or "") for extent in facts.extents)
    finally:
        os.close(descriptor)
