"""What is in the export of a library version, page by page and at one moment."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.archive import Entry
from services.libraries.export_names import folder_name
from services.libraries.exporting import PAGE, Export, Steps
from services.libraries.library_versions import AS_OF
from services.libraries.models import Library, Publication
from services.libraries.states import Kind
from shared.files import Files

_HELD = f"""
    from library_version_content held
    join entity on entity.id = held.entity_id
    join version on version.id = held.version_id
    where held.library_id = :library_id and {AS_OF.format(number=":number")}
"""
# The start's version of the same entity; without a start, none.
_BEFORE = f"""
    left join library_version_content old on old.entity_id = held.entity_id
      and old.library_id = held.library_id
      and {AS_OF.format(number="cast(:start as integer)").replace("held.", "old.")}
"""
_NEW = (
    _HELD.replace("where", f"{_BEFORE} where", 1)
    + """
      and old.version_id is distinct from held.version_id
"""
)
_COUNT = text(f"select count(*) {_NEW}")
_UNITS = text(f"""
    select held.version_id, old.version_id as old_version_id, entity.kind, entity.type,
           entity.code, entity.entity_ref, version.uuid, version.version_num, version.title,
           version.created
    {_NEW} order by entity.entity_ref collate "C"
""")
_CHILDREN = text("""
    select child.version_id, entity.entity_ref, pin.version_num from child
    join entity on entity.id = child.entity_id
    left join version pin on pin.id = child.pinned_version_id
    where child.version_id = any(cast(:versions as bigint[]))
    order by child.version_id, child.order_num
""")
# Files that the start has at the same place already.
_SAME = text("""
    select mine.version_id, mine.path
    from unnest(cast(:versions as bigint[]), cast(:before as bigint[])) as pair (mine, old)
    join version_media mine on mine.version_id = pair.mine
    join version_media old on old.version_id = pair.old and old.path = mine.path
    where old.media_id = mine.media_id
""")
_INDEX = text(f"""
    select entity.entity_ref, entity.kind, cast(version.uuid as text) as uuid,
           version.version_num, version.title,
           (select coalesce(json_agg(json_build_object(
              'path', version_media.path, 'size', media.size, 'blake2b', media.hash)
              order by version_media.path), '[]')
            from version_media join media on media.id = version_media.media_id
            where version_media.version_id = held.version_id) as files
    {_HELD} order by entity.entity_ref collate "C"
""")
_REMOVED = text(f"""
    select entity.entity_ref from library_version_content held
    join entity on entity.id = held.entity_id
    where held.library_id = :library_id and {AS_OF.format(number="cast(:start as integer)")}
      and not exists (
        select from library_version_content kept where kept.entity_id = held.entity_id
          and {AS_OF.format(number=":number").replace("held.", "kept.")})
    order by entity.entity_ref collate "C"
""")


@dataclass(frozen=True, slots=True)
class Source:
    """Which library version is exported, and from which on."""

    library: Library
    number: int
    start: int | None
    created: datetime
    publication: Publication | None = None

    def values(self) -> dict[str, Any]:
        return {"library_id": self.library.id, "number": self.number, "start": self.start}


class Contents:
    """The files of one export, read in one transaction."""

    def __init__(
        self, session: AsyncSession, files: Files, source: Source, progress: Steps
    ) -> None:
        self._session, self._source, self._progress = session, source, progress
        self._export = Export(session, files, source.library, progress)

    async def count(self) -> int:
        """How many units there are to write."""
        connection = await self._session.connection()
        return int((await connection.execute(_COUNT, self._source.values())).scalar_one())

    async def entries(self) -> AsyncGenerator[Entry]:
        """Files by their path: first what describes a publication, then every unit's."""
        publication = self._source.publication
        if publication is not None:
            about = orjson.dumps(self._about(publication), option=orjson.OPT_INDENT_2)
            yield Entry("library.json", publication.created, about)
            yield Entry("index.jsonl", publication.created, self._index)
        connection = await self._session.connection()
        async with connection.stream(_UNITS, self._source.values()) as rows:
            async for page in rows.partitions(PAGE):
                async with aclosing(self._page(page)) as entries:
                    async for entry in entries:
                        yield entry
                await self._progress.advance(len(page))

    async def _page(self, page: Sequence[Row[Any]]) -> AsyncGenerator[Entry]:
        connection = await self._session.connection()
        versions = [row.version_id for row in page]
        before = {"versions": versions, "before": [row.old_version_id for row in page]}
        same = {(row.version_id, row.path) for row in await connection.execute(_SAME, before)}
        children: dict[int, list[dict[str, Any]]] = {}
        for row in await connection.execute(_CHILDREN, {"versions": versions}):
            child = {"key": row.entity_ref, "pinned": row.version_num}
            children.setdefault(row.version_id, []).append(child)
        media = await self._export.media_of(connection, versions)
        for row in page:
            if row.kind != Kind.COMPONENT:
                data = orjson.dumps(_container(row, children.get(row.version_id, [])))
                name = f"containers/{row.kind}/{folder_name(row.code)}.json"
                yield Entry(name, row.created, data)
                continue
            for file in sorted(media.get(row.version_id, ()), key=lambda file: file.path):
                if (row.version_id, file.path) not in same:
                    folder = f"components/{row.type}/{folder_name(row.code)}"
                    yield Entry(f"{folder}/{file.path}", row.created, file.data)

    def _about(self, publication: Publication) -> dict[str, Any]:
        source = self._source
        return {
            "key": source.library.key,
            "title": publication.title,
            "description": publication.description,
            "license": publication.license,
            "number": source.number,
            "start_number": source.start,
            "created": source.created.astimezone(UTC),
            "published": publication.created.astimezone(UTC),
            "publication": str(publication.id),
        }

    async def _index(self) -> AsyncIterator[bytes]:
        """A line for every unit of the version, and for each that the start had and it has not."""
        connection = await self._session.connection()
        async with connection.stream(_INDEX, self._source.values()) as rows:
            async for page in rows.partitions(PAGE):
                yield b"".join(orjson.dumps(dict(row._mapping)) + b"\n" for row in page)
        if self._source.start is not None:
            async with connection.stream(_REMOVED, self._source.values()) as rows:
                async for page in rows.partitions(PAGE):
                    lines = ({"entity_ref": row.entity_ref, "removed": True} for row in page)
                    yield b"".join(orjson.dumps(line) + b"\n" for line in lines)


def _container(row: Row[Any], children: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "key": row.entity_ref,
        "kind": row.kind,
        "title": row.title,
        "uuid": str(row.uuid),
        "version_num": row.version_num,
        "children": children,
    }
