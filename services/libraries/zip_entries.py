"""The entries of a zip file one by one: the list of them is never in memory as a whole.

`zipfile` reads that list at once, more than half a kilobyte for each entry; a large library has
several hundred thousand. Format: PKWARE APPNOTE 4.3, with its 64-bit extension.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO
from zipfile import BadZipFile

STORED, DEFLATED = 0, 8
UTF8, ENCRYPTED = 0x800, 0x1
PIECE = 256 * 1024
_WINDOW = 1024 * 1024
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """What the directory says of one entry; `at` is where it begins in the file."""

    name: bytes
    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    at: int
    mode: int

    @property
    def text(self) -> str:
        """Without the UTF-8 flag many tools mean UTF-8 too; what is not becomes surrogates."""
        return self.name.decode(errors="strict" if self.flags & UTF8 else "surrogateescape")


@dataclass(frozen=True, slots=True)
class ZipDirectory:
    """Where the list of entries is; `shift` bytes stand before the archive."""

    file: IO[bytes]
    start: int
    size: int
    shift: int

    @classmethod
    def find(cls, file: IO[bytes]) -> "ZipDirectory":
        """Raises BadZipFile when there is none."""
        length = file.seek(0, os.SEEK_END)
        at = _find_end(file, length)
        _, _, _, _, _, size, offset, _ = _END.unpack(_read(file, at, _END.size))
        end = at
        locator = at - _END64_LOCATOR.size
        if locator >= _END64.size and _read(file, locator, 4) == b"PK\x06\x07":
            end = locator - _END64.size
            mark, *_, size, offset = _END64.unpack(_read(file, end, _END64.size))
            if mark != b"PK\x06\x06":
                raise BadZipFile("its 64-bit end record is not where it should be")
        start = end - size
        if start < 0 or offset > start:
            raise BadZipFile("the list of its entries is not where it should be")
        return cls(file, start, size, start - offset)

    def entries(self) -> Iterator[ZipEntry]:
        """In the order of the list. Raises BadZipFile."""
        window, position, end = b"", self.start, self.start + self.size
        at = 0
        while position + at < end:
            if len(window) - at < _ENTRY.size + 3 * 0xFFFF:
                position += at
                window, at = _read_up_to(self.file, position, min(_WINDOW, end - position)), 0
            entry, at = self._entry(window, at)
            yield entry

    def _entry(self, window: bytes, at: int) -> tuple[ZipEntry, int]:
        if len(window) - at < _ENTRY.size:
            raise BadZipFile("the list of its entries is cut off")
        (
            mark, _, _, flags, method, _, _, checksum, packed, size, name_length, extra_length,
            comment_length, _, _, attributes, offset,
        ) = _ENTRY.unpack_from(window, at)  # fmt: skip
        name_at = at + _ENTRY.size
        extra_at = name_at + name_length
        after = extra_at + extra_length + comment_length
        if mark != b"PK\x01\x02" or after > len(window):
            raise BadZipFile("the list of its entries cannot be read")
        size, packed, offset = _long(
            window[extra_at : extra_at + extra_length], size, packed, offset
        )
        name = window[name_at:extra_at]
        entry = ZipEntry(
            name, flags, method, checksum, packed, size, offset + self.shift, attributes >> 16
        )
        return entry, after

    def pieces(self, entry: ZipEntry) -> Iterator[bytes]:
        """What an entry holds, decompressed piece by piece. Raises BadZipFile, zlib.error."""
        header = _read(self.file, entry.at, _LOCAL.size)
        mark, *_, name_length, extra_length = _LOCAL.unpack(header)
        if mark != b"PK\x03\x04":
            raise BadZipFile("it is not where the list says")
        name_at = entry.at + _LOCAL.size
        if _read(self.file, name_at, name_length) != entry.name:
            raise BadZipFile("the list has another name for it")
        packed = self._packed(name_at + name_length + extra_length, entry.packed)
        unpacked = packed if entry.method == STORED else _inflated(packed)
        checksum = size = 0
        for piece in unpacked:
            checksum = zlib.crc32(piece, checksum)
            size += len(piece)
            yield piece
        if (size, checksum) != (entry.size, entry.checksum):
            raise BadZipFile("its size or check sum is wrong")

    def _packed(self, start: int, length: int) -> Iterator[bytes]:
        for at in range(start, start + length, PIECE):
            yield _read(self.file, at, min(PIECE, start + length - at))


def _inflated(packed: Iterator[bytes]) -> Iterator[bytes]:
    """At most PIECE bytes at a time, however much a few packed bytes stand for."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    for data in packed:
        while data or unpacker.unconsumed_tail:
            piece = unpacker.decompress(data or unpacker.unconsumed_tail, PIECE)
            data = b""
            if piece:
                yield piece
            elif unpacker.eof or not unpacker.unconsumed_tail:
                break
        if unpacker.eof:
            return
    rest = unpacker.flush()
    if rest:
        yield rest
    if not unpacker.eof:
        raise BadZipFile("it ends too early")


def _long(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The 64-bit numbers of the extra field stand for those that are full."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{min(length, 24) // 8}Q", extra, at + 4))
            try:
                size, packed, offset = (
                    next(numbers) if short == _FULL else short for short in (size, packed, offset)
                )
            except (StopIteration, RuntimeError):
                raise BadZipFile("a 64-bit number is missing in the list of its entries") from None
            return size, packed, offset
        at += 4 + length
    return size, packed, offset


def _find_end(file: IO[bytes], length: int) -> int:
    """Where the end record is: the last bytes, or before a comment of up to 65,535 bytes."""
    start = max(0, length - _END.size - 0xFFFF)
    tail = _read_up_to(file, start, length - start)
    at = len(tail) - _END.size
    if at >= 0 and tail.startswith(b"PK\x05\x06", at) and tail.endswith(b"\0\0"):
        return start + at
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise BadZipFile("it has no list of its entries")
    return start + at


def _read(file: IO[bytes], at: int, length: int) -> bytes:
    data = _read_up_to(file, at, length)
    if len(data) < length:
        raise BadZipFile("it is cut off")
    return data


def _read_up_to(file: IO[bytes], at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)
