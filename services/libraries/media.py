"""Texts and files by their content. contract: content_core §1.5"""

import asyncio
import mimetypes
from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import text as sql
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.models import Library
from shared.database import driver
from shared.files import Files, digest
from shared.ids import new_id

CONTENT, INCOMING = "content", "incoming"
AT_ONCE = 16

# The interpreter's own table only: what a machine has installed must not decide.
_TYPES = mimetypes.MimeTypes(filenames=())
_OFFICE = "application/vnd.openxmlformats-officedocument"
_ADDED = {
    ".srt": "application/x-subrip",
    ".vtt": "text/vtt",
    ".sjson": "application/json",
    ".webp": "image/webp",
    ".ogg": "audio/ogg",
    ".m4a": "audio/mp4",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".ttf": "font/ttf",
    ".otf": "font/otf",
    ".md": "text/markdown",
    ".docx": f"{_OFFICE}.wordprocessingml.document",
    ".xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    ".pptx": f"{_OFFICE}.presentationml.presentation",
}
for _ending, _type in _ADDED.items():
    _TYPES.add_type(_type, _ending)


@dataclass(frozen=True, slots=True)
class NewMedia:
    """Content to keep: a text in the row, or a file that is in the object store already."""

    media_type: str
    hash: str
    size: int
    text: str | None = None


def text_media(text: str, media_type: str) -> NewMedia:
    data = text.encode()
    return NewMedia(media_type, digest(data), len(data), text)


def olx_type(block_type: str) -> str:
    return f"application/vnd.openedx.xblock.v1.{block_type}+xml"


def media_type_of(name: str) -> str:
    """What the name of a file says it is."""
    # A path is no URL, in which `data:` would say it.
    found, packed = _TYPES.guess_type(f"./{name}", strict=True)
    if packed is not None:
        return "application/gzip" if packed == "gzip" else "application/octet-stream"
    return found or "application/octet-stream"


def content_path(library: Library, hash: str) -> str:
    """Where the file with this content is in the object store."""
    return f"{CONTENT}/{library.uuid}/{hash}"


_USE = "select pg_advisory_xact_lock_shared(hashtextextended(cast($1 as text), 0))"


async def use_files(session: AsyncSession, library: Library) -> None:
    """Until this transaction ends, no file of the library is cleaned up.

    Before a file is stored: it has no row yet, and known content is found again by its file.
    """
    await (await driver(session)).execute(_USE, str(library.uuid))


_OWN = sql("select pg_try_advisory_xact_lock(hashtextextended(cast(:uuid as text), 0))")


async def try_to_own_files(session: AsyncSession, library: UUID) -> bool:
    """Until this transaction ends, nobody stores files of the library; false if one does now."""
    owned = await (await session.connection()).execute(_OWN, {"uuid": str(library)})
    return bool(owned.scalar_one())


async def delete_files(files: Files, library: UUID, hashes: Iterable[str]) -> None:
    """Remove stored content, several files at a time. The caller owns the library's files."""
    paths = [f"{CONTENT}/{library}/{hash}" for hash in hashes]
    for first in range(0, len(paths), AT_ONCE):
        some = paths[first : first + AT_ONCE]
        await asyncio.gather(*(files.delete([path]) for path in some))


async def store_file(
    files: Files,
    library: Library,
    data: bytes | AsyncIterable[bytes],
    media_type: str,
    *,
    limit: int | None = None,
) -> NewMedia:
    """Put a file into the object store under its content. Raises TooBig beyond the limit.

    A stream is first written beside its place, because its name is known only at its end.
    """
    if isinstance(data, bytes):
        stored = await files.put(content_path(library, digest(data)), data, limit=limit)
    else:
        waiting = f"{INCOMING}/{new_id()}"
        try:
            stored = await files.put(waiting, data, limit=limit)
            await files.rename(waiting, content_path(library, stored.blake2b))
        except BaseException:
            await files.delete([waiting])
            raise
    return NewMedia(media_type, stored.blake2b, stored.size)


_STORE = """
    insert into media (library_id, media_type, hash, size, text, has_file, created,
                       interest_at)
    select $1, r.media_type, r.hash, r.size, r.text, r.text is null, $3, $3
    from jsonb_to_recordset(cast(cast($2 as text) as jsonb)) as r (
      media_type text, hash text, size bigint, text text)
    order by r.media_type, r.hash
    on conflict (library_id, media_type, hash)
    do update set has_file = media.has_file or excluded.has_file,
                  text = coalesce(media.text, excluded.text),
                  interest_at = greatest(media.interest_at, excluded.interest_at)
    returning id, media_type, hash
"""


async def store_many(
    session: AsyncSession, library: Library, items: Sequence[NewMedia], *, now: datetime
) -> dict[tuple[str, str], int]:
    """Media ids by (media type, hash), with one statement. Known content is found again.

    Several callers may store the same new content at once: the database decides who was first.
    """
    distinct: dict[tuple[str, str], dict[str, Any]] = {
        (item.media_type, item.hash): {
            "media_type": item.media_type,
            "hash": item.hash,
            "size": item.size,
            "text": item.text,
        }
        for item in items
    }
    if not distinct:
        return {}
    rows = orjson.dumps(list(distinct.values())).decode()
    stored = await (await driver(session)).fetch(_STORE, library.id, rows, now)
    return {(row["media_type"], row["hash"]): row["id"] for row in stored}
