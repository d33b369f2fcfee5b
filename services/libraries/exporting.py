"""Reading a whole library for its archive, page by page and at one moment."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Protocol

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import media
from services.libraries.archive_contents import (
    OLX_PATH,
    ArchivedCollection,
    ArchivedEntity,
    ArchivedMedia,
    ArchivedVersion,
    ByteStream,
)
from services.libraries.models import Library
from services.libraries.states import Kind
from shared.files import FileMissing, Files
from shared.problems import Conflict

Child = tuple[str, int]
PAGE = 100
SMALL = 64 * 1024
PREFETCH_BYTES = 16 * 1024 * 1024
READERS = 8


class ContentMissing(Conflict):
    """A file of the library is gone from the object store, so no complete archive can be made."""

    type, title = "content-missing", "A file of the library is not in the object store"


# In byte order of the refs, whatever the database's own order is.
_ENTITIES = text("""
    select entity.entity_ref, entity.kind, entity.created, entity.can_stand_alone,
           draft.entity_id is not null and draft.version_id is null as draft_deleted,
           live.id as live_id, live.version_num as live_num, live.title as live_title,
           live.created as live_created,
           shown.id as shown_id, shown.version_num as shown_num, shown.title as shown_title,
           shown.created as shown_created
    from entity
    left join draft on draft.entity_id = entity.id
    left join version live on live.id = draft.version_id
    left join published on published.entity_id = entity.id
    left join version shown on shown.id = published.version_id
    where entity.library_id = :library_id
    order by entity.entity_ref collate "C"
""")
# `offset 0` keeps PostgreSQL, which may have no statistics yet of what was just imported, from
# reading whole tables for every page: it looks up each version by itself.
_MEDIA = text("""
    select held.version_id, held.path, held.id, held.hash, held.size, held.created,
           held.media_type, held.text is null as is_file,
           case when held.size <= :small then held.text end as text
    from unnest(cast(:versions as bigint[])) as wanted (id)
    cross join lateral (
      select version_media.version_id, version_media.path, media.* from version_media
      cross join lateral (
        select * from media where media.id = version_media.media_id offset 0) as media
      where version_media.version_id = wanted.id offset 0) as held
""")
_CHILDREN = text("""
    select held.version_id, entity.entity_ref, pinned.version_num as pin
    from unnest(cast(:versions as bigint[])) as wanted (id)
    cross join lateral (
      select version_id, order_num, entity_id, pinned_version_id from child
      where child.version_id = wanted.id offset 0) as held
    cross join lateral (
      select entity_ref from entity where entity.id = held.entity_id offset 0) as entity
    left join version pinned on pinned.id = held.pinned_version_id
    order by held.version_id, held.order_num
""")
_COLLECTIONS = text("""
    select id, code, title, description, created, modified, enabled from collection
    where library_id = :library_id order by id
""")
# Versions that containers of the archive pin, and those that these pin in turn.
_PINNED = text("""
    with recursive pinned (id) as (
      select child.pinned_version_id from entity
      left join draft on draft.entity_id = entity.id
      left join published on published.entity_id = entity.id
      join child on child.version_id in (draft.version_id, published.version_id)
      where entity.library_id = :library_id and entity.kind <> 'component'
        and child.pinned_version_id is not null
      union
      select child.pinned_version_id from pinned
      join child on child.version_id = pinned.id
      where child.pinned_version_id is not null
    )
    select entity.entity_ref, version.id, version.version_num, version.title, version.created
    from pinned
    join version on version.id = pinned.id
    join entity on entity.id = version.entity_id
    order by entity.entity_ref, version.version_num
""")
_MEMBERS = text("""
    select entity.entity_ref from collection_member
    join entity on entity.id = collection_member.entity_id
    where collection_member.collection_id = :collection_id
    order by entity.entity_ref collate "C"
""")


class Steps(Protocol):
    """What counts the entities as they are written; a task's progress does."""

    async def advance(self, steps: int = 1) -> None: ...


