"""Libraries, collections and components as general tasks act on them. contract: dispatcher §6"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import tuple_
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.general import (
    Action,
    Call,
    Claims,
    GivenFile,
    InstanceUnknown,
    Resource,
    Thing,
)
from services.libraries import (
    collections,
    components,
    drafts,
    entities,
    libraries,
    library_versions,
    olx,
    orgs,
    permissions,
    publishing,
)
from services.libraries.errors import BlockUnknown, FieldRefused, LibraryUnknown, Superseded
from services.libraries.keys import library_key, parse_usage_key, usage_key
from services.libraries.models import Collection, Draft, Entity, Library
from services.libraries.schemas import (
    BlockType,
    Description,
    LibraryCreation,
    License,
    Plain,
    Slug,
    Title,
)
from services.libraries.settings import Settings
from services.libraries.states import Permission, collection_code_is_valid, component_ref
from shared.database import utc_now
from shared.files import Files
from shared.problems import BadInput

V2 = "/api/libraries/v2"
NO_LIBRARY = "There is no such library."
LARGEST_KEPT = 10_000
LONGEST_NUMBER = 18


def moment(value: datetime | None) -> str | None:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if value else None


def resource_href(name: str, ident: str) -> str:
    return f"{V2}/resources/{name}/{ident}/"


async def library_named(session: AsyncSession, key: str) -> Library:
    """The library that a field names. Raises BadInput."""
    try:
        return await libraries.get(session, key)
    except LibraryUnknown:
        raise BadInput(f"library: {NO_LIBRARY}", fields={"library": [NO_LIBRARY]}) from None


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Component:
    """A live component and the library it is in."""

    library: Library
    entity: Entity


async def added(session: AsyncSession, thing: Thing, field: str, message: str) -> Thing:
    """The row, stored. Raises FieldRefused when there is one like it."""
    try:
        async with session.begin_nested():
            session.add(thing)
    except IntegrityError as error:
        raise FieldRefused(field, message) from error
    return thing


def counted(rows: dict[str, int]) -> dict[str, int]:
    return {label: count for label, count in rows.items() if count}


class OfLibrary(Resource[Any]):
    """A kind of thing inside a library: changed under the library's own lock and fence."""

    permission = Permission.EDIT

    def href(self, ident: str) -> str:
        return resource_href(self.name, ident)

    async def libraries_of(
        self, session: AsyncSession, subjects: Sequence[Any]
    ) -> dict[int, Library]:
        """By their ids: the libraries of things, or of the values of a new one.

        Raises InstanceUnknown when one has gone meanwhile, with what was in it.
        """
        found: list[Library] = []
        ids: set[int] = set()
        for subject in subjects:
            if isinstance(subject, BaseModel) and hasattr(subject, "library"):
                found.append(await library_named(session, subject.library))
            elif (library := self.known_library(subject)) is not None:
                found.append(library)
            else:
                ids.add(subject.library_id)
        if ids:
            found += await session.exec(select(Library).where(col(Library.id).in_(ids)))
        by_id = {library.id: library for library in found}
        if not ids <= by_id.keys():
            raise InstanceUnknown("Its library has just been deleted.")
        return by_id

    def known_library(self, subject: Any) -> Library | None:
        """Where a thing has its library with it."""
        return None

    async def library_of(self, session: AsyncSession, subject: Any) -> Library:
        [library] = (await self.libraries_of(session, [subject])).values()
        return library

    async def permit(self, call: Call, action: Action | None, subjects: Sequence[Any]) -> None:
        wanted = Permission.VIEW if action is None else self.permission
        mine = [*(await self.libraries_of(call.session, subjects)).values()]
        await permissions.require_all(call.session, mine, call.caller, wanted)

    async def claims(self, call: Call, action: Action, subjects: Sequence[Any]) -> Claims:
        mine = await self.libraries_of(call.session, subjects)
        return Claims(exclusive=[library.key for library in mine.values()])

    async def hold(self, call: Call, action: Action, subject: Any) -> None:
        library = await self.library_of(call.session, subject)
        try:
            await publishing.hold(call.session, library, call.fence)
        except Superseded:
            # Gone with all that was in it, which its caller is about to see.
            if await libraries.find(call.session, library.key) is not None:
                raise

    def described(self, thing: Any, created: datetime, **values: Any) -> dict[str, Any]:
        ident = self.ident(thing)
        return {
            "pulp_href": self.href(ident),
            "prn": self.prn(ident),
            "pulp_created": moment(created),
            **values,
        }


# Libraries


class LibraryFields(Strict):
    title: Title
    description: Description
    allow_public_learning: bool = False
    allow_public_read: bool = False
    license: License = ""
    retain_repo_versions: Annotated[int | None, Field(ge=1, le=LARGEST_KEPT)] = None


class NewLibrary(LibraryCreation):
    retain_repo_versions: Annotated[int | None, Field(ge=1, le=LARGEST_KEPT)] = None


