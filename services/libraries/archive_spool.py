"""The entities of an archive that is being read, on disk until they are asked for."""

import asyncio
import io
import pickle
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from services.libraries.archive_contents import ArchivedEntity
from services.libraries.entries import Unpacked, read, scratch_database
from services.libraries.states import Kind

_TABLE = """
    create table entity (
      key text primary key, kind text, is_draft integer, data blob, file text)
"""
_FILES = "files"


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file of the archive; called, it is read piece by piece."""

    files: Unpacked
    name: str

    async def __call__(self) -> AsyncIterator[bytes]:
        pieces = self.files.chunks(self.name)
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece

    @property
    def size(self) -> int:
        return self.files.size(self.name)

    def read(self) -> bytes:
        return read(self.files, self.name)


class EntitySpool:
    """In the order in which they were added; their files are read from where they are."""

    def __init__(self, files: Unpacked) -> None:
        self._files = files
        self._database = scratch_database()
        self._database.execute(_TABLE)

    def close(self) -> None:
        self._database.close()

    def add(self, entity: ArchivedEntity, file: str) -> bool:
        """False, and nothing is kept, when there is one of this key."""
        kind = kind_of(entity).value
        row = (entity.key, kind, entity.draft_num is not None, self._written(entity), file)
        query = "insert into entity values (?, ?, ?, ?, ?) on conflict do nothing"
        return self._database.execute(query, row).rowcount == 1

    def __iter__(self) -> Iterator[ArchivedEntity]:
        return self._entities("true", "")

    def __len__(self) -> int:
        return self._number("select count(*) from entity")

    def of_kind(self, kind: Kind) -> Iterator[ArchivedEntity]:
        return self._entities("kind = ?", kind.value)

    def containers(self) -> Iterator[ArchivedEntity]:
        return self._entities("kind != ?", Kind.COMPONENT.value)

    def count(self, kind: Kind) -> int:
        return self._number("select count(*) from entity where kind = ?", kind.value)

    def count_drafts(self) -> int:
        return self._number("select count(*) from entity where is_draft")

    def get(self, key: str) -> ArchivedEntity | None:
        query = "select data from entity where key = ?"
        row = self._database.execute(query, (key,)).fetchone()
        return self._entity(row[0]) if row else None

    def file(self, key: str) -> str:
        """The name of the file that describes it."""
        row = self._database.execute("select file from entity where key = ?", (key,)).fetchone()
        return str(row[0]) if row else key

    def kind(self, key: str) -> Kind | None:
        row = self._database.execute("select kind from entity where key = ?", (key,)).fetchone()
        return Kind(row[0]) if row else None

    def _entities(self, which: str, value: str) -> Iterator[ArchivedEntity]:
        query = f"select data from entity where {which} order by rowid"
        values = (value,) if value else ()
        for (data,) in self._database.execute(query, values):
            yield self._entity(data)

    def _number(self, query: str, *values: str) -> int:
        number: int = self._database.execute(query, values).fetchone()[0]
        return number

    # As bytes: the archive's files are named in them, not written.

    def _written(self, entity: ArchivedEntity) -> bytes:
        out = io.BytesIO()
        pickler = pickle.Pickler(out, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = lambda value: _FILES if value is self._files else None  # type: ignore[method-assign]
        pickler.dump(entity)
        return out.getvalue()

    def _entity(self, data: bytes) -> ArchivedEntity:
        unpickler = pickle.Unpickler(io.BytesIO(data))  # noqa: S301  # our own bytes
        unpickler.persistent_load = lambda _: self._files  # type: ignore[method-assign]
        entity: ArchivedEntity = unpickler.load()
        return entity


def kind_of(entity: ArchivedEntity) -> Kind:
    return Kind(entity.container_type) if entity.container_type else Kind.COMPONENT
