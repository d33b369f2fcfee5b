"""What comes out of an uploaded archive: which names are accepted, how much, and where it goes."""

import errno
import os
import re
import sqlite3
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, Self

from shared.problems import BadInput

CHUNK = 256 * 1024
MOST_LINES = 100
JUNK = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$)")
DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError,
    struct.error, OverflowError, RecursionError, NotImplementedError, RuntimeError, KeyError,
)  # fmt: skip
OUR_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE,
}  # fmt: skip

Check = Callable[[], None]
Junk = Callable[[str], bool]


class ArchiveRefused(BadInput):
    """An archive that is damaged or hostile. `lines` says all that is wrong with it."""

    type, title = "archive-refused", "The archive cannot be accepted"

    def __init__(self, lines: list[str] | str) -> None:
        self.lines = [lines] if isinstance(lines, str) else lines
        more = f" (and {len(self.lines) - 1} more)" if len(self.lines) > 1 else ""
        super().__init__(f"{self.title}: {self.lines[0]}{more}", lines=self.lines)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How large an unpacked upload may become."""

    entries: int = 1_000_000
    file_bytes: int = 50_000_000
    expanded_bytes: int = 8 * 1024**3
    ratio: int = 100
    ratio_free_bytes: int = 32 * 1024**2
    depth: int = 20
    name_bytes: int = 1000
    segment_bytes: int = 300
    toml_bytes: int = 10 * 1024 * 1024


LIMITS = ArchiveLimits()


class Tree(Protocol):
    """Files by their path, wherever they are kept. Not for use by several threads at once."""

    def names(self) -> Iterable[str]: ...
    def size(self, name: str) -> int: ...
    def chunks(self, name: str) -> Iterator[bytes]: ...


def read(tree: Tree, name: str) -> bytes:
    return b"".join(tree.chunks(name))


class Unpacked:
    """The files of an archive, in one temporary file that is gone when this is closed.

    Where each is stands in a database on disk without a name: memory does not grow with them.
    """

    def __init__(self) -> None:
        self._spool: IO[bytes] = tempfile.TemporaryFile(prefix="lyceum-")  # noqa: SIM115
        self._places = scratch_database()
        self._places.execute(_PLACES)
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._spool.close()
        self._places.close()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._place(name) is not None

    def names(self) -> Iterator[str]:
        yield from (name for (name,) in self._places.execute("select name from place order by 1"))

    def under(self, folder: str) -> Iterator[str]:
        """Names that begin with `folder`, which ends in a slash."""
        after = folder[:-1] + chr(ord("/") + 1)
        query = "select name from place where name > ? and name < ? order by 1"
        yield from (name for (name,) in self._places.execute(query, (folder, after)))

    def size(self, name: str) -> int:
        return self._known(name)[1]

    def chunks(self, name: str) -> Iterator[bytes]:
        start, size = self._known(name)
        for position in range(start, start + size, CHUNK):
            length = min(CHUNK, start + size - position)
            yield os.pread(self._spool.fileno(), length, position)

    def add(self, name: str, pieces: Iterator[bytes]) -> None:
        start = self._end
        for piece in pieces:
            self._spool.write(piece)
            self._end += len(piece)
        place = (name, start, self._end - start)
        self._places.execute("insert into place values (?, ?, ?)", place)

    def flush(self) -> None:
        self._spool.flush()

    def _place(self, name: str) -> tuple[int, int] | None:
        query = "select start, size from place where name = ?"
        found: tuple[int, int] | None = self._places.execute(query, (name,)).fetchone()
        return found

    def _known(self, name: str) -> tuple[int, int]:
        found = self._place(name)
        if found is None:
            raise KeyError(name)
        return found


_PLACES = "create table place (name text primary key, start integer, size integer) without rowid"


def scratch_database() -> sqlite3.Connection:
    """A database in a file without a name, for one user at a time; closing it removes it."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for setting in ("cache_size = -4096", "journal_mode = off", "synchronous = off"):
        database.execute(f"pragma {setting}")
    database.execute("begin")
    return database


