"""Routes of components and their static files. contract: libraries §3.6, §3.7, §3.12"""

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from sqlmodel import col, select
from starlette.datastructures import UploadFile

from services.libraries import (
    components,
    drafts,
    entities,
    libraries,
    media,
    olx,
    permissions,
    publishing,
)
from services.libraries.access import (
    EditBlock,
    EditBlockEver,
    EditLibrary,
    PublishBlock,
    ViewBlock,
    ViewBlockEver,
    ViewLibrary,
)
from services.libraries.api import numbered_page, settings_of
from services.libraries.errors import AssetUnknown, BlockUnknown, FieldRefused, RuleBroken
from services.libraries.keys import parse_usage_key
from services.libraries.models import Draft, Entity, Library, Version
from services.libraries.schemas import BlockCreation, OlxSaved, OlxText
from services.libraries.states import Permission, component_ref
from services.libraries.views import block_json
from shared.callers import CallerDep
from shared.database import ReadDep, SessionDep, utc_now
from shared.downloads import download
from shared.files import CHUNK, TooBig
from shared.lookups import LookupDep, Source
from shared.problems import BadInput
from shared.uploads import chunks

router = APIRouter(prefix="/api/libraries/v2", tags=["blocks"])
bytes_router = APIRouter(tags=["static files"])
# What a path of a URL may have as it is; RFC 3986.
IN_URLS = "/~:@!$&'()*+,;="
FOR_A_DAY, ASK_AGAIN = "private, max-age=86400", "private, no-cache"


@router.get("/{lib_key}/blocks/")
async def list_blocks(
    request: Request,
    library: ViewLibrary,
    session: ReadDep,
    text_search: str = "",
    block_type: Annotated[list[str], Query()] = [],  # noqa: B006
    page: str = "1",
    page_size_text: Annotated[str, Query(alias="page_size")] = "",
) -> JSONResponse:
    """Live components in the order in which they were made."""

    async def fetch(number: int, size: int) -> tuple[Sequence[Any], int]:
        return await components.page(
            session, library, size=size, number=number,
            text_search=text_search, block_types=block_type,
        )  # fmt: skip

    found = await numbered_page(page, page_size_text, fetch)
    results = [block_json(library, row, []) for row in found.rows]
    return JSONResponse(found.envelope(request, results))


@router.post("/{lib_key}/blocks/")
async def create_block(
    request: Request,
    library: EditLibrary,
    body: BlockCreation,
    caller: CallerDep,
    session: SessionDep,
) -> JSONResponse:
    """A new component: with this OLX, or with empty content."""
    for name in ("parent_block", "staged_content"):
        if getattr(body, name) is not None:
            raise FieldRefused(name, "This is not supported.")
    settings, first = settings_of(request), None
    if body.olx is not None:
        first = olx.parse(body.olx, block_type=body.block_type, limits=settings.olx_limits)
    entity = await components.create(
        session, library, block_type=body.block_type, code=body.definition_id,
        can_stand_alone=body.can_stand_alone, most=settings.most_blocks,
        user=caller.username, now=utc_now(), content=first, allowed=settings.allowed_types,
    )  # fmt: skip
    made = entities.JustMade(
        entity.type, entity.code, entity.can_stand_alone,
        first.title if first else olx.default_title(entity.type),
        entity.created, entity.created_by,
    )  # fmt: skip
    return JSONResponse(block_json(library, made, []))


async def _shown(source: Source, library: Library, entity: Entity) -> JSONResponse:
    row = await entities.show(source, entity.id)
    return JSONResponse(block_json(library, row, entities.collections_of(row)))


@router.get("/blocks/{usage_key}/")
async def get_block(block: ViewBlock, lookups: LookupDep) -> JSONResponse:
    """One live component."""
    return await _shown(lookups, block.library, block.entity)


