"""Components: OLX with static files. contract: libraries §3.6, §3.7, §4.9"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import drafts, entities, events, media, olx, versions
from services.libraries.entities import VIEW, NewEntity
from services.libraries.errors import (
    AssetUnknown,
    BlockExists,
    BlockUnknown,
    FieldRefused,
    LimitReached,
    RuleBroken,
)
from services.libraries.media import NewMedia
from services.libraries.models import Entity, EntityRow, Library, Media
from services.libraries.olx import OlxLimits
from services.libraries.states import NOT_IN_PATHS, Kind, component_ref, why_no_component
from services.libraries.versions import OLX_PATH, MadeVersion, NewVersion
from shared.database import driver

LONGEST_PATH = 500


@dataclass(frozen=True, slots=True)
class NewComponent:
    """A component to add: parsed OLX, and files that are in the object store already."""

    block_type: str
    code: str
    title: str
    olx: str
    assets: Mapping[str, NewMedia] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        return component_ref(self.block_type, self.code)


async def create(
    session: AsyncSession,
    library: Library,
    *,
    block_type: str,
    code: str,
    can_stand_alone: bool,
    most: int,
    user: str,
    now: datetime,
    content: olx.Block | None = None,
    allowed: Collection[str] | None = None,
) -> Entity:
    """A new component, version 1, with an empty element as its OLX unless content is given.

    Its type is one of those allowed, if any are named.
    Raises FieldRefused, LimitReached, or BlockExists, also for the code of a deleted one.
    """
    if (why := why_no_component(block_type, allowed)) is not None:
        raise FieldRefused("block_type", f'The "{block_type}" XBlock (ID: "{code}") {why}')
    ref, first = component_ref(block_type, code), content or olx.blank(block_type)
    kept = media.text_media(first.olx, media.olx_type(block_type))
    made = await (await driver(session)).fetchrow(
        _CREATE, library.id, ref, block_type, code, can_stand_alone, first.title,
        kept.text, kept.media_type, kept.hash, kept.size, most, now, user,
    )  # fmt: skip
    if made is None:
        raise BlockExists(f"The usage key lb:{library.org}:{library.slug}:{block_type}:{code} "
                          "is taken already, perhaps by a deleted block.")  # fmt: skip
    if made["is_full"]:
        raise LimitReached(FULL.format(most))
    events.tell_created(session, library, block_type, code)
    entity: Entity = EntityRow(
        id=made["entity"], uuid=made["unique_id"], library_id=library.id, entity_ref=ref,
        kind=Kind.COMPONENT, type=block_type, code=code, can_stand_alone=can_stand_alone,
        created=now, created_by=user,
    )  # fmt: skip
    return entity


FULL = "Library cannot have more than {} Components."
_CREATE = """
    select is_full, entity, unique_id, log
    from create_component($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
"""
_ADD_UP = text("""
    select coalesce(sum(items), 0) from (select add_up_live(:id)) as done
    left join live_count on live_count.library_id = :id
""")


async def require_room(session: AsyncSession, library: Library, more: int, *, most: int) -> None:
    """Raises LimitReached. Under the library's lock, so that two cannot pass together."""
    connection = await session.connection()
    count = await connection.execute(_ADD_UP, {"id": library.id})
    if count.scalar_one() + more > most:
        raise LimitReached(FULL.format(most))


async def add_many(
    session: AsyncSession,
    library: Library,
    items: Sequence[NewComponent],
    *,
    user: str | None,
    now: datetime,
) -> dict[str, str]:
    """Add components, or give those that exist a new version where their content differs.

    One change log, a fixed number of statements. Returns `added`, `changed` or `unchanged` by
    ref. Codes must be valid; the caller holds the library's lock.
    """
    refs = [item.ref for item in items]
    news = [NewEntity(item.ref, Kind.COMPONENT, item.block_type, item.code) for item in items]
    added = await entities.create_many(session, library, news, user=user, now=now)
    known = await entities.ids_of(session, library, set(refs) - set(added))
    same = await _same_content(session, library, [item for item in items if item.ref in known])
    writes = [
        (added.get(item.ref) or known[item.ref], item) for item in items if item.ref not in same
    ]
    await _write(session, library, writes, user=user, now=now)
    return {
        ref: "added" if ref in added else "unchanged" if ref in same else "changed" for ref in refs
    }


async def _same_content(
    session: AsyncSession, library: Library, items: Sequence[NewComponent]
) -> set[str]:
    """Refs of those whose live draft has exactly these files."""
    if not items:
        return set()
    connection = await session.connection()
    found = await connection.execute(
        text("select * from files_of_drafts(:library_id, cast(:refs as text[]))"),
        {"library_id": library.id, "refs": [item.ref for item in items]},
    )
    stored: dict[str, dict[str, str]] = {}
    for row in found:
        stored.setdefault(row.entity_ref, {})[row.path] = row.hash
    return {item.ref for item in items if stored.get(item.ref) == _hashes(item)}


def _hashes(item: NewComponent) -> dict[str, str]:
    files = {path: asset.hash for path, asset in item.assets.items()}
    return files | {OLX_PATH: media.text_media(item.olx, "").hash}


async def _write(
    session: AsyncSession,
    library: Library,
    writes: Sequence[tuple[int, NewComponent]],
    *,
    user: str | None,
    now: datetime,
) -> dict[int, MadeVersion]:
    wanted: list[tuple[int, str, NewMedia]] = []
    for entity_id, item in writes:
        text_of = media.text_media(item.olx, media.olx_type(item.block_type))
        wanted.append((entity_id, OLX_PATH, text_of))
        wanted += [(entity_id, path, asset) for path, asset in item.assets.items()]
    stored = await media.store_many(session, library, [new for _, _, new in wanted], now=now)
    files: dict[int, dict[str, int | None]] = {}
    for entity_id, path, new in wanted:
        files.setdefault(entity_id, {})[path] = stored[(new.media_type, new.hash)]
    news = [
        NewVersion(entity_id, title=item.title, media=files[entity_id], only_media=True)
        for entity_id, item in writes
    ]
    return await versions.make(session, library, news, user=user, now=now)


async def hold(session: AsyncSession, component: Entity) -> None:
    """Nobody else edits it until this transaction ends. Raises BlockUnknown if it is deleted."""
    await drafts.hold(session, component)
    await drafts.require_live(session, component)


_HOLD_ALL = text("""
    select id from entity
    where library_id = :library_id and entity_ref = any(cast(:refs as text[]))
    order by id for no key update
""")


async def hold_all(session: AsyncSession, library: Library, refs: Sequence[str]) -> None:
    """As `hold`, all that exist of many, deleted or not. The caller holds the library."""
    values = {"library_id": library.id, "refs": list(refs)}
    await (await session.connection()).execute(_HOLD_ALL, values)


async def set_olx(
    session: AsyncSession,
    library: Library,
    component: Entity,
    submitted: str,
    *,
    user: str,
    now: datetime,
    limits: OlxLimits = olx.LIMITS,
) -> MadeVersion:
    """Make the next version with this OLX. Raises InvalidOlx, or BlockUnknown if it is deleted.

    contract: libraries §3.6 #30
    """
    block = olx.parse(submitted, block_type=component.type, limits=limits)
    await hold(session, component)
    new = media.text_media(block.olx, media.olx_type(component.type))
    stored = await media.store_many(session, library, [new], now=now)
    change = NewVersion(
        component.id,
        title=block.title,
        media={OLX_PATH: stored[(new.media_type, new.hash)]},
    )
    made = await versions.make(session, library, [change], user=user, now=now)
    return made[component.id]


async def get_olx(session: AsyncSession, component: Entity, version: str = "draft") -> str:
    """The OLX of the draft, the published, or a numbered version. Raises BlockUnknown."""
    chosen = {
        "draft": "(select version_id from draft where entity_id = :id)",
        "published": "(select version_id from published where entity_id = :id)",
    }.get(version, "(select id from version where entity_id = :id and version_num = :number)")
    values: dict[str, Any] = {"id": component.id}
    if version not in ("draft", "published"):
        values["number"] = int(version)
    connection = await session.connection()
    found = await connection.execute(
        text(f"""
            select media.text from version_media join media on media.id = version_media.media_id
            where version_media.path = '{OLX_PATH}' and version_media.version_id = {chosen}
        """),
        values,
    )
    content: str | None = found.scalar()
    if content is None:
        raise BlockUnknown
    return content


async def put_asset(
    session: AsyncSession,
    library: Library,
    component: Entity,
    path: str,
    content: NewMedia,
    *,
    user: str,
    now: datetime,
) -> UUID:
    """Add or replace a static file: a new version with the same OLX. Returns the version's uuid.

    Raises BlockUnknown.
    """
    await hold(session, component)
    stored = await media.store_many(session, library, [content], now=now)
    change = NewVersion(component.id, media={path: stored[(content.media_type, content.hash)]})
    made = await versions.make(session, library, [change], user=user, now=now)
    uuid: UUID = await (await driver(session)).fetchval(
        "select uuid from version where id = $1", made[component.id].id
    )
    return uuid


async def delete_asset(
    session: AsyncSession,
    library: Library,
    component: Entity,
    path: str,
    *,
    user: str,
    now: datetime,
) -> None:
    """A new version without this file, whether it was there or not. Raises BlockUnknown."""
    await hold(session, component)
    change = NewVersion(component.id, media={path: None})
    await versions.make(session, library, [change], user=user, now=now)


def checked_path(path: str) -> str:
    """A usable path of a static file. Raises RuleBroken. contract: libraries §3.7"""
    stripped = path.strip()
    wrong = (
        not path
        or path != stripped
        or path.startswith("/")
        or path.endswith("/")
        or "//" in path
        or ".." in path
        or "." in path.split("/")
        or "\\" in path
        or NOT_IN_PATHS.search(path) is not None
        or len(path) > LONGEST_PATH
        or path == OLX_PATH
    )
    if wrong:
        raise RuleBroken("Invalid file path")
    return path


async def list_assets(session: AsyncSession, component: Entity) -> Sequence[Row[Any]]:
    """Files of the live draft but its OLX, by path; none for a deleted component."""
    connection = await session.connection()
    found = await connection.execute(
        text(f"""
            select version_media.path, media.size, version.uuid as version_uuid from draft
            join version on version.id = draft.version_id
            join version_media on version_media.version_id = version.id
            join media on media.id = version_media.media_id
            where draft.entity_id = :id and version_media.path <> '{OLX_PATH}'
            order by version_media.path
        """),
        {"id": component.id},
    )
    return found.all()


async def find_asset(session: AsyncSession, version_id: int, path: str) -> Media:
    """A downloadable file of a version. Raises AssetUnknown; the OLX is not downloadable."""
    connection = await session.connection()
    found = await connection.execute(
        text("""
            select media_id from version_media where version_id = :id and path = :path
        """),
        {"id": version_id, "path": path.replace("\x00", "")},
    )
    media_id = found.scalar()
    stored = await session.get(Media, media_id) if media_id is not None else None
    if stored is None:
        raise AssetUnknown(
            headers={"X-Open-edX-Error": "asset_path_not_found_for_component_version"}
        )
    if not stored.has_file:
        raise AssetUnknown(headers={"X-Open-edX-Error": "asset_has_no_download_file"})
    return stored


_COUNT = text("""
    select cast(coalesce(sum(items), 0) as bigint) from live_count
    where library_id = :library_id and kind = 'component'
""")


async def page(
    session: AsyncSession,
    library: Library,
    *,
    size: int,
    number: int,
    text_search: str = "",
    block_types: Sequence[str] = (),
) -> tuple[Sequence[Row[Any]], int]:
    """Live components in the order they were made, and how many match. contract: libraries #22"""
    conditions = ["entity.library_id = :library_id", "entity.kind = 'component'"]
    values: dict[str, Any] = {"library_id": library.id}
    if text_search:
        conditions.append(
            "(strpos(lower(live.title), lower(:search)) > 0 "
            "or strpos(lower(entity.code), lower(:search)) > 0)"
        )
        values["search"] = text_search.replace("\x00", "")
    if block_types:
        conditions.append("entity.type = any(cast(:types as text[]))")
        values["types"] = [block_type.replace("\x00", "") for block_type in block_types]
    where = " and ".join(conditions)
    connection = await session.connection()
    count = await connection.execute(
        text(f"""
            select count(*) from entity join draft on draft.entity_id = entity.id
            join version live on live.id = draft.version_id where {where}
        """)
        if text_search or block_types
        else _COUNT,
        values,
    )
    values |= {"limit": size, "offset": (number - 1) * size}
    rows = await connection.execute(
        text(f"{VIEW} where {where} order by entity.id limit :limit offset :offset"), values
    )
    return rows.all(), count.scalar_one()
