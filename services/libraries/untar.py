"""Reading an untrusted tar archive, plain or under gzip."""

import contextlib
import gzip
import tarfile
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

LARGEST_HEADER = 1024 * 1024


class _GuardedTar:
    """What tarfile reads from: counts every byte that comes out, refuses greedy headers.

    Only forward, so that a compressed stream is decompressed once.
    """

    def __init__(self, stream: IO[bytes], findings: Findings) -> None:
        self._stream, self._findings = stream, findings
        self._position = 0
        self._header_bytes: int | None = None
        self.last_block = b""

    def read(self, size: int = -1) -> bytes:
        if self._header_bytes is not None:
            self._header_bytes += max(size, 0)
            if size < 0 or self._header_bytes > LARGEST_HEADER:
                self._findings.stop("The tar archive has a header that is too large.")
        data = self._take(size)
        self.last_block = data
        return data

    def _take(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._position += len(data)
        self._findings.count(len(data))
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position < self._position:
            raise tarfile.ReadError("the archive refers back into itself")
        while self._position < position:
            self._findings.check()
            if not self._take(min(CHUNK, position - self._position)):
                raise tarfile.ReadError("unexpected end of data")
        return self._position

    @contextlib.contextmanager
    def header(self) -> Iterator[None]:
        self._header_bytes = 0
        yield
        self._header_bytes = None

    def drain(self) -> None:
        """Read on to the end, where gzip keeps its check sum."""
        while self._take(CHUNK):
            self._findings.check()


def copy_all(file: IO[bytes], compressed: bool, unpacked: Unpacked, findings: Findings) -> None:
    stream: IO[bytes] = gzip.GzipFile(fileobj=file) if compressed else file  # type: ignore[assignment]
    guarded = _GuardedTar(stream, findings)
    try:
        with guarded.header():
            archive = tarfile.TarFile(fileobj=guarded, encoding="utf-8")  # type: ignore[arg-type]
        while True:
            with guarded.header():
                member = archive.next()
            if member is None:
                break
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has met
            _copy_tar_member(archive, member, unpacked, findings)
        if guarded.last_block.strip(b"\0"):
            raise tarfile.ReadError("a header in it cannot be read")
        guarded.drain()
    except ArchiveRefused:
        raise
    except DAMAGED as error:
        if ours(error):
            raise
        findings.stop(f"The tar archive is damaged: {error}")


def _copy_tar_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, unpacked: Unpacked, findings: Findings
) -> None:
    findings.count_entry()
    if member.issym() or member.islnk():
        findings.line(f"{shown(member.name)}: links are not allowed.")
        return
    if member.issparse() or not (member.isreg() or member.isdir()):
        findings.line(f"{shown(member.name)}: only files and folders are allowed.")
        return
    name = findings.accept(member.name, folder=member.isdir(), known=unpacked)
    if name is None:
        return
    entry = archive.extractfile(member)
    assert entry is not None
    with entry:
        unpacked.add(name, findings.counted(name, iter(lambda: entry.read(CHUNK), b"")))