class Libraries(OfLibrary):
    """Whole libraries."""

    name, label = "libraries", "libraries.Library"
    schema, changes = NewLibrary, LibraryFields

    def ident(self, thing: Library) -> str:
        return thing.key

    def href(self, ident: str) -> str:
        return f"{V2}/{ident}/"

    async def find_many(self, session: AsyncSession, idents: Sequence[str]) -> dict[str, Library]:
        keys = [ident for ident in idents if "\x00" not in ident]
        query = select(Library).where(col(Library.key).in_(keys), col(Library.staged_at).is_(None))
        found = await session.exec(query)
        return {library.key: library for library in found}

    def known_library(self, subject: Any) -> Library | None:
        assert isinstance(subject, Library)
        return subject

    async def permit(self, call: Call, action: Action | None, subjects: Sequence[Any]) -> None:
        if action is Action.CREATE:
            assert isinstance(call.settings, Settings)
            await permissions.require_create(call.session, call.caller, call.settings)
            for org in dict.fromkeys(new.org for new in subjects):
                await orgs.require(call.session, call.caller, org, call.settings)
            return
        wanted = {
            None: Permission.VIEW,
            Action.UPDATE: Permission.EDIT,
            Action.DELETE: Permission.DELETE_LIBRARY,
        }[action]
        await permissions.require_all(call.session, subjects, call.caller, wanted)

    async def claims(self, call: Call, action: Action, subjects: Sequence[Any]) -> Claims:
        if action is Action.CREATE:
            return Claims(exclusive=[library_key(new.org, new.slug) for new in subjects])
        return await super().claims(call, action, subjects)

    async def hold(self, call: Call, action: Action, subject: Any) -> None:
        if action is Action.DELETE:
            await libraries.find(call.session, subject.key, libraries.Hold.GOES)
        if action is not Action.CREATE:
            await super().hold(call, action, subject)

    async def create(self, call: Call, values: Any, file: GivenFile | None) -> Library:
        given = values.model_dump()
        retained = given.pop("retain_repo_versions")
        library = await libraries.create(
            call.session, **given, user=call.caller.username, now=utc_now()
        )
        library.retain_versions = retained
        return library

    async def values(self, session: AsyncSession, thing: Library) -> dict[str, Any]:
        names = set(LibraryFields.model_fields) - {"retain_repo_versions"}
        now = {name: getattr(thing, name) for name in names}
        return now | {"retain_repo_versions": thing.retain_versions}

    async def update(self, call: Call, thing: Library, values: Any) -> Library:
        given = values.model_dump()
        thing.retain_versions = given.pop("retain_repo_versions")
        changes = {name: new for name, new in given.items() if getattr(thing, name) != new}
        library = await libraries.update(call.session, thing, changes, now=utc_now())
        await library_versions.trim(call.session, library)
        return library

    async def delete(self, call: Call, thing: Library) -> dict[str, int]:
        await libraries.delete(call.session, thing)
        return {self.label: 1}

    async def after_delete(self, files: Files, thing: Library) -> None:
        await libraries.delete_files(files, thing)

    async def show(self, session: AsyncSession, thing: Library) -> dict[str, Any]:
        values = await self.values(session, thing)
        return self.described(
            thing, thing.created, id=thing.key, org=thing.org, slug=thing.slug, **values
        )


# Collections


def _code(value: str) -> str:
    if not collection_code_is_valid(value):
        raise ValueError("Not a valid code.")
    return value


class CollectionFields(Strict):
    title: Title
    description: Description = ""
    enabled: bool = True


class NewCollection(CollectionFields):
    library: Plain
    key: Annotated[Plain, AfterValidator(_code)]


class Collections(OfLibrary):
    """Groups of entities. Deleting one here is for good."""

    name, label = "collections", "libraries.Collection"
    schema, changes = NewCollection, CollectionFields

    def ident(self, thing: Collection) -> str:
        return f"{thing.id}"

    async def find_many(
        self, session: AsyncSession, idents: Sequence[str]
    ) -> dict[str, Collection]:
        ids = {
            ident: int(ident)
            for ident in idents
            if ident.isascii() and ident.isdecimal() and len(ident) <= LONGEST_NUMBER
        }
        found = await session.exec(select(Collection).where(col(Collection.id).in_(ids.values())))
        by_id = {collection.id: collection for collection in found}
        return {ident: by_id[number] for ident, number in ids.items() if number in by_id}

    async def create(self, call: Call, values: Any, file: GivenFile | None) -> Collection:
        library = await self.library_of(call.session, values)
        return await collections.create(
            call.session, library, code=values.key, title=values.title, enabled=values.enabled,
            description=values.description, user=call.caller.username,
            user_id=call.caller.user_id, now=utc_now(),
        )  # fmt: skip

    async def values(self, session: AsyncSession, thing: Collection) -> dict[str, Any]:
        return {name: getattr(thing, name) for name in CollectionFields.model_fields}

    async def update(self, call: Call, thing: Collection, values: Any) -> Collection:
        library = await self.library_of(call.session, thing)
        given = values.model_dump().items()
        changes = {name: new for name, new in given if getattr(thing, name) != new}
        await collections.update(call.session, library, thing, changes, now=utc_now())
        return thing

    async def delete(self, call: Call, thing: Collection) -> dict[str, int]:
        library = await self.library_of(call.session, thing)
        count = await collections.remove_for_good(call.session, library, thing)
        return counted({self.label: 1, "libraries.CollectionMember": count})

    async def show(self, session: AsyncSession, thing: Collection) -> dict[str, Any]:
        library = await self.library_of(session, thing)
        return self.described(
            thing, thing.created, library=library.key, key=thing.code,
            **await self.values(session, thing),
        )  # fmt: skip


