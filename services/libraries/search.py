"""Finding components and containers by their words, in one library or all one may see.

Drafts are searched, as authors work on them; a row of `findable` follows its draft at once, so
there is nothing to index again.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import (
    CTE,
    ColumnElement,
    case,
    exists,
    func,
    literal,
    literal_column,
    union_all,
)
from sqlalchemy import select as columns
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries.keys import container_key, usage_key
from services.libraries.models import (
    Collection,
    CollectionMember,
    Draft,
    Entity,
    Findable,
    Library,
    Published,
    Tag,
    Version,
)
from services.libraries.permissions import everybody_creates, visible_to
from services.libraries.schemas import Plain
from services.libraries.states import Kind
from services.libraries.views import moment
from shared.callers import Caller

MOST_WORDS = 20
MOST_VALUES = 100
State = Literal["published", "changed", "unpublished"]
_PART = re.compile(r'(-?)(?:"([^"]*)"?|(\S+))')
# No text has them, so that what is marked can be told from what is text.
_OPEN, _CLOSE = "\ue000", "\ue001"
_SNIPPET = f"MaxFragments=2, MaxWords=20, MinWords=8, StartSel={_OPEN}, StopSel={_CLOSE}"


Values = Annotated[list[Annotated[Plain, StringConstraints(max_length=500)]], Field(max_length=50)]


class Wanted(BaseModel):
    """What is looked for; of the values of one filter any may hold, of all filters all must."""

    q: str = Field(
        default="",
        max_length=500,
        description='Words, "phrases", -without; the last word may be unfinished.',
    )
    library: Values = []
    type: Values = []
    collection: Values = Field(default=[], description="Keys of collections.")
    tag: Values = []
    state: Annotated[list[State], Field(max_length=3)] = []
    page: int = Field(default=1, ge=1, le=100_000)
    page_size: int = Field(default=20, ge=1, le=100)


@dataclass(frozen=True)
class Found:
    """One page, how many there are in all, and how many of them by each value."""

    results: list[dict[str, Any]]
    count: int
    facets: dict[str, dict[str, int]]


def question(q: str) -> ColumnElement[Any] | None:
    """Words that must all stand somewhere, phrases in quotes, `-` before what must not.

    The last word may be the beginning of one, as somebody still types it. None without words.
    """
    parts = [match.groups() for match in _PART.finditer(q.replace("\x00", " "))][:MOST_WORDS]
    terms = []
    for place, (minus, phrase, word) in enumerate(parts):
        if phrase is not None:
            term: Any = func.phraseto_tsquery("simple", phrase)
        elif place == len(parts) - 1:
            term = func.to_tsquery("simple", _beginning(word))
        else:
            term = func.plainto_tsquery("simple", word)
        terms.append(func.tsquery_not(term) if minus else term)
    return reduce(lambda one, other: one.op("&&")(other), terms) if terms else None


def _beginning(word: str) -> str:
    quoted = word.replace("\\", "\\\\").replace("'", "''")
    return f"'{quoted}':*"


async def find(session: AsyncSession, wanted: Wanted, *, caller: Caller) -> Found:
    """The best matches first; without words the newest. Two statements, whatever is found."""
    words = question(wanted.q)
    visible = visible_to(caller, everybody_creates=everybody_creates(session))
    found = _found(wanted, words, visible)
    facets: dict[str, dict[str, int]] = {
        name: {} for name in ("library", "type", "state", "collection", "tag")
    }
    connection = await session.connection()
    for facet, value, count in (await connection.execute(_facets(found))).all():
        facets[facet][value] = count
    rows = (await connection.execute(_page(found, words, wanted))).all()
    return Found([_shown(row) for row in rows], sum(facets["type"].values()), facets)


def _found(wanted: Wanted, words: ColumnElement[Any] | None, visible: Sequence[Any]) -> CTE:
    state = case(
        (col(Published.version_id).is_(None), "unpublished"),
        (col(Published.version_id) == col(Draft.version_id), "published"),
        else_="changed",
    )
    rank = func.ts_rank_cd(col(Findable.words), words, 1) if words is not None else literal(0.0)
    query = (
        columns(
            col(Findable.entity_id),
            col(Library.key),
            col(Entity.type),
            state.label("state"),
            rank.label("rank"),
        )
        .select_from(Findable)
        .join(Library, col(Library.id) == col(Findable.library_id))
        .join(Entity, col(Entity.id) == col(Findable.entity_id))
        .join(Draft, col(Draft.entity_id) == col(Findable.entity_id))
        .outerjoin(Published, col(Published.entity_id) == col(Findable.entity_id))
        .where(*visible, col(Library.staged_at).is_(None))
    )
    if words is not None:
        query = query.where(col(Findable.words).op("@@")(words))
    if wanted.library:
        query = query.where(col(Library.key).in_(wanted.library))
    if wanted.type:
        query = query.where(col(Entity.type).in_(wanted.type))
    if wanted.state:
        query = query.where(state.in_(wanted.state))
    if wanted.tag:
        lowered = [tag.lower() for tag in wanted.tag]
        tagged = (col(Tag.entity_id) == col(Findable.entity_id)) & func.lower(col(Tag.name)).in_(
            lowered
        )
        query = query.where(exists().where(tagged))
    if wanted.collection:
        member = (
            exists()
            .where(col(CollectionMember.entity_id) == col(Findable.entity_id))
            .where(col(Collection.id) == col(CollectionMember.collection_id))
            .where(col(Collection.enabled), col(Collection.code).in_(wanted.collection))
        )
        query = query.where(member)
    return query.cte("found").prefix_with("materialized", dialect="postgresql")


def _facets(found: CTE) -> Any:
    """(facet, value, count): of what is found, however much of it is on the page."""
    own = [
        columns(literal(name).label("facet"), column.label("value"), func.count().label("count"))
        .select_from(found)
        .group_by(column)
        for name, column in (
            ("library", found.c.key),
            ("type", found.c.type),
            ("state", found.c.state),
        )
    ]
    collection = (
        columns(literal("collection"), col(Collection.code), func.count())
        .select_from(found)
        .join(CollectionMember, col(CollectionMember.entity_id) == found.c.entity_id)
        .join(Collection, col(Collection.id) == col(CollectionMember.collection_id))
        .where(col(Collection.enabled))
        .group_by(col(Collection.code))
        .order_by(func.count().desc(), col(Collection.code))
        .limit(MOST_VALUES)
    )
    tag = (
        columns(literal("tag"), col(Tag.name), func.count())
        .select_from(found)
        .join(Tag, col(Tag.entity_id) == found.c.entity_id)
        .group_by(col(Tag.name))
        .order_by(func.count().desc(), col(Tag.name))
        .limit(MOST_VALUES)
    )
    return union_all(*own, columns(collection.subquery()), columns(tag.subquery()))


_COLLECTIONS = """
(select coalesce(jsonb_agg(jsonb_build_object('key', c.code, 'title', c.title) order by c.id), '[]')
 from collection_member m join collection c on c.id = m.collection_id
 where m.entity_id = findable.entity_id and c.enabled)