@router.delete("/blocks/{usage_key}/")
async def delete_block(block: EditBlock, caller: CallerDep, session: SessionDep) -> dict[str, Any]:
    """Delete the draft; readers see the published version until that is published."""
    await drafts.delete(session, block.library, block.entity, user=caller.username, now=utc_now())
    return {}


@router.post("/blocks/{usage_key}/restore/", status_code=204)
async def restore_block(block: EditBlockEver, caller: CallerDep, session: SessionDep) -> None:
    """Bring a deleted component back at its newest version."""
    await drafts.restore(session, block.library, block.entity, user=caller.username, now=utc_now())


@router.get("/blocks/{usage_key}/olx/")
async def get_olx(block: ViewBlock, session: ReadDep) -> dict[str, str]:
    """The draft's OLX, exactly as stored."""
    return {"olx": await components.get_olx(session, block.entity)}


@router.post("/blocks/{usage_key}/olx/")
async def set_olx(
    request: Request, block: EditBlock, body: OlxText, caller: CallerDep, session: SessionDep
) -> OlxSaved:
    """Save new OLX: one new draft version."""
    made = await components.set_olx(
        session, block.library, block.entity, body.olx, user=caller.username, now=utc_now(),
        limits=settings_of(request).olx_limits,
    )  # fmt: skip
    return OlxSaved(olx=olx.trimmed(body.olx), version_num=made.version_num)


