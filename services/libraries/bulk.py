"""Many components at once: edited in one change log, all or none. contract: content_core §2.4"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import drafts, media, olx, publishing, versions
from services.libraries.drafts import NeverPublished
from services.libraries.errors import BlockUnknown, VersionConflict
from services.libraries.keys import parse_item_key
from services.libraries.models import Library
from services.libraries.olx import Block, InvalidOlx, OlxLimits
from services.libraries.states import Kind
from services.libraries.versions import OLX_PATH, NewVersion
from shared.problems import BadInput

UNKNOWN = "There is no such item in this library."


@dataclass(frozen=True, slots=True)
class Edit:
    """New OLX of a component; with a number only if its draft has that version."""

    usage_key: str
    olx: str
    version_num: int | None = None


async def edit(
    session: AsyncSession,
    library: Library,
    edits: Sequence[Edit],
    *,
    user: str,
    now: datetime,
    limits: OlxLimits = olx.LIMITS,
) -> list[tuple[str, int]]:
    """Make the next version of each component. Keys and new version numbers, as they came.

    A fixed number of statements. Raises BadInput, BlockUnknown or VersionConflict, which name
    what is wrong by its place in `blocks`.
    """
    refs = refs_of(
        library, [each.usage_key for each in edits], "blocks", "usage_key", components=True
    )
    blocks = _parse(edits, limits)
    await publishing.lock(session, library)
    texts = [media.text_media(block.olx, media.olx_type(block.block_type)) for block in blocks]
    # Before the entities are locked, as single edits do: nobody waits for the other in a ring.
    stored = await media.store_many(session, library, texts, now=now)
    live = await _hold_live(session, library, refs)
    _require_found(refs, live, "blocks", "usage_key")
    _require_current(edits, refs, live)
    news = [
        NewVersion(
            live[ref][0], title=block.title,
            media={OLX_PATH: stored[(kept.media_type, kept.hash)]},
        )
        for ref, block, kept in zip(refs, blocks, texts, strict=True)
    ]  # fmt: skip
    made = await versions.make(session, library, news, user=user, now=now)
    return [
        (each.usage_key, made[live[ref][0]].version_num)
        for each, ref in zip(edits, refs, strict=True)
    ]


def refs_of(
    library: Library, keys: Sequence[str], name: str, field: str = "", *, components: bool = False
) -> list[str]:
    """How the library names these items. Raises BlockUnknown, or BadInput for one named twice."""
    refs: list[str] = []
    unknown: dict[str, Any] = {}
    for place, text_of in enumerate(keys):
        try:
            key = parse_item_key(text_of)
        except BlockUnknown:
            key = None
        wrong = key is None or key.library_key != library.key
        if key is None or wrong or (components and key.kind is not Kind.COMPONENT):
            unknown[_where(name, place, field)] = [UNKNOWN]
        else:
            refs.append(key.ref)
    if unknown:
        raise BlockUnknown(_first(unknown), fields=unknown)
    _require_distinct(refs, name, field)
    return refs


def _require_distinct(refs: Sequence[str], name: str, field: str) -> None:
    first: dict[str, int] = {}
    twice = {
        _where(name, place, field): [f"The same as number {first[ref]}."]
        for place, ref in enumerate(refs)
        if first.setdefault(ref, place) != place
    }
    if twice:
        raise BadInput(_first(twice), fields=twice)


def _where(name: str, place: int, field: str) -> str:
    return f"{name}.{place}.{field}" if field else f"{name}.{place}"


def _first(fields: Mapping[str, list[str]]) -> str:
    name, messages = next(iter(fields.items()))
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    return f"{name}: {messages[0]}{more}"


def _parse(edits: Sequence[Edit], limits: OlxLimits) -> list[Block]:
    blocks, wrong = [], {}
    for place, each in enumerate(edits):
        try:
            kind = parse_item_key(each.usage_key).type
            blocks.append(olx.parse(each.olx, block_type=kind, limits=limits))
        except InvalidOlx as error:
            wrong[f"blocks.{place}.olx"] = [error.detail]
    if wrong:
        raise BadInput(_first(wrong), fields=wrong)
    return blocks


_HOLD = text("""
    select id from entity
    where library_id = :library_id and entity_ref = any(cast(:refs as text[]))
    order by id for no key update
""")
_LIVE = text("""
    select entity.entity_ref, entity.id, version.version_num from entity
    join draft on draft.entity_id = entity.id
    join version on version.id = draft.version_id
    where entity.library_id = :library_id and entity.entity_ref = any(cast(:refs as text[]))
""")


async def _hold_live(
    session: AsyncSession, library: Library, refs: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Ids and version numbers of live items by ref, which nobody edits until the commit."""
    connection = await session.connection()
    values = {"library_id": library.id, "refs": list(refs)}
    await connection.execute(_HOLD, values)
    found = await connection.execute(_LIVE, values)
    return {row.entity_ref: (row.id, row.version_num) for row in found}


def _require_found(
    refs: Sequence[str], found: Mapping[str, Any], name: str, field: str = ""
) -> None:
    unknown = {
        _where(name, place, field): [UNKNOWN] for place, ref in enumerate(refs) if ref not in found
    }
    if unknown:
        raise BlockUnknown(_first(unknown), fields=unknown)


def _require_current(
    edits: Sequence[Edit], refs: Sequence[str], live: Mapping[str, tuple[int, int]]
) -> None:
    moved = {
        f"blocks.{place}.version_num": [f"The draft is version {live[ref][1]} now."]
        for place, (each, ref) in enumerate(zip(edits, refs, strict=True))
        if each.version_num is not None and each.version_num != live[ref][1]
    }
    if moved:
        raise VersionConflict(_first(moved), fields=moved)


async def find(
    session: AsyncSession, library: Library, keys: Sequence[str], name: str
) -> list[int]:
    """Ids of these items in any state, in their order. Raises BlockUnknown or BadInput."""
    refs = refs_of(library, keys, name)
    connection = await session.connection()
    rows = await connection.execute(
        text("""
            select entity_ref, id from entity
            where library_id = :library_id and entity_ref = any(cast(:refs as text[]))
        """),
        {"library_id": library.id, "refs": refs},
    )
    found = {row.entity_ref: row.id for row in rows}
    _require_found(refs, found, name)
    return [found[ref] for ref in refs]


async def discard(
    session: AsyncSession,
    library: Library,
    keys: Sequence[str],
    *,
    below: bool,
    user: str,
    now: datetime,
) -> Sequence[tuple[str, str, str]]:
    """Take these items back to what is published. Kind, type and code of what moved.

    Raises BlockUnknown, or BadInput for what never was published, named by its place.
    """
    ids = await find(session, library, keys, "usage_keys")
    try:
        return await drafts.discard(session, library, ids, below=below, user=user, now=now)
    except NeverPublished as error:
        never = {
            _where("usage_keys", place, ""): [error.detail]
            for place, entity in enumerate(ids)
            if entity in error.entity_ids
        }
        raise BadInput(_first(never), fields=never) from error
