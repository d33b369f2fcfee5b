"""The names under which exports are written. contract: dispatcher §6.8"""

import hashlib
import re
from datetime import UTC, datetime
from uuid import UUID

from services.libraries.archive_names import slug
from services.libraries.models import Exporter, Library
from services.libraries.states import ExportFormat

FOLDER = "exports"
FIELDS = ("org", "slug", "number", "start", "date", "time", "exporter", "task")
LONGEST = 500
ARCHIVED = ".zip"
_FIELD = re.compile(r"\{(\w*)\}")
_PLAIN = re.compile(r"[a-z0-9_-]([a-z0-9._-]*[a-z0-9_-])?")
_SAFE = re.compile(r"[\w.@+=,{}/-]+")


def checked(pattern: str) -> str:
    """A usable pattern, like `{org}/{slug}/{number}`. Raises ValueError."""
    segments = pattern.split("/")
    if not pattern or len(pattern) > LONGEST or not _SAFE.fullmatch(pattern):
        raise ValueError(
            f"A path has 1 to {LONGEST} letters, digits, and . _ - @ + = , / or {{fields}}."
        )
    if any(not segment.strip(".") for segment in segments):
        raise ValueError("A path has no empty segments, no `.` and no `..`.")
    if pattern.endswith(ARCHIVED):
        raise ValueError(f"The format adds {ARCHIVED}.")
    unknown = [name for name in _FIELD.findall(pattern) if name not in FIELDS]
    if unknown:
        raise ValueError(f"There is no field {{{unknown[0]}}}; there are {', '.join(FIELDS)}.")
    if re.search(r"[{}]", _FIELD.sub("", pattern)):
        raise ValueError("Braces stand around fields only.")
    return pattern


def place(
    exporter: Exporter,
    library: Library,
    *,
    number: int,
    start: int | None,
    task_id: UUID,
    now: datetime,
) -> str:
    """Where one export goes: below the folder of the library, whatever the pattern says."""
    values = {
        "org": library.org,
        "slug": library.slug,
        "number": str(number),
        "start": "" if start is None else str(start),
        "date": f"{now.astimezone(UTC):%Y-%m-%d}",
        "time": f"{now.astimezone(UTC):%H%M%S}",
        "exporter": str(exporter.id),
        "task": str(task_id),
    }
    named = _FIELD.sub(lambda field: values[field.group(1)], exporter.path)
    ending = ARCHIVED if exporter.format is ExportFormat.ZIP else ""
    parts = [part for part in named.split("/") if part.strip(".")] or [str(task_id)]
    return f"{FOLDER}/{library.uuid}/{'/'.join(parts)}{ending}"


def folder_name(code: str) -> str:
    """The same name for a code in every export, also where names differ in case only."""
    if _PLAIN.fullmatch(code):
        return code
    return f"{slug(code)}_{hashlib.blake2b(code.encode(), digest_size=8).hexdigest()}"