"""
_TAGS = """
array(select name from tag where tag.entity_id = findable.entity_id order by name)
"""


def _page(found: CTE, words: ColumnElement[Any] | None, wanted: Wanted) -> Any:
    best = (
        columns(found)
        .order_by(found.c.rank.desc(), found.c.entity_id.desc())
        .limit(wanted.page_size)
        .offset((wanted.page - 1) * wanted.page_size)
        .subquery("best")
    )
    snippet = (
        func.ts_headline("simple", col(Findable.body), words, _SNIPPET)
        if words is not None
        else func.left(col(Findable.body), 200)
    )
    return (
        columns(
            col(Library.org), col(Library.slug), col(Library.key).label("library"),
            col(Entity.kind), col(Entity.type), col(Entity.code), col(Findable.title),
            snippet.label("snippet"), best.c.state, best.c.rank,
            col(Version.version_num), col(Version.created).label("modified"),
            literal_column(_COLLECTIONS).label("collections"), literal_column(_TAGS).label("tags"),
        )
        .select_from(best)
        .join(Findable, col(Findable.entity_id) == best.c.entity_id)
        .join(Entity, col(Entity.id) == best.c.entity_id)
        .join(Library, col(Library.id) == col(Entity.library_id))
        .join(Draft, col(Draft.entity_id) == best.c.entity_id)
        .join(Version, col(Version.id) == col(Draft.version_id))
        .order_by(best.c.rank.desc(), best.c.entity_id.desc())
    )  # fmt: skip


def _shown(row: Any) -> dict[str, Any]:
    component = row.kind is Kind.COMPONENT
    key = usage_key if component else container_key
    return {
        "id": key(row.org, row.slug, row.type, row.code),
        "library": row.library,
        "kind": "component" if component else "container",
        "type": row.type,
        "display_name": row.title,
        "snippet": _marked(row.snippet),
        "state": row.state,
        "version_num": row.version_num,
        "modified": moment(row.modified),
        "collections": row.collections,
        "tags": row.tags,
        "rank": round(row.rank, 6),
    }


def _marked(snippet: str) -> str:
    """As HTML: what matched in <mark>, everything else escaped."""
    text = html.escape(re.sub(r"\s+", " ", snippet).strip())
    return text.replace(_OPEN, "<mark>").replace(_CLOSE, "</mark>")
