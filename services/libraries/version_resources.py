"""Library versions, publications and exporters as general tasks act on them.

contract: dispatcher §6.7 to §6.9
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints
from sqlalchemy import func, text, tuple_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.general import Action, Call, Claims, GivenFile
from services.libraries import export_names, export_places, library_versions
from services.libraries.errors import FieldRefused, Superseded
from services.libraries.models import (
    Export,
    Exporter,
    Library,
    LibraryVersion,
    Publication,
)
from services.libraries.resources import LONGEST_NUMBER, V2, OfLibrary, Strict, added, counted
from services.libraries.schemas import Plain
from services.libraries.states import ExportFormat, Permission
from shared.database import utc_now

Number = Annotated[int, Field(ge=0, le=library_versions.LARGEST)]


def version_href(library_key: str, number: int) -> str:
    return f"{V2}/{library_key}/versions/{number}/"


def export_href(library_key: str, ident: UUID) -> str:
    return f"{V2}/{library_key}/exports/{ident}/"


def uuids_of(idents: Sequence[str]) -> dict[str, UUID]:
    """Those that are UUIDs."""
    found: dict[str, UUID] = {}
    for ident in idents:
        with suppress(ValueError):
            found[ident] = UUID(ident)
    return found


class Nothing(Strict):
    """What is not made by a general task has no fields."""


class Versions(OfLibrary):
    """Library versions, as `lib:ORG:SLUG:NUMBER`. They are made by tasks of their own."""

    name, label = "versions", "libraries.LibraryVersion"
    schema, actions = Nothing, frozenset({Action.DELETE})
    permission = Permission.PUBLISH

    def ident(self, thing: tuple[Library, LibraryVersion]) -> str:
        return f"{thing[0].key}:{thing[1].number}"

    def href(self, ident: str) -> str:
        key, _, number = ident.rpartition(":")
        return version_href(key, int(number))

    async def find_many(
        self, session: AsyncSession, idents: Sequence[str]
    ) -> dict[str, tuple[Library, LibraryVersion]]:
        names: dict[tuple[str, int], str] = {}
        for ident in idents:
            key, _, number = ident.rpartition(":")
            good = number.isascii() and number.isdecimal() and len(number) <= LONGEST_NUMBER
            if good and "\x00" not in key and int(number) <= library_versions.LARGEST:
                names[key, int(number)] = ident
        found = await session.exec(
            select(Library, LibraryVersion)
            .join(LibraryVersion, col(LibraryVersion.library_id) == col(Library.id))
            .where(tuple_(col(Library.key), col(LibraryVersion.number)).in_(names))
        )
        return {
            names[library.key, version.number]: (library, version) for library, version in found
        }

    def known_library(self, subject: Any) -> Library | None:
        library: Library = subject[0]
        return library

    async def delete(self, call: Call, thing: tuple[Library, LibraryVersion]) -> dict[str, int]:
        await library_versions.delete(call.session, *thing)
        return {self.label: 1}

    async def show(
        self, session: AsyncSession, thing: tuple[Library, LibraryVersion]
    ) -> dict[str, Any]:
        library, version = thing
        query = select(Publication.id).where(col(Publication.version_id) == version.id)
        return self.view(library, version, (await session.exec(query)).first())

    def view(
        self, library: Library, version: LibraryVersion, publication: UUID | None
    ) -> dict[str, Any]:
        base = version.base_number
        return self.described(
            (library, version), version.created, library=library.key, number=version.number,
            base_version=version_href(library.key, base) if base is not None else None,
            content_summary={
                "present": version.present, "added": version.added, "removed": version.removed,
            },
            publication=PUBLICATIONS.href(str(publication)) if publication else None,
            created_by=version.created_by,
        )  # fmt: skip


class NewPublication(Strict):
    library: Plain
    number: Number


class Publications(OfLibrary):
    """Published library versions: kept for good, until the publication is deleted."""

    name, label = "publications", "libraries.Publication"
    schema = NewPublication
    permission = Permission.PUBLISH

    def ident(self, thing: Publication) -> str:
        return str(thing.id)

    async def find_many(
        self, session: AsyncSession, idents: Sequence[str]
    ) -> dict[str, Publication]:
        ids = uuids_of(idents)
        found = await session.exec(select(Publication).where(col(Publication.id).in_(ids.values())))
        by_id = {one.id: one for one in found}
        return {ident: by_id[known] for ident, known in ids.items() if known in by_id}

    async def create(self, call: Call, values: Any, file: GivenFile | None) -> Publication:
        library = await self.library_of(call.session, values)
        version = await library_versions.get(call.session, library, values.number)
        return await library_versions.publish(
            call.session, library, version, user=call.caller.username, now=utc_now()
        )

    async def delete(self, call: Call, thing: Publication) -> dict[str, int]:
        await call.session.delete(thing)
        await call.session.flush()
        return {self.label: 1}

    async def show(self, session: AsyncSession, thing: Publication) -> dict[str, Any]:
        library = await self.library_of(session, thing)
        version = await session.get(LibraryVersion, thing.version_id)
        assert version is not None
        return self.described(
            thing, thing.created, library=library.key, number=version.number,
            repository_version=version_href(library.key, version.number), title=thing.title,
            description=thing.description, license=thing.license, created_by=thing.created_by,
        )  # fmt: skip


class ExporterFields(Strict):
    name: Annotated[Plain, StringConstraints(min_length=1, max_length=255)]
    path: Annotated[Plain, AfterValidator(export_names.checked)]
    format: ExportFormat = ExportFormat.TREE


class NewExporter(ExporterFields):
    library: Plain


_HOLD = text("update exporter set fence = :fence where id = :id and fence <= :fence")

_THERE = text("select exists (select from exporter where id = :id)")


async def hold_exporter(session: AsyncSession, exporter: Exporter, fence: int) -> None:
    """Lock an exporter, if it is still there, for dispatched work that claimed it alone.

    Raises Superseded.
    """
    connection = await session.connection()
    held = await connection.execute(_HOLD, {"id": exporter.id, "fence": fence})
    if held.rowcount == 0 and (await connection.execute(_THERE, {"id": exporter.id})).scalar():
        raise Superseded("Other work has used the exporter since this one lost its lock.")


class Exporters(OfLibrary):
    """Where and how a library's versions are exported."""

    name, label = "exporters", "libraries.Exporter"
    schema, changes = NewExporter, ExporterFields
    taken = "This name is taken in the library."

    def ident(self, thing: Exporter) -> str:
        return str(thing.id)

    async def find_many(self, session: AsyncSession, idents: Sequence[str]) -> dict[str, Exporter]:
        ids = uuids_of(idents)
        found = await session.exec(select(Exporter).where(col(Exporter.id).in_(ids.values())))
        by_id = {one.id: one for one in found}
        return {ident: by_id[known] for ident, known in ids.items() if known in by_id}

    async def claims(self, call: Call, action: Action, subjects: Sequence[Any]) -> Claims:
        mine = await self.libraries_of(call.session, subjects)
        things = [] if action is Action.CREATE else subjects
        return Claims(
            exclusive=[self.prn(self.ident(thing)) for thing in things],
            shared=[library.key for library in mine.values()],
        )

    async def hold(self, call: Call, action: Action, subject: Any) -> None:
        """The exporter's own row decides: whoever comes second sees what the first has done."""
        if action is not Action.CREATE:
            await hold_exporter(call.session, subject, call.fence)

    async def create(self, call: Call, values: Any, file: GivenFile | None) -> Exporter:
        library = await self.library_of(call.session, values)
        exporter = Exporter(
            library_id=library.id, name=values.name, path=values.path, format=values.format,
            created=utc_now(), created_by=call.caller.username,
        )  # fmt: skip
        return await added(call.session, exporter, "name", self.taken)

    async def values(self, session: AsyncSession, thing: Exporter) -> dict[str, Any]:
        return {"name": thing.name, "path": thing.path, "format": thing.format}

    async def update(self, call: Call, thing: Exporter, values: Any) -> Exporter:
        query = select(Exporter.id).where(
            col(Exporter.library_id) == thing.library_id,
            col(Exporter.name) == values.name,
            col(Exporter.id) != thing.id,
        )
        if (await call.session.exec(query)).first() is not None:
            raise FieldRefused("name", self.taken)
        for name, value in values.model_dump().items():
            setattr(thing, name, value)
        await call.session.flush()
        return thing

    async def delete(self, call: Call, thing: Exporter) -> dict[str, int]:
        counting = select(func.count()).where(col(Export.exporter_id) == thing.id)
        count = (await call.session.exec(counting)).one()
        await export_places.clear_all(call.session, call.files, thing)
        await call.session.delete(thing)
        await call.session.flush()
        return counted({self.label: 1, "libraries.Export": count})

    async def show(self, session: AsyncSession, thing: Exporter) -> dict[str, Any]:
        library = await self.library_of(session, thing)
        values = await self.values(session, thing)
        return self.described(thing, thing.created, library=library.key, **values)


VERSIONS, PUBLICATIONS, EXPORTERS = Versions(), Publications(), Exporters()
