"""Reading an untrusted zip archive."""

import stat
from collections.abc import Iterator
from typing import IO

from services.libraries.entries import (
    DAMAGED,
    ArchiveRefused,
    Findings,
    Unpacked,
    ours,
    shown,
)
from services.libraries.zip_entries import DEFLATED, ENCRYPTED, STORED, ZipDirectory, ZipEntry

SHORTEST_DIRECTORY_ENTRY = 46


def copy_all(file: IO[bytes], unpacked: Unpacked, findings: Findings) -> None:
    try:
        directory = ZipDirectory.find(file)
        _check_size(directory, findings)
        for entry in directory.entries():
            findings.count_entry()
            name = _acceptable(entry, findings, unpacked)
            if name is not None:
                _copy_entry(directory, entry, name, unpacked, findings)
    except ArchiveRefused:
        raise
    except UnicodeDecodeError:
        raise ArchiveRefused("The archive has names that are not UTF-8.") from None
    except DAMAGED as error:
        if ours(error):
            raise
        raise ArchiveRefused(f"The zip archive is damaged: {error}") from error


def _check_size(directory: ZipDirectory, findings: Findings) -> None:
    """Refuse a list that must be too long before any of it is read."""
    limits = findings.limits
    if directory.size > limits.entries * (SHORTEST_DIRECTORY_ENTRY + limits.segment_bytes):
        findings.stop(f"The archive has more than {limits.entries} entries.")


def _acceptable(entry: ZipEntry, findings: Findings, unpacked: Unpacked) -> str | None:
    raw = entry.text
    kind = stat.S_IFMT(entry.mode)
    if kind == stat.S_IFLNK:
        findings.line(f"{shown(raw)}: links are not allowed.")
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        findings.line(f"{shown(raw)}: only files and folders are allowed.")
    elif entry.flags & ENCRYPTED:
        findings.line(f"{shown(raw)}: encrypted.")
    elif entry.method not in (STORED, DEFLATED):
        findings.line(f"{shown(raw)}: compressed with an unusual method; deflate is understood.")
    else:
        return findings.accept(raw, folder=raw.endswith("/"), known=unpacked)
    return None


def _copy_entry(
    directory: ZipDirectory, entry: ZipEntry, name: str, unpacked: Unpacked, findings: Findings
) -> None:
    def pieces() -> Iterator[bytes]:
        for piece in directory.pieces(entry):
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
