"""Reading an untrusted zip archive."""

import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from typing import IO

from services.libraries.entries import (
    CHUNK,
    DAMAGED,
    ArchiveRefused,
    Findings,
    Unpacked,
    ours,
    shown,
)  # fmt: skip

SHORTEST_DIRECTORY_ENTRY = 46


def copy_all(file: IO[bytes], unpacked: Unpacked, findings: Findings) -> None:
    _check_directory(file, findings)
    try:
        archive = zipfile.ZipFile(file)
    except UnicodeDecodeError:
        raise ArchiveRefused("The archive has names that are not UTF-8.") from None
    except DAMAGED as error:
        raise ArchiveRefused(f"The zip archive is damaged: {error}") from error
    with archive:
        for info in archive.filelist:
            findings.count_entry()
            name = _acceptable_zip_entry(info, findings)
            if name is not None:
                _copy_zip_entry(archive, info, name, unpacked, findings)


def _acceptable_zip_entry(info: zipfile.ZipInfo, findings: Findings) -> str | None:
    raw = _zip_name(info)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        findings.line(f"{shown(raw)}: links are not allowed.")
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        findings.line(f"{shown(raw)}: only files and folders are allowed.")
    elif info.flag_bits & 0x1:
        findings.line(f"{shown(raw)}: encrypted.")
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        findings.line(f"{shown(raw)}: compressed with an unusual method; deflate is understood.")
    else:
        return findings.accept(raw, folder=raw.endswith("/"))
    return None


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name as it stands in the archive; without the UTF-8 flag many tools mean UTF-8."""
    name = info.orig_filename
    if info.flag_bits & 0x800:
        return name
    return name.encode("cp437").decode("utf-8", "surrogateescape")


def _copy_zip_entry(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    name: str,
    unpacked: Unpacked,
    findings: Findings,
) -> None:
    def pieces() -> Iterator[bytes]:
        with archive.open(info) as entry:
            while piece := entry.read(CHUNK):
                findings.count(len(piece))
                yield piece

    try:
        unpacked.add(name, findings.counted(name, pieces()))
    except ArchiveRefused:
        raise
    except DAMAGED as error:
        if ours(error):
            raise
        findings.line(f"{shown(name)}: damaged ({error}).")


def _check_directory(file: IO[bytes], findings: Findings) -> None:
    """Bound the list of entries before zipfile reads it whole into memory."""
    size = _directory_size(file)
    if size is None:
        raise ArchiveRefused("The zip archive is damaged: it has no list of its entries.")
    limits = findings.limits
    if size > limits.entries * (SHORTEST_DIRECTORY_ENTRY + limits.segment_bytes):
        raise ArchiveRefused(f"The archive has more than {limits.entries} entries.")
    file.seek(0)


def _directory_size(file: IO[bytes]) -> int | None:
    """Bytes of the central directory, found the way zipfile finds it."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - 22 - 0xFFFF)
    file.seek(start)
    tail = file.read()
    at = len(tail) - 22
    if at < 0:
        return None
    if not (tail.startswith(b"PK\x05\x06", at) and tail.endswith(b"\0\0")):
        at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        return None
    size: int = struct.unpack_from("<L", tail, at + 12)[0]
    locator = start + at - 20
    if locator >= 56:
        file.seek(locator)
        if file.read(4) == b"PK\x06\x07":
            file.seek(locator - 56)
            record = file.read(56)
            if record.startswith(b"PK\x06\x06"):
                size = struct.unpack_from("<Q", record, 40)[0]
    return size
