"""From the path of a request to what it names: library, block, and the right to touch them.

The order is the contract's: who calls (401), whether the key is one and its library is there
(404), whether the caller may (403). Bodies are looked at afterwards. contract: libraries §2.4
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from fastapi import Depends

from services.libraries import arrivals
from services.libraries.errors import BlockUnknown
from services.libraries.keys import REMEMBERED, ItemKey, parse_item_key, parse_usage_key
from services.libraries.libraries import Hold
from services.libraries.models import Entity, Library
from services.libraries.states import Kind, Permission, component_ref
from shared.callers import Caller, CallerDep
from shared.database import SessionDep
from shared.lookups import LookupDep, Source


@dataclass(frozen=True, slots=True)
class Block:
    """A component or container, and the library it is in."""

    library: Library
    entity: Entity
    live: bool = True


LOOKING = {Permission.VIEW, Permission.VIEW_TEAM}


def changes(permission: Permission) -> bool:
    """Whether a library is changed with this, and has to stay meanwhile."""
    return permission not in LOOKING


def hold_for(permission: Permission) -> Hold | None:
    return Hold.STAYS if changes(permission) else None


@lru_cache(maxsize=REMEMBERED)
def component_of(text: str) -> tuple[str, str]:
    """The key of a component's library, and its ref in it. Raises BlockUnknown."""
    key = parse_usage_key(text)
    return str(key.lib_key), component_ref(key.block_type, key.usage_id)


def container_of(text: str) -> ItemKey:
    """Raises BlockUnknown."""
    key = parse_item_key(text)
    if key.kind is Kind.COMPONENT:
        raise BlockUnknown
    return key


class LibraryFor:
    """The library of the path, for callers with a permission."""

    def __init__(self, permission: Permission) -> None:
        self._permission = permission

    async def __call__(self, lib_key: str, caller: CallerDep, session: SessionDep) -> Library:
        return await self.find(lib_key, caller, session)

    async def find(self, lib_key: str, caller: Caller, source: Source) -> Library:
        return await arrivals.library(
            source, lib_key, caller, self._permission, holds=changes(self._permission)
        )


class LibraryToRead:
    """The same for a request that only reads."""

    def __init__(self, permission: Permission) -> None:
        self._wanted = LibraryFor(permission)

    async def __call__(self, lib_key: str, caller: CallerDep, lookups: LookupDep) -> Library:
        return await self._wanted.find(lib_key, caller, lookups)


class BlockFor:
    """The block of the path, for callers with a permission on its library."""

    def __init__(self, permission: Permission, *, deleted: bool = False) -> None:
        self._permission, self._deleted = permission, deleted

    async def __call__(self, usage_key: str, caller: CallerDep, session: SessionDep) -> Block:
        return await self.find(usage_key, caller, session)

    async def find(self, usage_key: str, caller: Caller, source: Source) -> Block:
        library_key, ref = component_of(usage_key)
        found = await arrivals.item(
            source,
            library_key,
            ref,
            caller,
            self._permission,
            holds=changes(self._permission),
            deleted=self._deleted,
        )
        return Block(*found)


class BlockToRead:
    """The same for a request that only reads."""

    def __init__(self, permission: Permission, *, deleted: bool = False) -> None:
        self._wanted = BlockFor(permission, deleted=deleted)

    async def __call__(self, usage_key: str, caller: CallerDep, lookups: LookupDep) -> Block:
        return await self._wanted.find(usage_key, caller, lookups)


class ContainerFor:
    """The container of the path, for callers with a permission on its library."""

    def __init__(self, permission: Permission, *, deleted: bool = False) -> None:
        self._permission, self._deleted = permission, deleted

    async def __call__(self, container_key: str, caller: CallerDep, session: SessionDep) -> Block:
        return await self.find(container_key, caller, session)

    async def find(self, container_key: str, caller: Caller, source: Source) -> Block:
        key = container_of(container_key)
        library, entity, live = await arrivals.item(
            source,
            key.library_key,
            key.ref,
            caller,
            self._permission,
            holds=changes(self._permission),
            deleted=self._deleted,
        )
        if entity.kind is not key.kind:
            raise BlockUnknown
        return Block(library, entity, live)


class ContainerToRead:
    """The same for a request that only reads."""

    def __init__(self, permission: Permission, *, deleted: bool = False) -> None:
        self._wanted = ContainerFor(permission, deleted=deleted)

    async def __call__(self, container_key: str, caller: CallerDep, lookups: LookupDep) -> Block:
        return await self._wanted.find(container_key, caller, lookups)


ViewLibrary = Annotated[Library, Depends(LibraryToRead(Permission.VIEW))]
EditLibrary = Annotated[Library, Depends(LibraryFor(Permission.EDIT))]
PublishLibrary = Annotated[Library, Depends(LibraryFor(Permission.PUBLISH))]
ViewBlock = Annotated[Block, Depends(BlockToRead(Permission.VIEW))]
EditBlock = Annotated[Block, Depends(BlockFor(Permission.EDIT))]
PublishBlock = Annotated[Block, Depends(BlockFor(Permission.PUBLISH, deleted=True))]
ViewBlockEver = Annotated[Block, Depends(BlockToRead(Permission.VIEW, deleted=True))]
EditBlockEver = Annotated[Block, Depends(BlockFor(Permission.EDIT, deleted=True))]
ViewContainer = Annotated[Block, Depends(ContainerToRead(Permission.VIEW))]
CopyContainer = Annotated[Block, Depends(ContainerFor(Permission.VIEW))]
EditContainer = Annotated[Block, Depends(ContainerFor(Permission.EDIT))]
PublishContainer = Annotated[Block, Depends(ContainerFor(Permission.PUBLISH))]
ViewContainerEver = Annotated[Block, Depends(ContainerToRead(Permission.VIEW, deleted=True))]
EditContainerEver = Annotated[Block, Depends(ContainerFor(Permission.EDIT, deleted=True))]
