"""Writing a zip archive as a stream, in memory that does not grow with the number of entries.

The standard library keeps an object for every entry until the end; here the directory, which
comes last in a zip, waits in a temporary file. Calls are plain and do the compressing, so they
belong in a thread.
"""

import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO

FILE_MODE, FOLDER_MODE = 0o100644, 0o040755
DOS_FOLDER = 0x10
STORED, DEFLATED = 0, 8
UTF8_NAME, SIZES_FOLLOW = 0x800, 0x08
MADE_BY_UNIX = 3 << 8
BASIC, ZIP64 = 20, 45
SHORT, LONG = 0xFFFF, 0xFFFFFFFF
FIRST_YEAR, LAST_YEAR = 1980, 2107
LEVEL, UNPACKED_LEVEL = 6, 0
# Readers take what expands to much more than its size for a bomb (ArchiveLimits.ratio).
DENSEST, DENSE_BYTES = 40, 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Entry:
    name: bytes
    modified: datetime
    flags: int
    method: int
    mode: int
    crc: int
    packed: int
    size: int
    offset: int


class ZipStream:
    """What to send next is what each call returns. `finish` ends the archive."""

    def __init__(self) -> None:
        self._directory: IO[bytes] = tempfile.SpooledTemporaryFile(1024 * 1024)  # noqa: SIM115
        self._offset = 0
        self._entries = 0
        self._expanded = 0

    def folder(self, name: str, modified: datetime) -> bytes:
        """An entry for a folder; the name ends with a slash."""
        return self._whole(name, b"", 0, 0, STORED, FOLDER_MODE, modified)

    def file(self, name: str, data: bytes, modified: datetime) -> bytes:
        """A file that is small enough to be compressed at once."""
        packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -15)
        packed = packer.compress(data) + packer.flush()
        method = DEFLATED
        if len(packed) >= len(data) or self.is_dense(len(data), len(packed)):
            packed, method = data, STORED
        crc = zlib.crc32(data)
        return self._whole(name, packed, crc, len(data), method, FILE_MODE, modified)

    def stream(self, name: str, modified: datetime) -> "OpenFile":
        """A file whose bytes come piece by piece; finish it before the next entry."""
        return OpenFile(self, name, modified)

    def finish(self) -> Iterator[bytes]:
        """The directory and the end mark."""
        start = self._offset
        size = self._directory.tell()
        self._directory.seek(0)
        while piece := self._directory.read(256 * 1024):
            yield piece
        yield _end(self._entries, size, start)

    def close(self) -> None:
        """Let go of the temporary file, finished or not."""
        self._directory.close()

    def _whole(
        self, name: str, packed: bytes, crc: int, size: int, method: int, mode: int,
        modified: datetime,
    ) -> bytes:  # fmt: skip
        entry = _Entry(
            name.encode(), modified, UTF8_NAME, method, mode, crc, len(packed), size, self._offset
        )
        data = _local(entry) + packed
        self.record(entry, len(data))
        return data

    def record(self, entry: _Entry, written: int) -> None:
        self._directory.write(_central(entry))
        self._offset += written
        self._expanded += entry.size
        self._entries += 1

    @property
    def offset(self) -> int:
        return self._offset

    def is_dense(self, size: int, packed: int) -> bool:
        """Whether so many more bytes as so few would make the archive look like a bomb."""
        expanded = self._expanded + size
        return expanded > DENSE_BYTES and expanded > DENSEST * (self._offset + packed)


class OpenFile:
    """One entry in the making: its sizes and check sum come after its bytes."""

    def __init__(self, archive: ZipStream, name: str, modified: datetime) -> None:
        self._archive, self._name, self._modified = archive, name.encode(), modified
        self._level = LEVEL
        self._packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -15)
        self._crc = self._size = self._packed = 0
        self._started = b""

    def start(self) -> bytes:
        self._started = _local(self._entry())
        return self._started

    def write(self, piece: bytes) -> bytes:
        self._crc = zlib.crc32(piece, self._crc)
        packed = self._change_level() + self._packer.compress(piece)
        self._size += len(piece)
        self._packed += len(packed)
        return packed

    def _change_level(self) -> bytes:
        """What is too dense goes on as it is; blocks of both kinds may follow each other."""
        dense = self._archive.is_dense(self._size, self._packed)
        level = UNPACKED_LEVEL if dense else LEVEL
        if level == self._level:
            return b""
        rest = self._packer.flush(zlib.Z_SYNC_FLUSH)
        self._level, self._packer = level, zlib.compressobj(level, zlib.DEFLATED, -15)
        return rest

    def finish(self) -> bytes:
        packed = self._packer.flush()
        self._packed += len(packed)
        descriptor = struct.pack("<4s3L", b"PK\x07\x08", self._crc, self._packed, self._size)
        written = len(self._started) + self._packed + len(descriptor)
        self._archive.record(self._entry(), written)
        return packed + descriptor

    def _entry(self) -> _Entry:
        if max(self._packed, self._size) > LONG:
            raise ValueError("A file in the archive is larger than 4 GiB.")
        return _Entry(
            self._name, self._modified, UTF8_NAME | SIZES_FOLLOW, DEFLATED, FILE_MODE,
            self._crc, self._packed, self._size, self._archive.offset,
        )  # fmt: skip


def _dos_time(moment: datetime) -> tuple[int, int]:
    """Two-second steps since 1980; what lies outside is moved to the nearest it can say."""
    moment = moment.astimezone(UTC)
    if moment.year < FIRST_YEAR:
        return 0, 1 << 5 | 1
    year = min(moment.year, LAST_YEAR)
    clock = moment.hour << 11 | moment.minute << 5 | moment.second // 2
    return clock, (year - FIRST_YEAR) << 9 | moment.month << 5 | moment.day


def _local(entry: _Entry) -> bytes:
    clock, day = _dos_time(entry.modified)
    late = entry.flags & SIZES_FOLLOW
    crc, packed, size = (0, 0, 0) if late else (entry.crc, entry.packed, entry.size)
    head = struct.pack(
        "<4s5H3L2H", b"PK\x03\x04", BASIC, entry.flags, entry.method, clock, day,
        crc, packed, size, len(entry.name), 0,
    )  # fmt: skip
    return head + entry.name


def _central(entry: _Entry) -> bytes:
    clock, day = _dos_time(entry.modified)
    extra, version, offset = b"", BASIC, entry.offset
    if offset >= LONG:
        extra, version, offset = struct.pack("<2HQ", 1, 8, offset), ZIP64, LONG
    attributes = entry.mode << 16 | (DOS_FOLDER if entry.mode == FOLDER_MODE else 0)
    head = struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", MADE_BY_UNIX | version, version, entry.flags, entry.method,
        clock, day, entry.crc, entry.packed, entry.size, len(entry.name), len(extra), 0, 0, 0,
        attributes, offset,
    )  # fmt: skip
    return head + entry.name + extra


def _end(entries: int, size: int, start: int) -> bytes:
    large = b""
    if entries >= SHORT or size >= LONG or start >= LONG:
        large = struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", 44, MADE_BY_UNIX | ZIP64, ZIP64, 0, 0,
            entries, entries, size, start,
        ) + struct.pack("<4sLQL", b"PK\x06\x07", 0, start + size, 1)  # fmt: skip
    few = min(entries, SHORT)
    return large + struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, min(size, LONG), min(start, LONG), 0
    )