class Folder:
    """The files below a local folder, under the same protocol. Links are not followed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sizes = {
            path.relative_to(root).as_posix(): path.stat().st_size
            for path in root.rglob("*")
            if not path.is_symlink() and path.is_file() and not is_junk(path.name)
        }

    def names(self) -> list[str]:
        return sorted(self._sizes)

    def size(self, name: str) -> int:
        return self._sizes[name]

    def chunks(self, name: str) -> Iterator[bytes]:
        with (self._root / name).open("rb") as file:
            while piece := file.read(CHUNK):
                yield piece


@dataclass
class Findings:
    """What is wrong so far, and how much has come out so far."""

    limits: ArchiveLimits
    source_bytes: int
    check: Check
    junk: Junk
    lines: list[str] = field(default_factory=list)
    entries: int = 0
    expanded: int = 0

    def line(self, text: str) -> None:
        self.lines.append(text)
        if len(self.lines) >= MOST_LINES:
            self.stop("More is wrong; reading stopped here.")

    def stop(self, text: str) -> None:
        raise ArchiveRefused([*self.lines, text])

    def conclude(self) -> None:
        if self.lines:
            raise ArchiveRefused(self.lines)

    def count_entry(self) -> None:
        self.check()
        self.entries += 1
        if self.entries > self.limits.entries:
            self.stop(f"The archive has more than {self.limits.entries} entries.")

    def count(self, size: int) -> None:
        """More bytes have come out of the decompressor."""
        self.expanded += size
        if self.expanded > self.limits.expanded_bytes:
            self.stop(f"The archive expands to more than {self.limits.expanded_bytes} bytes.")
        free = self.expanded <= self.limits.ratio_free_bytes
        if not free and self.expanded > self.source_bytes * self.limits.ratio:
            self.stop(f"The archive expands to more than {self.limits.ratio} times its size.")

    def accept(self, raw: str, *, folder: bool, known: Container[str]) -> str | None:
        """The clean name of an entry to keep, or None; what is wrong becomes a line."""
        name, wrong = clean_name(raw, self.limits)
        if wrong:
            self.line(f"{shown(raw)}: {wrong}")
            return None
        if folder or not name or self.junk(name):
            return None
        if name in known:
            self.line(f"{shown(raw)}: the archive has this name twice.")
            return None
        return name

    def counted(self, name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """A file's bytes. One that is too large becomes a line, and is read no further."""
        size = 0
        for piece in pieces:
            self.check()
            size += len(piece)
            if size > self.limits.file_bytes:
                self.line(f"{shown(name)}: larger than {self.limits.file_bytes} bytes.")
                return
            yield piece


def clean_name(raw: str, limits: ArchiveLimits = LIMITS) -> tuple[str, str]:
    """A relative path without surprises, and what is wrong with it (empty when nothing)."""
    wrong = ""
    segments = [part for part in raw.split("/") if part not in ("", ".")]
    if any("\ud800" <= character <= "\udfff" for character in raw):
        return "", "the name is not UTF-8."
    if re.search(r"[\x00-\x1f\x7f]", raw):
        wrong = "the name has control characters."
    elif "\\" in raw:
        wrong = "the name has a backslash."
    elif raw.startswith("/") or re.match(r"[A-Za-z]:", raw):
        wrong = "the path is absolute."
    elif ".." in segments:
        wrong = "the path leads out of the archive (..)."
    elif len(segments) > limits.depth:
        wrong = f"nested deeper than {limits.depth} folders."
    elif len(raw.encode()) > limits.name_bytes:
        wrong = f"the name is longer than {limits.name_bytes} bytes."
    elif any(len(part.encode()) > limits.segment_bytes for part in segments):
        wrong = f"a part of the name is longer than {limits.segment_bytes} bytes."
    return "/".join(segments), wrong


def ours(error: BaseException) -> bool:
    """Whether it is our own disk that failed, not the archive."""
    return isinstance(error, OSError) and error.errno in OUR_DISK


def shown(name: str) -> str:
    """A name fit for a report: printable and not too long."""
    text = name.encode(errors="backslashreplace").decode()
    text = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    return text if len(text) <= 200 else text[:200] + "…"


def is_junk(name: str) -> bool:
    """Whether an operating system put the file there, not the person."""
    return JUNK.search(name) is not None