@router.post("/blocks/{usage_key}/publish/")
async def publish_block(
    block: PublishBlock, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """Publish this component alone. Without changes nothing happens."""
    if block.live:
        await publishing.publish(
            session, block.library, [block.entity.id], user=caller.username, now=utc_now()
        )
    return {}


@router.get("/blocks/{usage_key}/assets/")
async def list_assets(request: Request, block: ViewBlockEver, session: ReadDep) -> dict[str, Any]:
    """Static files of the draft, by path."""
    rows = await components.list_assets(session, block.entity)
    return {"files": [_asset_json(request, row.path, row.size, row.version_uuid) for row in rows]}


def _asset_json(request: Request, path: str, size: int, version: UUID) -> dict[str, Any]:
    origin = settings_of(request).origin_url
    url = f"{origin}/library_assets/component_versions/{version}/{quote(path, safe=IN_URLS)}"
    return {"path": path, "url": url, "size": size}


@router.get("/blocks/{usage_key}/assets/{path:path}")
async def get_asset(
    request: Request, path: str, block: ViewBlock, session: ReadDep
) -> dict[str, Any]:
    """What is known of one static file of the draft."""
    for row in await components.list_assets(session, block.entity):
        if row.path == path:
            return _asset_json(request, row.path, row.size, row.version_uuid)
    raise AssetUnknown


@router.put("/blocks/{usage_key}/assets/{path:path}")
async def put_asset(
    request: Request, path: str, block: EditBlock, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """Add or replace a static file, sent as the multipart part `content`."""
    path = components.checked_path(path.replace(" ", "_"))
    limit = settings_of(request).most_asset_bytes
    async with request.form() as form:
        upload = form.get("content")
        if not isinstance(upload, UploadFile):
            raise BadInput(
                "content: No file was submitted.", fields={"content": ["No file was submitted."]}
            )
        if upload.size is not None and upload.size > limit:
            raise RuleBroken("File too big")
        media_type = media.media_type_of(path)
        await media.use_files(session, block.library)
        try:
            content = await media.store_file(
                request.app.state.files, block.library, await _data(upload), media_type,
                limit=limit,
            )  # fmt: skip
        except TooBig as problem:
            raise RuleBroken("File too big") from problem
    version = await components.put_asset(
        session, block.library, block.entity, path, content, user=caller.username, now=utc_now()
    )
    return _asset_json(request, path, content.size, version)


async def _data(upload: UploadFile) -> Any:
    """All of a small file at once, which is stored in one step, or the parts of a large one."""
    if upload.size is not None and upload.size <= CHUNK:
        return await upload.read()
    return chunks(upload)


@router.delete("/blocks/{usage_key}/assets/{path:path}", status_code=204)
async def delete_asset(path: str, block: EditBlock, caller: CallerDep, session: SessionDep) -> None:
    """Remove a static file: one new draft version, whether it was there or not."""
    path = components.checked_path(path)
    await components.delete_asset(
        session, block.library, block.entity, path, user=caller.username, now=utc_now()
    )


@bytes_router.head(
    "/library_assets/component_versions/{version_uuid}/{path:path}", include_in_schema=False
)
@bytes_router.get("/library_assets/component_versions/{version_uuid}/{path:path}")
async def download_of_version(
    request: Request, version_uuid: UUID, path: str, caller: CallerDep, session: SessionDep
) -> Response:
    """A static file of one version; ranges are supported."""
    version = (await session.exec(select(Version).where(col(Version.uuid) == version_uuid))).first()
    entity = await session.get(Entity, version.entity_id) if version else None
    if version is None or entity is None:
        raise AssetUnknown
    return await _download(request, session, caller, entity, version, path, keep=FOR_A_DAY)


@bytes_router.head("/library_assets/blocks/{usage_key}/{path:path}", include_in_schema=False)
@bytes_router.get("/library_assets/blocks/{usage_key}/{path:path}")
async def download_of_draft(
    request: Request, usage_key: str, path: str, caller: CallerDep, session: SessionDep
) -> Response:
    """A static file of the draft as it is now; ranges are supported."""
    key = parse_usage_key(usage_key)
    library = await libraries.get(session, str(key.lib_key))
    await permissions.require(session, library, caller, Permission.VIEW)
    ref = component_ref(key.block_type, key.usage_id)
    entity = await entities.get(session, library, ref)
    draft = await session.get(Draft, entity.id)
    version = await session.get(Version, draft.version_id) if draft else None
    if version is None:
        raise BlockUnknown
    return await _download(request, session, caller, entity, version, path, keep=ASK_AGAIN)


async def _download(
    request: Request,
    session: SessionDep,
    caller: CallerDep,
    entity: Entity,
    version: Version,
    path: str,
    *,
    keep: str,
) -> Response:
    library = await session.get(Library, entity.library_id)
    if library is None or library.staged_at is not None:
        raise AssetUnknown
    await permissions.require(session, library, caller, Permission.VIEW)
    stored = await components.find_asset(session, version.id, path)
    headers = {
        "Etag": f'"{stored.hash}"',
        "Cache-Control": keep,
        # What authors upload is shown in no page but ours, and runs no script there.
        "Content-Security-Policy": f"frame-ancestors {_ours(request)}; sandbox",
        "X-Open-edX-Component-Ref": _ascii(entity.entity_ref),
        "X-Open-edX-Component-Uuid": str(entity.uuid),
        "X-Open-edX-Component-Version-Uuid": str(version.uuid),
        "X-Open-edX-Component-Version-Num": str(version.version_num),
        "X-Open-edX-Learning-Package-Ref": _ascii(library.key),
        "X-Open-edX-Learning-Package-Uuid": str(library.uuid),
    }
    if _is_known(request, headers["Etag"]):
        return Response(status_code=304, headers=headers)
    where = media.content_path(library, stored.hash)
    files = request.app.state.files
    return await download(request, files, where, content_type=stored.media_type, headers=headers)


def _ours(request: Request) -> str:
    return " ".join(["'self'", *settings_of(request).frame_ancestors])


def _is_known(request: Request, etag: str) -> bool:
    """Whether the caller has this content already; proxies that compress make tags weak."""
    known = [one.strip() for one in request.headers.get("if-none-match", "").split(",")]
    return known == ["*"] or etag in (one.removeprefix("W/") for one in known)


def _ascii(text: str) -> str:
    """Header values are Latin-1 on the wire; UTF-8 bytes go through unchanged this way."""
    return text.encode().decode("latin-1")
