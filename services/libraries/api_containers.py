"""Routes of containers and their children. contract: libraries §3.8, §4.11

A caller without permission on the library may not read here by a role in a course (`course_id` of
#40 and #43): tokens carry no rights on single courses, so the parameter is ignored.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse

from services.libraries import containers, drafts, entities, publishing
from services.libraries.access import (
    Block,
    EditContainer,
    EditContainerEver,
    EditLibrary,
    PublishContainer,
    ViewContainer,
    ViewContainerEver,
    ViewLibrary,
)
from services.libraries.api import numbered_page
from services.libraries.containers import Change
from services.libraries.errors import BlockUnknown
from services.libraries.keys import ItemKey, parse_item_key
from services.libraries.models import Library
from services.libraries.schemas import ChildKeys, ChildPin, ContainerChanges, ContainerCreation
from services.libraries.states import Kind, new_code
from services.libraries.views import container_json, item_json
from shared.callers import CallerDep
from shared.database import ReadDep, SessionDep, utc_now
from shared.lookups import LookupDep, Source
from shared.problems import BadInput

router = APIRouter(prefix="/api/libraries/v2", tags=["containers"])
# Of a long list of nonsense, so many places are told.
MOST_NAMED = 100
Position = Annotated[int, Path(ge=0, le=10**9)]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]


@router.get("/{lib_key}/containers/")
async def list_containers(
    request: Request,
    library: ViewLibrary,
    session: ReadDep,
    text_search: str = "",
    container_type: Annotated[list[str], Query()] = [],  # noqa: B006
    published: bool | None = None,
    page: str = "1",
    page_size_text: Annotated[str, Query(alias="page_size")] = "",
) -> JSONResponse:
    """Live containers in the order in which they were made.

    With `published=true` only those that readers see, with `false` only those they do not.
    """

    async def fetch(number: int, size: int) -> tuple[Sequence[Any], int]:
        return await containers.page(
            session, library, size=size, number=number,
            text_search=text_search, types=container_type, published=published,
        )  # fmt: skip

    found = await numbered_page(page, page_size_text, fetch)
    results = await _rows_json(session, library, found.rows)
    return JSONResponse(found.envelope(request, results))


@router.post("/{lib_key}/containers/")
async def create_container(
    library: EditLibrary, body: ContainerCreation, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """A new, empty container. Its key is made out of its name unless `slug` is given."""
    container = await containers.create(
        session, library, kind=Kind(body.container_type_code),
        code=body.slug or new_code(body.display_name), title=body.display_name,
        user=caller.username, now=utc_now(),
    )  # fmt: skip
    return await _shown(session, Block(library, container))


async def _shown(source: Source, container: Block) -> JSONResponse:
    row = await entities.show(source, container.entity.id)
    mine, below = entities.collections_of(row), {row.id} if row.changed_below else set()
    return JSONResponse(container_json(container.library, row, mine, changed_below=below))


async def _rows_json(session: SessionDep, library: Library, rows: Any) -> list[dict[str, Any]]:
    ids = [row.id for row in rows if row.kind != Kind.COMPONENT]
    below = await entities.changed_below(session, ids)
    return [item_json(library, row, changed_below=below) for row in rows]


@router.get("/containers/{container_key}/")
async def get_container(container: ViewContainer, lookups: LookupDep) -> JSONResponse:
    """One live container."""
    return await _shown(lookups, container)


@router.patch("/containers/{container_key}/")
async def rename_container(
    container: EditContainer, body: ContainerChanges, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """A new version with this title and the same children."""
    await containers.rename(
        session, container.library, container.entity, body.display_name,
        user=caller.username, now=utc_now(),
    )  # fmt: skip
    return await _shown(session, container)


@router.delete("/containers/{container_key}/", status_code=204)
async def delete_container(
    container: EditContainer, caller: CallerDep, session: SessionDep
) -> None:
    """Delete the draft. Its children stay, and readers see what is published until that is too."""
    await drafts.delete(
        session, container.library, container.entity, user=caller.username, now=utc_now()
    )


@router.post("/containers/{container_key}/restore/", status_code=204)
async def restore_container(
    container: EditContainerEver, caller: CallerDep, session: SessionDep
) -> None:
    """Bring a deleted container back at its newest version, with its children."""
    await drafts.restore(
        session, container.library, container.entity, user=caller.username, now=utc_now()
    )


@router.post("/containers/{container_key}/publish/")
async def publish_container(
    container: PublishContainer, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """Publish this container and everything below it that differs, deletions included."""
    await publishing.publish(
        session, container.library, [container.entity.id], user=caller.username, now=utc_now()
    )
    return {}


@router.get("/containers/{container_key}/children/")
async def list_children(
    container: ViewContainer, session: ReadDep, published: bool = False
) -> JSONResponse:
    """The children in order: of the draft, or with `published=true` as readers see them.

    Of a child that is pinned this version is shown, whatever became of the child: only then
    there is `pinned_version_num`.
    """
    rows = await containers.children(session, container.entity, published=published)
    return JSONResponse(await _children_json(session, container.library, rows))


async def _children_json(
    session: SessionDep, library: Library, rows: Sequence[Any]
) -> list[dict[str, Any]]:
    shown = await _rows_json(session, library, rows)
    pins = [{"pinned_version_num": row.pin} if row.pin is not None else {} for row in rows]
    return [item | pin for item, pin in zip(shown, pins, strict=True)]


@router.get("/containers/{container_key}/versions/{number}/children/")
async def list_children_of_version(
    container: ViewContainerEver, number: Number, session: ReadDep, published: bool = False
) -> JSONResponse:
    """The children of one version of a container, also of a deleted one that is pinned somewhere.

    Children that are not pinned are shown as they are now.
    """
    rows = await containers.children(session, container.entity, published=published, number=number)
    return JSONResponse(await _children_json(session, container.library, rows))


@router.post("/containers/{container_key}/children/")
async def append_children(
    container: EditContainer, body: ChildKeys, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """Add children at the end, in this order."""
    return await _change(container, Change.APPEND, body, caller, session)


@router.patch("/containers/{container_key}/children/")
async def replace_children(
    container: EditContainer, body: ChildKeys, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """Exactly these children in this order; deleted ones that were in the list go for good."""
    return await _change(container, Change.REPLACE, body, caller, session)


@router.delete("/containers/{container_key}/children/")
async def remove_children(
    container: EditContainer, body: ChildKeys, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """Remove every occurrence of these children."""
    return await _change(container, Change.REMOVE, body, caller, session)


async def _change(
    container: Block, change: Change, body: ChildKeys, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    await containers.change_children(
        session, container.library, container.entity, change, _item_keys(body.usage_keys),
        user=caller.username, now=utc_now(),
    )  # fmt: skip
    return await _shown(session, container)


def _item_keys(texts: list[Any]) -> list[ItemKey]:
    known = {text: _item_key(text) for text in texts if isinstance(text, str)}
    keys: list[ItemKey] = []
    wrong: dict[str, list[str]] = {}
    for place, text in enumerate(texts):
        key = known[text] if isinstance(text, str) else None
        if key is not None:
            keys.append(key)
        elif len(wrong) < MOST_NAMED:
            wrong[str(place)] = ["Not the key of a component or a container."]
    if wrong:
        raise BadInput("usage_keys: some are not keys.", fields={"usage_keys": wrong})
    return keys


def _item_key(text: str) -> ItemKey | None:
    try:
        return parse_item_key(text)
    except BlockUnknown:
        return None


@router.get("/containers/{container_key}/children/{position}/")
async def get_child(
    container: ViewContainer, position: Position, session: ReadDep, published: bool = False
) -> JSONResponse:
    """The child at one position, counted from 0."""
    rows = await containers.children(session, container.entity, published=published)
    if position >= len(rows):
        raise BlockUnknown("There is no child at this position.")
    (shown,) = await _children_json(session, container.library, [rows[position]])
    return JSONResponse(shown)


@router.patch("/containers/{container_key}/children/{position}/")
async def pin_child(
    container: EditContainer,
    position: Position,
    body: ChildPin,
    caller: CallerDep,
    session: SessionDep,
) -> JSONResponse:
    """Pin the child at one position to a version of it, or with null unpin it.

    With the child's key as `expected` it is 409 when another child is there by now.
    """
    await containers.pin_at(
        session, container.library, container.entity, position, body.pinned_version_num,
        expected=_expected(container, body.expected), user=caller.username, now=utc_now(),
    )  # fmt: skip
    return await _shown(session, container)


def _expected(container: Block, text: str | None) -> str | None:
    """The ref in a key; what cannot be a child here is no child's ref. Raises BadInput."""
    if text is None:
        return None
    key = _item_key(text)
    if key is None:
        raise BadInput("expected: not a key.", fields={"expected": ["Not a key."]})
    return key.ref if containers.may_hold(container.library, container.entity.kind, key) else text


@router.delete("/containers/{container_key}/children/{position}/")
async def remove_child(
    container: EditContainer,
    position: Position,
    caller: CallerDep,
    session: SessionDep,
    expected: str | None = None,
) -> JSONResponse:
    """Remove the child at one position, and no other copy of it.

    With the child's key as `expected` it is 409 when another child is there by now.
    """
    await containers.remove_at(
        session, container.library, container.entity, position,
        expected=_expected(container, expected), user=caller.username, now=utc_now(),
    )  # fmt: skip
    return await _shown(session, container)
