"""Writing what an archive holds into a staged package. contract: content_core §4.9

Batch by batch, so that memory is bounded by one batch of contents; the numbers and dates of
versions stay as they are in the archive. All of it is the caller's one transaction.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import orjson
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import branches, entities, media, publishing
from services.libraries.archive_contents import (
    OLX_PATH,
    ArchivedCollection,
    ArchivedEntity,
    ArchivedMedia,
    ArchivedVersion,
)
from services.libraries.archive_reading import ArchiveContents
from services.libraries.archive_spool import ArchivedFile
from services.libraries.archive_tables import UNKNOWN_TIME
from services.libraries.entities import NewEntity
from services.libraries.media import NewMedia
from services.libraries.models import Collection, Library
from services.libraries.states import Kind
from shared.files import Files, digest

MESSAGE = "Restore from backup."
BATCH = 200
BATCH_BYTES = 4 * 1024 * 1024
MEMBERS_AT_ONCE = 5000
SMALL = 1024 * 1024
# Containers after what they hold.
ORDER = (Kind.COMPONENT, Kind.UNIT, Kind.SUBSECTION, Kind.SECTION)

_VERSIONS = text("""
    insert into version (uuid, entity_id, version_num, title, created, created_by)
    select gen_random_uuid(), r.entity_id, r.version_num, r.title, r.created, :user
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (
      place integer, entity_id bigint, version_num integer, title text, created timestamptz)
    order by r.place
    returning id, entity_id, version_num
""")
_MEDIA = text("""
    insert into version_media (version_id, path, media_id)
    select * from unnest(cast(:versions as bigint[]), cast(:paths as text[]),
                         cast(:media as bigint[]))
""")
_CHILDREN = text("""
    with added as (
      insert into child (version_id, order_num, entity_id, pinned_version_id)
      select r.version_id, r.order_num, r.entity_id, pinned.id
      from jsonb_to_recordset(cast(:rows as jsonb)) as r (
        version_id bigint, order_num integer, entity_id bigint, pin integer)
      left join version pinned on pinned.entity_id = r.entity_id and pinned.version_num = r.pin
      returning version_id, entity_id, pinned_version_id)
    insert into dependency (version_id, entity_id)
    select distinct version_id, entity_id from added where pinned_version_id is null
""")
_DELETED = text("""
    insert into draft (entity_id)
    select * from unnest(cast(:ids as bigint[])) on conflict do nothing
""")
_MEMBERS = text("""
    insert into collection_member (collection_id, entity_id, created)
    select :collection_id, entity_id, :now from unnest(cast(:ids as bigint[])) as entity_id
    on conflict do nothing
""")


class Steps(Protocol):
    """What counts the entities as they are written; a task's progress does."""

    async def advance(self, steps: int = 1) -> None: ...


