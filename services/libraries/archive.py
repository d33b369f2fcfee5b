"""The backup archive, format version 1: what is in it, and writing it as a stream.

contract: content_core §4. Codes themselves name the files (§4.12), so that every reader finds
a component's files; `version.created` and `entity.draft_deleted` are the only additions.
"""

import asyncio
import hashlib
import re
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime

from services.libraries.zipping import ZipStream

FORMAT_VERSION = 1
OLX_PATH = "block.xml"
BATCH_BYTES = 512 * 1024
ENTRY_WEIGHT = 512

ByteStream = Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `package.toml` says: the library, and who made the archive, when and where."""

    title: str
    key: str
    description: str
    created: datetime
    updated: datetime
    created_at: datetime
    created_by: str = ""
    created_by_email: str = ""
    origin_server: str = ""


@dataclass(frozen=True, slots=True)
class ArchivedMedia:
    """One file of a version; large ones are given as a stream."""

    path: str
    created: datetime
    data: bytes | ByteStream


@dataclass(frozen=True, slots=True)
class ArchivedVersion:
    """A component's version has media, a container's has children."""

    version_num: int
    title: str
    created: datetime
    media: Sequence[ArchivedMedia] = ()
    children: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class ArchivedEntity:
    """A component or container with its draft and published versions, the draft first."""

    key: str
    created: datetime
    can_stand_alone: bool = True
    container_type: str | None = None
    draft_num: int | None = None
    published_num: int | None = None
    draft_deleted: bool = False
    versions: Sequence[ArchivedVersion] = ()


@dataclass(frozen=True, slots=True)
class ArchivedCollection:
    """A collection; its members are entity keys in byte order."""

    code: str
    title: str
    description: str
    created: datetime
    modified: datetime
    members: Sequence[str] | AsyncIterable[str] = ()


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
            name = names.take("collections", collection.code)
            data = _collection_stream(collection)
            yield Entry(f"collections/{name}.toml", collection.modified, data)


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
    entity: ArchivedEntity, updated: datetime, names: "Names", folders: set[str]
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


# Names


@dataclass(slots=True)
class Names:
    """Which file name stands for which code: the code itself wherever it can be.

    Names that a file system may take for one another are kept apart. Only their hashes are
    remembered; two that met by chance would merely cost one of them its plain name.
    """

    _used: set[int] = field(default_factory=set)

    def take(self, folder: str, code: str) -> str:
        if code.strip(".") and "/" not in code and self._free(folder, code):
            return code
        for digest_size in range(3, 21):
            digest = hashlib.blake2b(code.encode(), digest_size=digest_size).hexdigest()
            name = f"{slug(code)}_{digest}"
            if self._free(folder, name):
                return name
        raise ValueError(f"No free name for {code!r}.")

    def _free(self, folder: str, name: str) -> bool:
        """Both the file `name.toml` and the folder `name` must be free, and are taken then."""
        folded = unicodedata.normalize("NFKC", name).casefold()
        wanted = {hash((folder, folded)), hash((folder, f"{folded}.toml"))}
        if wanted & self._used:
            return False
        self._used |= wanted
        return True


def slug(text: str) -> str:
    """Lower case words with hyphens between them, in any script. contract: content_core §4.6"""
    kept = re.sub(r"[^\w\s-]", "", unicodedata.normalize("NFKC", text).lower())
    return re.sub(r"[-\s]+", "-", kept).strip("-_")


# TOML, laid out line by line as the upstream writer does


def package_toml(manifest: Manifest) -> str:
    lines = ["[meta]", f"format_version = {FORMAT_VERSION}"]
    # Readers refuse blank ones, so they are left out.
    if manifest.created_by:
        lines.append(f"created_by = {toml_string(manifest.created_by)}")
    if manifest.created_by_email:
        lines.append(f"created_by_email = {toml_string(manifest.created_by_email)}")
    lines.append(f"created_at = {toml_time(manifest.created_at)}")
    if manifest.origin_server:
        lines.append(f"origin_server = {toml_string(manifest.origin_server)}")
    lines += [
        "",
        "[learning_package]",
        f"title = {toml_string(manifest.title)}",
        f"key = {toml_string(manifest.key)}",
        f"description = {toml_string(manifest.description)}",
        f"created = {toml_time(manifest.created)}",
        f"updated = {toml_time(manifest.updated)}",
    ]
    return "\n".join(lines) + "\n"


def entity_toml(entity: ArchivedEntity) -> str:
    lines = [
        "[entity]",
        f"can_stand_alone = {str(entity.can_stand_alone).lower()}",
        f"key = {toml_string(entity.key)}",
        f"created = {toml_time(entity.created)}",
    ]
    if entity.draft_deleted:
        lines.append("draft_deleted = true")
    if entity.draft_num is not None:
        lines += ["", "[entity.draft]", f"version_num = {entity.draft_num}"]
    lines += ["", "[entity.published]"]
    if entity.published_num is None:
        lines.append("# unpublished: no published_version_num")
    else:
        lines.append(f"version_num = {entity.published_num}")
    if entity.container_type is not None:
        lines += ["", f"[entity.container.{entity.container_type}]"]
    lines += ["", "# ### Versions"]
    for version in entity.versions:
        lines += _version_lines(version)
    return "\n".join(lines) + "\n"


def _version_lines(version: ArchivedVersion) -> list[str]:
    lines = [
        "",
        "[[version]]",
        f"title = {toml_string(version.title)}",
        f"version_num = {version.version_num}",
        f"created = {toml_time(version.created)}",
    ]
    if version.children is not None:
        children = ", ".join(toml_string(child) for child in version.children)
        lines += ["", "[version.container]", f"children = [{children}]"]
    return lines


def collection_head(collection: ArchivedCollection) -> str:
    return (
        "[collection]\n"
        f"title = {toml_string(collection.title)}\n"
        f"key = {toml_string(collection.code)}\n"
        f"description = {toml_string(collection.description)}\n"
        f"created = {toml_time(collection.created)}\n"
        "entities = "
    )


_ESCAPES = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(32), 127)} | _ESCAPES


def toml_string(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def toml_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
