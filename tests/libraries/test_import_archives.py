"""Hostile and damaged uploads: every one is refused with a line that says why."""

import asyncio
import gzip
import io
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.libraries.entries import ArchiveLimits, ArchiveRefused, read
from services.libraries.unpacking import unpack

PAGE = b"<html/>"


def make_zip(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = 8) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def make_tar(*entries: tuple[str | tarfile.TarInfo, bytes], compress: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    # Without a time in its head, so that the same entries are the same test in every process.
    return gzip.compress(buffer.getvalue(), mtime=0) if compress else buffer.getvalue()


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def unpacked(tmp_path: Path, data: bytes, **limits: int) -> dict[str, bytes]:
    path = tmp_path / "upload"
    path.write_bytes(data)
    with unpack(path, ArchiveLimits(**limits)) as files:
        return {name: read(files, name) for name in files.names()}


def refusal(tmp_path: Path, data: bytes, **limits: int) -> str:
    with pytest.raises(ArchiveRefused) as refused:
        unpacked(tmp_path, data, **limits)
    return "\n".join(refused.value.lines)


@pytest.mark.parametrize(
    "data",
    [
        make_zip(("a/", b""), ("a/x.xml", PAGE), ("ä.bin", b"\0" * 300_000)),
        make_zip(("a/x.xml", PAGE), ("ä.bin", b"\0" * 300_000), method=0),
        make_tar(("a/x.xml", PAGE), ("ä.bin", b"\0" * 300_000)),
        make_tar(("./a/x.xml", PAGE), ("ä.bin", b"\0" * 300_000), compress=False),
        make_tar(
            ("a/x.xml", PAGE),
            ("ä.bin", b"\0" * 300_000),
            ("a/._x.xml", b"junk"),
            ("__MACOSX/y", b"junk"),
        ),
    ],
    ids=["zip", "stored zip", "tar.gz", "tar", "with junk"],
)
def test_good_archives_give_their_files(tmp_path: Path, data: bytes) -> None:
    assert unpacked(tmp_path, data) == {"a/x.xml": PAGE, "ä.bin": b"\0" * 300_000}


NAMES = {
    "/etc/passwd": "absolute",
    "C:/windows/x": "absolute",
    "../x.xml": "leads out",
    "a/../../x.xml": "leads out",
    "a\\..\\x.xml": "backslash",
    "a\nb.xml": "control",
    "/".join("abcdefghijklmnopqrstuvwxyz"): "nested deeper",
    "x" * 301: "longer than",
}


@pytest.mark.parametrize(("name", "why"), NAMES.items(), ids=[*NAMES.values()])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_could_go_elsewhere(
    tmp_path: Path, make: Callable[..., bytes], name: str, why: str
) -> None:
    assert why in refusal(tmp_path, make(("ok.xml", PAGE), (name, PAGE)))


def test_every_finding_gets_its_line(tmp_path: Path) -> None:
    lines = refusal(tmp_path, make_zip(("../a", PAGE), ("/b", PAGE), ("c", PAGE))).splitlines()

    assert lines == ["../a: the path leads out of the archive (..).", "/b: the path is absolute."]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_one_name_twice(tmp_path: Path, make: Callable[..., bytes]) -> None:
    assert "twice" in refusal(tmp_path, make(("x.xml", PAGE), ("./x.xml", b"other")))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (make_zip((special("x", stat.S_IFLNK | 0o777), b"/etc/passwd")), "links"),
        (make_zip((special("x", stat.S_IFCHR | 0o777), b"")), "only files"),
        (make_zip((special("x", stat.S_IFIFO | 0o777), b"")), "only files"),
        (make_tar((member("x", tarfile.SYMTYPE, "/etc/passwd"), b"")), "links"),
        (make_tar((member("x", tarfile.LNKTYPE, "/etc/passwd"), b"")), "links"),
        (make_tar((member("x", tarfile.CHRTYPE), b"")), "only files"),
        (make_tar((member("x", tarfile.BLKTYPE), b"")), "only files"),
        (make_tar((member("x", tarfile.FIFOTYPE), b"")), "only files"),
    ],
)
def test_only_files_and_folders(tmp_path: Path, data: bytes, why: str) -> None:
    assert why in refusal(tmp_path, data)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    in_tar = make_tar(("aaa.xml", PAGE), compress=False).replace(b"aaa.xml", b"a\xff\xfe.xml")
    header = in_tar[:148] + b" " * 8 + in_tar[156:512]
    in_tar = in_tar[:148] + b"%06o\0 " % sum(header) + in_tar[156:]
    unflagged = make_zip(("aaa.xml", PAGE)).replace(b"aaa.xml", b"a\xff\xfe.xml")
    flagged = make_zip(("é.xml", PAGE)).replace("é".encode(), b"\xff\xfe")

    assert "not UTF-8" in refusal(tmp_path, in_tar)
    assert "not UTF-8" in refusal(tmp_path, unflagged)
    assert "not UTF-8" in refusal(tmp_path, flagged)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_too_many_entries(tmp_path: Path, make: Callable[..., bytes]) -> None:
    data = make(*((f"{n}.xml", b"") for n in range(50)))

    assert "more than 49 entries" in refusal(tmp_path, data, entries=49)
    assert len(unpacked(tmp_path, data, entries=50)) == 50


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_file_that_is_too_large(tmp_path: Path, make: Callable[..., bytes]) -> None:
    data = make(("big.bin", b"\0" * 2_000_000), ("ok.xml", PAGE))

    assert refusal(tmp_path, data, file_bytes=1_000_000) == "big.bin: larger than 1000000 bytes."


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bombs_are_stopped_while_they_expand(tmp_path: Path, make: Callable[..., bytes]) -> None:
    data = make(*((f"{n}.bin", b"\0" * 10_000_000) for n in range(8)))
    tracemalloc.start()

    by_ratio = refusal(tmp_path, data)
    by_size = refusal(tmp_path, data, expanded_bytes=20_000_000)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "times its size" in by_ratio
    assert "more than 20000000 bytes" in by_size
    assert peak < 8_000_000


