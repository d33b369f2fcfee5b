"""Entries of zip files, compared with what Python's own reader finds in them."""

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.libraries.archive_reading import read_archive
from services.libraries.zip_entries import PIECE, ZipDirectory
from tests.libraries.large_archives import many

PAGE = b"<html>Some text. </html>" * 20


def content_of(data: bytes) -> dict[str, bytes]:
    directory = ZipDirectory.find(io.BytesIO(data))
    return {entry.text: b"".join(directory.pieces(entry)) for entry in directory.entries()}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class Pipe(io.BytesIO):
    """Makes the writer put sizes after the data, as one does that cannot go back."""

    def seekable(self) -> bool:
        return False


def streamed() -> bytes:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.xml", PAGE)
    return pipe.getvalue()


def with_long_numbers() -> bytes:
    """The 64-bit extension in an entry and at the end, without four gigabytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("a.xml", "w", force_zip64=True) as f:
        f.write(PAGE)
    data = buffer.getvalue()
    at = data.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<HLL", data, at + 10)
    entry = bytearray(data[start : start + size])
    # Full numbers in the entry, the true ones in its extra field.
    packed, whole, name_length = *struct.unpack_from("<LL", entry, 20), entry[28]
    extra = struct.pack("<2H3Q", 1, 24, whole, packed, 0)
    struct.pack_into("<LL", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", entry, 30, len(extra))
    struct.pack_into("<L", entry, 42, 0xFFFFFFFF)
    directory = bytes(entry[: 46 + name_length]) + extra
    end = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(directory), 1)
    full = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:start] + directory + end + locator + full


def with_comment() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.xml", PAGE)
        archive.comment = b"PK\x05 said somebody, and more"
    return buffer.getvalue()


@pytest.mark.parametrize(
    "made",
    [
        lambda: zipped({"a.xml": PAGE, "b/": b"", "é.txt": b"", "big": PAGE * 50_000}),
        lambda: zipped({"a.xml": PAGE, "big": PAGE * 50_000}, zipfile.ZIP_STORED),
        lambda: zipped({}),
        lambda: b"#!/bin/sh\n" * 100 + zipped({"a.xml": PAGE}),
        streamed,
        with_long_numbers,
        with_comment,
    ],
)
def test_what_is_found_is_what_pythons_reader_finds(made: Callable[[], bytes]) -> None:
    data = made()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        expected = {name: archive.read(name) for name in archive.namelist()}

    assert content_of(data) == expected


@given(st.dictionaries(st.text(min_size=1, max_size=300).filter(lambda name: "\0" not in name),
                       st.binary(max_size=100), max_size=300))  # fmt: skip
def test_names_of_every_length_are_read_whole(files: dict[str, bytes]) -> None:
    sound = {name.encode(errors="ignore").decode(): data for name, data in files.items()}

    assert content_of(zipped(sound)) == sound


def test_a_list_longer_than_what_is_read_at_once() -> None:
    files = {f"{number:06}/{'x' * 200}": b"" for number in range(12_000)}

    assert content_of(zipped(files)).keys() == files.keys()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(PAGE[:8], b"<other> ", 1),  # another content, the old check sum
        lambda data: data.replace(b"a.xml", b"b.xml", 1),  # another name than in the list
        lambda data: data.replace(b"PK\x03\x04", b"PK\x03\x05", 1),
        lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x03", 1),
        lambda data: data[:-22],
        lambda data: data[100:],
    ],
)
def test_what_does_not_fit_together_is_damaged(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadZipFile):
        content_of(change(zipped({"a.xml": PAGE}, zipfile.ZIP_STORED)))


def test_a_cut_stream_is_damaged() -> None:
    data = zipped({"a.xml": PAGE * 1000})
    directory = ZipDirectory.find(io.BytesIO(data))
    (entry,) = directory.entries()
    broken = bytearray(data)
    broken[entry.at + 60 : entry.at + 80] = bytes(20)

    with pytest.raises((BadZipFile, zlib.error)):
        content_of(bytes(broken))


def test_a_few_bytes_that_stand_for_many_come_out_in_pieces() -> None:
    directory = ZipDirectory.find(io.BytesIO(zipped({"zeros": bytes(20_000_000)})))
    (entry,) = directory.entries()

    sizes = [len(piece) for piece in directory.pieces(entry)]

    assert sum(sizes) == 20_000_000
    assert max(sizes) <= PIECE


def test_memory_does_not_grow_with_the_number_of_components(tmp_path: Path) -> None:
    peaks = []
    for count in (200, 2000):
        path = tmp_path / f"{count}.zip"
        path.write_bytes(zipped(many(count)))
        tracemalloc.start()
        try:
            with read_archive(path) as contents:
                assert len(contents.entities) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    # All names and texts of the 1,800 more are about two megabytes as objects. What is left is
    # the window of the list of entries, which is a megabyte at most.
    assert peaks[1] - peaks[0] < 900_000
