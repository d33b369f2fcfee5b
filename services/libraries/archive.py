"""Writing a backup archive as a stream.

contract: content_core §4. Codes themselves name the files (§4.12), so that every reader finds
a component's files. Other readers pass over what is more than theirs: `version.created`, `pins`
and `media_types`, `entity.draft_deleted`, versions that are only pinned, and a folder for
collections that are deleted.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from datetime import datetime

from services.libraries.archive_contents import (
    COLLECTIONS,
    DISABLED_COLLECTIONS,
    ArchivedCollection,
    ArchivedEntity,
    ArchivedVersion,
    ByteStream,
    Manifest,
)
from services.libraries.archive_names import Names
from services.libraries.archive_toml import collection_head, entity_toml, package_toml, toml_string
from services.libraries.zipping import ZipStream

BATCH_BYTES = 512 * 1024
ENTRY_WEIGHT = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the zip: a folder when there is no data."""

    name: str
    modified: datetime
    data: bytes | ByteStream | None = None


def write_archive(
    manifest: Manifest,
    entities: AsyncGenerator[ArchivedEntity],
    collections: AsyncGenerator[ArchivedCollection],
) -> AsyncGenerator[bytes]:
    """The archive's bytes. Memory is bounded by one batch and one entity, not by the library."""
    return pack(list_entries(manifest, entities, collections))


async def list_entries(
    manifest: Manifest,
    entities: AsyncGenerator[ArchivedEntity],
    collections: AsyncGenerator[ArchivedCollection],
) -> AsyncGenerator[Entry]:
    """Everything in the archive, in the order of the contract."""
    names, folders = Names(), set[str]()
    yield Entry("package.toml", manifest.updated, package_toml(manifest).encode())
    yield Entry("entities/", manifest.updated)
    yield Entry("collections/", manifest.updated)
    async with aclosing(entities):
        async for entity in entities:
            for entry in _entity_entries(entity, manifest.updated, names, folders):
                yield entry
    async with aclosing(collections):
        async for collection in collections:
            folder = COLLECTIONS if collection.enabled else DISABLED_COLLECTIONS
            if folder not in folders and not collection.enabled:
                folders.add(folder)
                yield Entry(f"{folder}/", manifest.updated)
            name = names.take(folder, collection.code)
            data = _collection_stream(collection)
            yield Entry(f"{folder}/{name}.toml", collection.modified, data)


async def pack(entries: AsyncGenerator[Entry]) -> AsyncGenerator[bytes]:
    """Compress in threads: many small entries at once, large ones piece by piece."""
    small: list[Entry] = []
    weight = 0
    with closing(ZipStream()) as archive:
        async with aclosing(entries):
            async for entry in entries:
                if not callable(entry.data):
                    small.append(entry)
                    weight += ENTRY_WEIGHT + len(entry.data or b"")
                if small and (callable(entry.data) or weight > BATCH_BYTES):
                    yield await asyncio.to_thread(_pack_small, archive, small)
                    small, weight = [], 0
                if callable(entry.data):
                    async for piece in _pack_large(archive, entry.name, entry.modified, entry.data):
                        yield piece
        yield await asyncio.to_thread(_pack_small, archive, small)
        for piece in archive.finish():
            yield piece


def _pack_small(archive: ZipStream, entries: list[Entry]) -> bytes:
    pieces = []
    for entry in entries:
        if isinstance(entry.data, bytes):
            pieces.append(archive.file(entry.name, entry.data, entry.modified))
        else:
            pieces.append(archive.folder(entry.name, entry.modified))
    return b"".join(pieces)


async def _pack_large(
    archive: ZipStream, name: str, modified: datetime, data: ByteStream
) -> AsyncIterator[bytes]:
    file = archive.stream(name, modified)
    yield file.start()
    async for piece in data():
        yield await asyncio.to_thread(file.write, piece)
    yield await asyncio.to_thread(file.finish)


# Entries of one entity


def _entity_entries(
    entity: ArchivedEntity, updated: datetime, names: Names, folders: set[str]
) -> list[Entry]:
    latest = max([updated, *(version.created for version in entity.versions)])
    text = entity_toml(entity).encode()
    if entity.container_type is not None:
        name = names.take("entities", entity.key)
        return [Entry(f"entities/{name}.toml", latest, text)]
    namespace, block_type, code = entity.key.split(":", 2)
    entries = []
    for folder in (f"entities/{namespace}/", f"entities/{namespace}/{block_type}/"):
        if folder not in folders:
            folders.add(folder)
            entries.append(Entry(folder, latest))
    folder = f"entities/{namespace}/{block_type}"
    stem = f"{folder}/{names.take(folder, code)}"
    entries.append(Entry(f"{stem}.toml", latest, text))
    for number, version in enumerate(entity.versions):
        if number == 0:
            entries.append(Entry(f"{stem}/", version.created))
            entries.append(Entry(f"{stem}/component_versions/", version.created))
        entries += _version_entries(f"{stem}/component_versions/v{version.version_num}/", version)
    return entries


def _version_entries(place: str, version: ArchivedVersion) -> list[Entry]:
    entries = [Entry(place, version.created), Entry(f"{place}static/", version.created)]
    made = {"static"}
    for media in sorted(version.media, key=lambda media: media.path):
        parents = media.path.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            parent = "/".join(parents[:depth])
            if parent not in made:
                made.add(parent)
                entries.append(Entry(f"{place}{parent}/", media.created))
        entries.append(Entry(f"{place}{media.path}", media.created, media.data))
    return entries


def _collection_stream(collection: ArchivedCollection) -> ByteStream:
    async def stream() -> AsyncIterator[bytes]:
        yield collection_head(collection).encode()
        lines: list[str] = []
        opened = False
        async for member in _each(collection.members):
            lines.append(f"    {toml_string(member)},\n")
            if len(lines) >= 1000:
                yield ("" if opened else "[\n").encode() + "".join(lines).encode()
                opened, lines = True, []
        if not opened and not lines:
            yield b"[]\n"
        else:
            yield ("" if opened else "[\n").encode() + "".join(lines).encode() + b"]\n"

    return stream


async def _each(members: Sequence[str] | AsyncIterable[str]) -> AsyncIterator[str]:
    if isinstance(members, AsyncIterable):
        async for member in members:
            yield member
    else:
        for member in members:
            yield member
