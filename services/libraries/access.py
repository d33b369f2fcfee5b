"""From the path of a request to what it names: library, block, and the right to touch them.

The order is the contract's: who calls (401), whether the key is one and its library is there
(404), whether the caller may (403). Bodies are looked at afterwards. contract: libraries §2.4

A library that is not only looked at is not deleted before the request has ended.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from services.libraries import entities, libraries, permissions
from services.libraries.errors import BlockUnknown
from services.libraries.keys import parse_item_key, parse_usage_key
from services.libraries.libraries import Hold
from services.libraries.models import Entity, Library
from services.libraries.states import Kind, Permission, component_ref
from shared.callers import CallerDep
from shared.database import SessionDep


@dataclass(frozen=True, slots=True)
class Block:
    """A component or container, and the library it is in."""

    library: Library
    entity: Entity


LOOKING = {Permission.VIEW, Permission.VIEW_TEAM}


def hold_for(permission: Permission) -> Hold | None:
    return None if permission in LOOKING else Hold.STAYS


class LibraryFor:
    """The library of the path, for callers with a permission."""

    def __init__(self, permission: Permission) -> None:
        self._permission = permission

    async def __call__(self, lib_key: str, caller: CallerDep, session: SessionDep) -> Library:
        library = await libraries.get(session, lib_key, hold_for(self._permission))
        await permissions.require(session, library, caller, self._permission)
        return library


class BlockFor:
    """The block of the path, for callers with a permission on its library."""

    def __init__(self, permission: Permission, *, deleted: bool = False) -> None:
        self._permission, self._deleted = permission, deleted

    async def __call__(self, usage_key: str, caller: CallerDep, session: SessionDep) -> Block:
        key = parse_usage_key(usage_key)
        hold = hold_for(self._permission)
        library = await libraries.get(session, str(key.lib_key), hold)
        await permissions.require(session, library, caller, self._permission)
        ref = component_ref(key.block_type, key.usage_id)
        entity = await entities.get(session, library, ref, deleted=self._deleted)
        return Block(library, entity)


class ContainerFor:
    """The container of the path, for callers with a permission on its library."""

    def __init__(self, permission: Permission, *, deleted: bool = False) -> None:
        self._permission, self._deleted = permission, deleted

    async def __call__(self, container_key: str, caller: CallerDep, session: SessionDep) -> Block:
        key = parse_item_key(container_key)
        if key.kind is Kind.COMPONENT:
            raise BlockUnknown
        library = await libraries.get(session, key.library_key, hold_for(self._permission))
        await permissions.require(session, library, caller, self._permission)
        entity = await entities.get(session, library, key.ref, deleted=self._deleted)
        if entity.kind is not key.kind:
            raise BlockUnknown
        return Block(library, entity)


ViewLibrary = Annotated[Library, Depends(LibraryFor(Permission.VIEW))]
EditLibrary = Annotated[Library, Depends(LibraryFor(Permission.EDIT))]
PublishLibrary = Annotated[Library, Depends(LibraryFor(Permission.PUBLISH))]
ViewBlock = Annotated[Block, Depends(BlockFor(Permission.VIEW))]
EditBlock = Annotated[Block, Depends(BlockFor(Permission.EDIT))]
PublishBlock = Annotated[Block, Depends(BlockFor(Permission.PUBLISH, deleted=True))]
ViewBlockEver = Annotated[Block, Depends(BlockFor(Permission.VIEW, deleted=True))]
EditBlockEver = Annotated[Block, Depends(BlockFor(Permission.EDIT, deleted=True))]
ViewContainer = Annotated[Block, Depends(ContainerFor(Permission.VIEW))]
EditContainer = Annotated[Block, Depends(ContainerFor(Permission.EDIT))]
PublishContainer = Annotated[Block, Depends(ContainerFor(Permission.PUBLISH))]
ViewContainerEver = Annotated[Block, Depends(ContainerFor(Permission.VIEW, deleted=True))]
EditContainerEver = Annotated[Block, Depends(ContainerFor(Permission.EDIT, deleted=True))]