# Components


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("Null characters are not allowed.")
    return value


# A task's arguments are small; longer texts come as temporary files.
Olx = Annotated[
    str, StringConstraints(min_length=1, max_length=200_000), AfterValidator(_without_nul)
]


class ComponentFields(Strict):
    olx: Olx


class NewComponent(Strict):
    library: Plain
    block_type: BlockType
    definition_id: Annotated[Slug, StringConstraints(max_length=255)]
    can_stand_alone: bool = True
    olx: Olx | None = None


class Components(OfLibrary):
    """Live components, by their usage keys. Deleting one deletes its draft."""

    name, label = "components", "libraries.Component"
    schema, changes = NewComponent, ComponentFields
    from_file = True

    def ident(self, thing: Component) -> str:
        library, entity = thing.library, thing.entity
        return usage_key(library.org, library.slug, entity.type, entity.code)

    async def find_many(self, session: AsyncSession, idents: Sequence[str]) -> dict[str, Component]:
        names: dict[tuple[str, str], str] = {}
        for ident in idents:
            with suppress(BlockUnknown):
                key = parse_usage_key(ident)
                names[str(key.lib_key), component_ref(key.block_type, key.usage_id)] = ident
        found = await session.exec(
            select(Library, Entity)
            .join(Entity, col(Entity.library_id) == col(Library.id))
            .join(Draft, col(Draft.entity_id) == col(Entity.id))
            .where(
                tuple_(col(Library.key), col(Entity.entity_ref)).in_(names),
                col(Draft.version_id).is_not(None),
            )
        )
        return {
            names[library.key, entity.entity_ref]: Component(library, entity)
            for library, entity in found
        }

    def known_library(self, subject: Any) -> Library | None:
        return subject.library if isinstance(subject, Component) else None

    async def create(self, call: Call, values: Any, file: GivenFile | None) -> Component:
        assert isinstance(call.settings, Settings)
        library = await self.library_of(call.session, values)
        limits = call.settings.olx_limits
        text = await _olx_of(call.files, file, limits.bytes) if file is not None else values.olx
        content = None
        if text is not None:
            content = olx.parse(text, block_type=values.block_type, limits=limits)
        entity = await components.create(
            call.session, library, block_type=values.block_type, code=values.definition_id,
            can_stand_alone=values.can_stand_alone, most=call.settings.most_blocks,
            user=call.caller.username, now=utc_now(), content=content,
            allowed=call.settings.allowed_types,
        )  # fmt: skip
        return Component(library, entity)

    async def values(self, session: AsyncSession, thing: Component) -> dict[str, Any]:
        return {"olx": await components.get_olx(session, thing.entity)}

    async def update(self, call: Call, thing: Component, values: Any) -> Component:
        assert isinstance(call.settings, Settings)
        await components.set_olx(
            call.session, thing.library, thing.entity, values.olx, user=call.caller.username,
            now=utc_now(), limits=call.settings.olx_limits,
        )  # fmt: skip
        return thing

    async def delete(self, call: Call, thing: Component) -> dict[str, int]:
        await drafts.delete(
            call.session, thing.library, thing.entity, user=call.caller.username, now=utc_now()
        )
        return {self.label: 1}

    async def show(self, session: AsyncSession, thing: Component) -> dict[str, Any]:
        row = await entities.show(session, thing.entity.id)
        return self.described(
            thing, row.created, id=self.ident(thing), display_name=row.title,
            block_type=row.type, version_num=row.version_num,
            content_href=resource_href("content", str(row.version_uuid)),
            can_stand_alone=row.can_stand_alone, **await self.values(session, thing),
        )  # fmt: skip


async def _olx_of(files: Files, file: GivenFile, most: int) -> str:
    if file.size > most:
        raise BadInput(f"The file has more than {most} bytes.")
    try:
        return (await files.read(file.path)).decode()
    except UnicodeDecodeError:
        raise BadInput("The file is not UTF-8 text.") from None