def test_a_zip_that_lies_about_sizes_gives_no_more_than_it_says(tmp_path: Path) -> None:
    data = bytearray(make_zip(("x.bin", b"\0" * 1_000_000)))
    at = data.rfind(b"PK\x01\x02")
    struct.pack_into("<L", data, at + 24, 10)

    assert "x.bin: damaged" in refusal(tmp_path, bytes(data))


def test_a_tar_whose_header_wants_much_memory(tmp_path: Path) -> None:
    longest = member("x", tarfile.GNUTYPE_LONGNAME)
    longest.size = 60_000_000
    raw = longest.tobuf(tarfile.GNU_FORMAT) + b"a" * 60_000_000
    tracemalloc.start()

    lines = refusal(tmp_path, gzip.compress(raw, 1))

    assert tracemalloc.get_traced_memory()[1] < 100_000_000 - 30_000_000
    tracemalloc.stop()
    assert "header that is too large" in lines


def test_headers_that_never_end(tmp_path: Path) -> None:
    pax = member("x", tarfile.XHDTYPE)
    raw = pax.tobuf(tarfile.USTAR_FORMAT) * 5000

    assert "damaged" in refusal(tmp_path, gzip.compress(raw))


def test_a_zip_directory_of_millions(tmp_path: Path) -> None:
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, *[0] * 14) + b"x"
    directory = entry * 50_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), 0, 0)
    data = directory + end

    assert "neither" in refusal(tmp_path, data, entries=1000)
    local = make_zip(("x", b""))[:31]
    assert "more than 1000 entries" in refusal(tmp_path, local + data, entries=1000)


def damaged() -> dict[str, bytes]:
    good_zip = make_zip(("a.xml", PAGE * 100), ("b.xml", PAGE))
    good_tar = make_tar(("a.xml", PAGE * 1000), ("b.xml", PAGE))
    plain = make_tar(("a.xml", PAGE), ("b.xml", PAGE), compress=False)
    broken = bytearray(plain)
    broken[1024 + 20] ^= 0xFF  # the second header no longer matches its check sum
    middle = bytearray(good_zip)
    middle[40] ^= 0xFF
    shifted = bytearray(good_zip)
    at = shifted.rfind(b"PK\x05\x06") + 16
    struct.pack_into("<L", shifted, at, struct.unpack_from("<L", shifted, at)[0] + 100)
    return {
        "shifted zip": bytes(shifted),
        "text": b"hello",
        "empty": b"",
        "cut zip": good_zip[:-30],
        "changed zip": bytes(middle),
        "cut gzip": good_tar[:-20],
        "gzip of text": gzip.compress(b"hello" * 1000),
        "gzip garbage": b"\x1f\x8b" + b"x" * 100,
        "cut tar": plain[:700],
        "second header broken": bytes(broken),
        "encrypted zip": good_zip.replace(
            b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
        ),
        "zlib stream": zlib.compress(PAGE),
        "rar": b"Rar!\x1a\x07\x00" + b"\0" * 400,
    }


@pytest.mark.parametrize("data", damaged().values(), ids=damaged().keys())
def test_damaged_uploads(tmp_path: Path, data: bytes) -> None:
    assert refusal(tmp_path, data)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression(tmp_path: Path, method: int) -> None:
    assert "unusual" in refusal(tmp_path, make_zip(("a.xml", PAGE), method=method))


def test_what_is_asked_often_may_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(make_tar(("x.bin", b"\0" * 10_000_000)))
    started = time.monotonic()

    def stop() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        unpack(path, check=stop)
    assert time.monotonic() - started < 5


def contents() -> list[tuple[str, bytes]]:
    return [("a/x.xml", PAGE * 30), ("é.bin", b"\0" * 3000), ("y/z.txt", b"abc")]


ORIGINALS = [
    make_zip(*contents()),
    make_zip(*contents(), method=0),
    make_tar(*contents()),
    make_tar(*contents(), compress=False),
]


@settings(max_examples=300, deadline=None)
@given(
    original=st.sampled_from(ORIGINALS),
    changes=st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=4))),
    cut=st.integers(0, 20_000),
)
def test_no_damage_does_more_than_refuse(
    tmp_path_factory: pytest.TempPathFactory,
    original: bytes,
    changes: list[tuple[int, bytes]],
    cut: int,
) -> None:
    data = bytearray(original)
    for position, value in changes:
        at = position % len(data)
        data[at : at + len(value)] = value
    if cut < len(data) // 2:
        del data[-cut:]
    path = tmp_path_factory.mktemp("fuzz") / "upload"
    path.write_bytes(data)

    try:
        with unpack(path) as files:
            assert sum(files.size(name) for name in files.names()) < 20_000
    except ArchiveRefused as refused:
        assert refused.lines
