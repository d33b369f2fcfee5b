"""Uploaded archives, whoever made them: zip, tar and tar.gz, unpacked without trusting a word.

Nothing is written under a name from the archive: all contents go one after another into one
nameless temporary file, and an index remembers where each begins. Sizes are counted while
decompressing; what headers say decides nothing.
"""

from pathlib import Path

from services.libraries import untar, unzip
from services.libraries.entries import (
    LIMITS,
    ArchiveLimits,
    ArchiveRefused,
    Check,
    Findings,
    Junk,
    Unpacked,
    is_junk,
)  # fmt: skip

LONGEST_MARK = 262
NO_ARCHIVE = "The file is neither a zip nor a tar.gz archive."


def unpack(
    source: Path,
    limits: ArchiveLimits = LIMITS,
    check: Check = lambda: None,
    junk: Junk = is_junk,
) -> Unpacked:
    """Unpack into a temporary file. `check` is called often, and stops it by raising.

    Raises ArchiveRefused with a line for everything that is wrong; nothing is kept then.
    """
    unpacked = Unpacked()
    findings = Findings(limits, source.stat().st_size, check, junk)
    try:
        with source.open("rb") as file:
            kind = kind_of(file.read(LONGEST_MARK))
            file.seek(0)
            if kind is None:
                raise ArchiveRefused(NO_ARCHIVE)
            if kind == "zip":
                unzip.copy_all(file, unpacked, findings)
            else:
                untar.copy_all(file, kind == "gzip", unpacked, findings)
        unpacked.flush()
        findings.conclude()
    except BaseException:
        unpacked.close()
        raise
    return unpacked


def kind_of(start: bytes) -> str | None:
    """What the first LONGEST_MARK bytes of a file say it is: zip, gzip, tar or nothing known."""
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    return "tar" if start[257:262] == b"ustar" else None
