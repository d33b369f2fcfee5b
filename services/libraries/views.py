"""Libraries and blocks as the wire shows them. contract: libraries §3.2, §3.6"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from services.libraries.keys import usage_key
from services.libraries.models import Library


def moment(value: datetime | None) -> str | None:
    """Whole seconds, as everywhere but in collections."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if value else None


def library_json(
    library: Library, content: Row[Any] | None, *, can_edit: bool = False
) -> dict[str, Any]:
    """`content` is None for the light rows of the list."""
    pending = content is not None and (content.changes or content.deletes)
    return {
        "id": library.key,
        "org": library.org,
        "slug": library.slug,
        "title": library.title,
        "description": library.description,
        "num_blocks": content.num_blocks if content else 0,
        "last_published": moment(content.published_at) if content else None,
        "published_by": (content.published_by or "") if content else "",
        "last_draft_created": moment(content.changed_at) if content and pending else None,
        "last_draft_created_by": (content.changed_by or "") if content and pending else "",
        "allow_public_learning": library.allow_public_learning,
        "allow_public_read": library.allow_public_read,
        "has_unpublished_changes": content.changes if content else False,
        "has_unpublished_deletes": content.deletes if content else False,
        "license": library.license,
        "can_edit_library": can_edit,
        "created": moment(library.created),
        "updated": moment(library.updated),
    }


def block_json(
    library: Library, row: Row[Any], collections: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "id": usage_key(library.org, library.slug, row.type, row.code),
        "display_name": row.title,
        "published_display_name": row.published_title,
        "tags_count": row.tags,
        "last_published": moment(row.published_at),
        "published_by": row.published_by,
        "last_draft_created": moment(row.modified),
        "last_draft_created_by": row.modified_by,
        "has_unpublished_changes": row.changed,
        "created": moment(row.created),
        "created_by": row.created_by,
        "modified": moment(row.modified),
        "collections": collections,
        "can_stand_alone": row.can_stand_alone,
        "block_type": row.type,
    }