@dataclass
class Restore:
    """One archive on its way into one package."""

    session: AsyncSession
    files: Files
    library: Library
    progress: Steps
    user: str
    now: datetime
    _ids: dict[str, int] = field(default_factory=dict)
    _drafts: dict[int, int | None] = field(default_factory=dict)
    _published: dict[int, int | None] = field(default_factory=dict)
    _stored: set[str] = field(default_factory=set)

    async def write(self, contents: ArchiveContents) -> None:
        """Everything: the published state first, and one second later what differs from it."""
        for kind in ORDER:
            for batch in _batches(contents.entities.of_kind(kind)):
                await self._add(batch, kind)
                await self.progress.advance(len(batch))
        await self._point()
        for collection in contents.collections:
            await self._add_collection(collection)
            await self.progress.advance()

    async def _add(self, batch: Sequence[ArchivedEntity], kind: Kind) -> None:
        news = [
            NewEntity(
                one.key, kind, *_type_and_code(one.key, kind), one.can_stand_alone,
                self._time(one.created),
            )
            for one in batch
        ]  # fmt: skip
        ids = await entities.create_many(
            self.session, self.library, news, user=self.user, now=self.now
        )
        self._ids |= ids
        made = await self._add_versions(batch)
        if kind is Kind.COMPONENT:
            await self._add_media(batch, made)
        else:
            await self._add_children(batch, made)
        self._remember(batch, made)

    async def _add_versions(self, batch: Sequence[ArchivedEntity]) -> dict[tuple[int, int], int]:
        """Version ids by entity id and number; lower numbers get lower ids."""
        rows = [
            {
                "place": place,
                "entity_id": entity_id,
                "version_num": version.version_num,
                "title": version.title,
                "created": self._time(version.created),
            }
            for place, (entity_id, version) in enumerate(
                (self._ids[one.key], version)
                for one in batch
                for version in sorted(one.versions, key=lambda version: version.version_num)
            )
        ]
        if not rows:
            return {}
        connection = await self.session.connection()
        values = {"rows": orjson.dumps(rows).decode(), "user": self.user}
        made = await connection.execute(_VERSIONS, values)
        return {(row.entity_id, row.version_num): row.id for row in made}

    def _remember(self, batch: Sequence[ArchivedEntity], made: dict[tuple[int, int], int]) -> None:
        for one in batch:
            entity_id = self._ids[one.key]
            if one.published_num is not None:
                self._published[entity_id] = made[entity_id, one.published_num]
            if one.draft_deleted:
                self._drafts[entity_id] = None
            elif one.draft_num is not None and one.draft_num != one.published_num:
                self._drafts[entity_id] = made[entity_id, one.draft_num]

    # What is in a version

    async def _add_media(
        self, batch: Sequence[ArchivedEntity], made: dict[tuple[int, int], int]
    ) -> None:
        found: list[tuple[int, str, NewMedia]] = []
        for one in batch:
            for version in one.versions:
                version_id = made[self._ids[one.key], version.version_num]
                for file in version.media:
                    found.append((version_id, file.path, await self._store(one, file)))
        news = [new for _, _, new in found]
        stored = await media.store_many(self.session, self.library, news, now=self.now)
        if not found:
            return
        values = {
            "versions": [version_id for version_id, _, _ in found],
            "paths": [path for _, path, _ in found],
            "media": [stored[new.media_type, new.hash] for new in news],
        }
        await (await self.session.connection()).execute(_MEDIA, values)

    async def _store(self, entity: ArchivedEntity, file: ArchivedMedia) -> NewMedia:
        """The OLX is a text of its row, every other file is in the object store."""
        data = file.data
        assert isinstance(data, ArchivedFile)
        if file.path == OLX_PATH:
            block_type = entity.key.split(":")[1]
            olx = (await asyncio.to_thread(data.read)).decode()
            return media.text_media(olx, media.olx_type(block_type))
        kind = file.media_type or media.media_type_of(file.path)
        if data.size > SMALL:
            return await media.store_file(self.files, self.library, data(), kind)
        content = await asyncio.to_thread(data.read)
        name = digest(content)
        if name in self._stored:
            return NewMedia(kind, name, len(content))
        self._stored.add(name)
        return await media.store_file(self.files, self.library, content, kind)

    async def _add_children(
        self, batch: Sequence[ArchivedEntity], made: dict[tuple[int, int], int]
    ) -> None:
        rows = [
            {
                "version_id": made[self._ids[one.key], version.version_num],
                "order_num": order,
                "entity_id": self._ids[ref],
                "pin": pin or None,
            }
            for one in batch
            for version in one.versions
            for order, (ref, pin) in enumerate(_children(version))
        ]
        if rows:
            connection = await self.session.connection()
            await connection.execute(_CHILDREN, {"rows": orjson.dumps(rows).decode()})

    # The two branches, and collections

    async def _point(self) -> None:
        """One publish of what is published, then one change to the drafts that differ."""
        session, library, user, now = self.session, self.library, self.user, self.now
        await branches.move_drafts(session, library, self._published, user=user, now=now)
        await publishing.publish_all(session, library, user=user, now=now, message=MESSAGE)
        later = now + timedelta(seconds=1)
        await branches.move_drafts(session, library, self._drafts, user=user, now=later)
        deleted = [entity for entity, version in self._drafts.items() if version is None]
        await (await self.session.connection()).execute(_DELETED, {"ids": deleted})

    async def _add_collection(self, archived: ArchivedCollection) -> None:
        collection = Collection(
            library_id=self.library.id, code=archived.code, title=archived.title,
            description=archived.description, enabled=archived.enabled,
            created=self._time(archived.created), modified=self._time(archived.modified),
            created_by=self.user,
        )  # fmt: skip
        self.session.add(collection)
        await self.session.flush()
        assert isinstance(archived.members, list)
        ids = [self._ids[ref] for ref in archived.members]
        connection = await self.session.connection()
        for first in range(0, len(ids), MEMBERS_AT_ONCE):
            some = ids[first : first + MEMBERS_AT_ONCE]
            values = {"collection_id": collection.id, "ids": some, "now": self.now}
            await connection.execute(_MEMBERS, values)

    def _time(self, moment: datetime) -> datetime:
        return self.now if moment == UNKNOWN_TIME else moment


def _type_and_code(key: str, kind: Kind) -> tuple[str, str]:
    if kind is not Kind.COMPONENT:
        return kind.value, key
    _, block_type, code = key.split(":", 2)
    return block_type, code


def _children(version: ArchivedVersion) -> Iterator[tuple[str, int]]:
    children = version.children or ()
    return zip(children, version.pins or [0] * len(children), strict=True)


def _batches(found: Iterable[ArchivedEntity]) -> Iterator[list[ArchivedEntity]]:
    """As many at a time as their OLX allows."""
    batch: list[ArchivedEntity] = []
    weight = 0
    for entity in found:
        batch.append(entity)
        weight += sum(_weight(file) for version in entity.versions for file in version.media)
        weight += sum(100 * len(version.children or ()) for version in entity.versions)
        if len(batch) >= BATCH or weight > BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


def _weight(file: ArchivedMedia) -> int:
    return file.data.size if file.path == OLX_PATH and isinstance(file.data, ArchivedFile) else 0


def counts(contents: ArchiveContents) -> dict[str, Any]:
    """How many of what. contract: content_core §4.11"""
    found = contents.entities
    components = found.count(Kind.COMPONENT)
    return {
        "num_containers": len(found) - components,
        "num_sections": found.count(Kind.SECTION),
        "num_subsections": found.count(Kind.SUBSECTION),
        "num_units": found.count(Kind.UNIT),
        "num_components": components,
        "num_collections": len(contents.collections),
    }