class Export:
    """One library read page by page in one transaction, so that all of it is of one moment."""

    def __init__(
        self, session: AsyncSession, files: Files, library: Library, progress: Steps
    ) -> None:
        self._session, self._files, self._library = session, files, library
        self._progress = progress

    async def count(self) -> int:
        connection = await self._session.connection()
        found = await connection.execute(
            text("select count(*) from entity where library_id = :id"), {"id": self._library.id}
        )
        return int(found.scalar_one())

    async def entities(self) -> AsyncGenerator[ArchivedEntity]:
        connection = await self._session.connection()
        pinned: dict[str, list[Row[Any]]] = {}
        for row in await connection.execute(_PINNED, {"library_id": self._library.id}):
            pinned.setdefault(row.entity_ref, []).append(row)
        async with connection.stream(_ENTITIES, {"library_id": self._library.id}) as rows:
            async for page in rows.partitions(PAGE):
                for entity in await self._assemble(connection, page, pinned):
                    yield entity
                    await self._progress.advance(1)

    async def collections(self) -> AsyncGenerator[ArchivedCollection]:
        connection = await self._session.connection()
        async with connection.stream(_COLLECTIONS, {"library_id": self._library.id}) as rows:
            async for row in rows:
                yield ArchivedCollection(
                    row.code, row.title, row.description, row.created, row.modified,
                    self._members(connection, row.id), row.enabled,
                )  # fmt: skip

    async def _members(self, connection: AsyncConnection, collection_id: int) -> AsyncIterator[str]:
        async with connection.stream(_MEMBERS, {"collection_id": collection_id}) as rows:
            async for row in rows:
                yield row.entity_ref

    async def _assemble(
        self,
        connection: AsyncConnection,
        page: Sequence[Row[Any]],
        pinned: dict[str, list[Row[Any]]],
    ) -> list[ArchivedEntity]:
        also = {row.entity_ref: pinned.get(row.entity_ref, []) for row in page}
        versions = {
            number: None
            for row in page
            for number in (row.live_id, row.shown_id, *(more.id for more in also[row.entity_ref]))
            if number is not None
        }
        media_of = await self.media_of(connection, list(versions))
        children_of: dict[int, list[Child]] = {}
        for child in await connection.execute(_CHILDREN, {"versions": list(versions)}):
            children = children_of.setdefault(child.version_id, [])
            children.append((child.entity_ref, child.pin or 0))
        return [_entity(row, also[row.entity_ref], media_of, children_of) for row in page]

    async def media_of(
        self, connection: AsyncConnection, versions: list[int]
    ) -> dict[int, list[ArchivedMedia]]:
        """The page's media. What is small is read at once, several at a time."""
        found = await connection.execute(_MEDIA, {"versions": versions, "small": SMALL})
        rows = found.all()
        small = await self._read_small(rows)
        media_of: dict[int, list[ArchivedMedia]] = {}
        for row in rows:
            if row.text is not None:
                data: bytes | ByteStream = row.text.encode()
            elif row.is_file:
                data = small[row.hash] if row.hash in small else self._stream(row)
            else:
                data = self._long_text(connection, row.id)
            named = row.path == OLX_PATH or row.media_type == media.media_type_of(row.path)
            file = ArchivedMedia(row.path, row.created, data, "" if named else row.media_type)
            media_of.setdefault(row.version_id, []).append(file)
        return media_of

    async def _read_small(self, rows: Sequence[Row[Any]]) -> dict[str, bytes]:
        wanted: dict[str, Row[Any]] = {}
        room = PREFETCH_BYTES
        for row in rows:
            if row.is_file and row.size <= min(SMALL, room) and row.hash not in wanted:
                wanted[row.hash] = row
                room -= row.size
        gate = asyncio.Semaphore(READERS)

        async def read(row: Row[Any]) -> bytes:
            async with gate:
                try:
                    return await self._files.read(media.content_path(self._library, row.hash))
                except FileMissing as error:
                    raise ContentMissing(f"{row.path} is not in the object store.") from error

        contents = await asyncio.gather(*(read(row) for row in wanted.values()))
        return dict(zip(wanted, contents, strict=True))

    def _stream(self, row: Row[Any]) -> ByteStream:
        async def stream() -> AsyncIterator[bytes]:
            try:
                async for piece in self._files.stream(media.content_path(self._library, row.hash)):
                    yield piece
            except FileMissing as error:
                raise ContentMissing(f"{row.path} is not in the object store.") from error

        return stream

    def _long_text(self, connection: AsyncConnection, media_id: int) -> ByteStream:
        async def stream() -> AsyncIterator[bytes]:
            found = await connection.execute(
                text("select text from media where id = :id"), {"id": media_id}
            )
            yield found.scalar_one().encode()

        return stream


def _pins(children: Sequence[Child]) -> tuple[int, ...]:
    return tuple(pin for _, pin in children) if any(pin for _, pin in children) else ()


def _entity(
    row: Row[Any],
    pinned: Sequence[Row[Any]],
    media_of: dict[int, list[ArchivedMedia]],
    children_of: dict[int, list[Child]],
) -> ArchivedEntity:
    component = row.kind == Kind.COMPONENT
    versions = {
        number: ArchivedVersion(
            version_num,
            title,
            created,
            media_of.get(number, ()),
            None if component else [ref for ref, _ in children_of.get(number, [])],
            _pins(children_of.get(number, [])),
        )
        for number, version_num, title, created in (
            (row.live_id, row.live_num, row.live_title, row.live_created),
            (row.shown_id, row.shown_num, row.shown_title, row.shown_created),
            *((more.id, more.version_num, more.title, more.created) for more in pinned),
        )
        if number is not None
    }
    return ArchivedEntity(
        key=row.entity_ref,
        created=row.created,
        can_stand_alone=row.can_stand_alone,
        container_type=None if component else row.kind,
        draft_num=row.live_num,
        published_num=row.shown_num,
        draft_deleted=row.draft_deleted,
        versions=list(versions.values()),
    )
