"""Libraries, blocks and containers as the wire shows them. contract: libraries §3.2, §3.6, §3.8"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from sqlalchemy import Row

from services.libraries import models
from services.libraries.entities import JustMade
from services.libraries.hierarchy import Hierarchy
from services.libraries.history import Publish
from services.libraries.keys import container_key, item_key, usage_key
from services.libraries.models import Library
from services.libraries.states import Kind


def moment(value: datetime | None) -> str | None:
    """Whole seconds, as everywhere but in collections."""
    return value.astimezone(UTC).isoformat(timespec="seconds")[:19] + "Z" if value else None


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
    library: Library, row: Row[Any] | JustMade, collections: list[dict[str, str]]
) -> dict[str, Any]:
    """A component: `row` is one of `entities.VIEW`."""
    key = usage_key(library.org, library.slug, row.type, row.code)
    return _item_json(key, row, collections) | {"block_type": row.type}


def container_json(
    library: Library,
    row: Row[Any],
    collections: list[dict[str, str]],
    *,
    changed_below: Collection[int],
) -> dict[str, Any]:
    """A container; `changed_below` are those with unpublished changes below. contract: §3.8"""
    key = container_key(library.org, library.slug, row.type, row.code)
    return _item_json(key, row, collections) | {
        "container_type_code": row.type,
        "container_type": row.type,
        "last_draft_created_by": row.drafted_by or "",
        "has_unpublished_changes": row.changed or row.id in changed_below,
        "can_stand_alone": True,
    }


def _item_json(
    key: str, row: Row[Any] | JustMade, collections: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "id": key,
        "display_name": row.title,
        "published_display_name": row.published_title,
        "tags_count": row.tags,
        "last_published": moment(row.published_at),
        "published_by": row.published_by,
        "last_draft_created": moment(row.drafted),
        "last_draft_created_by": row.drafted_by,
        "has_unpublished_changes": row.changed,
        "created": moment(row.created),
        "created_by": row.created_by,
        "modified": moment(row.modified),
        "collections": collections,
        "can_stand_alone": row.can_stand_alone,
    }


def item_json(library: Library, row: Row[Any], *, changed_below: Collection[int]) -> dict[str, Any]:
    """A row of a list, which tells no collections."""
    if row.kind == Kind.COMPONENT:
        return block_json(library, row, [])
    return container_json(library, row, [], changed_below=changed_below)


def hierarchy_json(library: Library, key: str, found: Hierarchy) -> dict[str, Any]:
    """contract: libraries §3.9"""
    levels = {f"{kind}s": found.levels[kind] for kind in reversed(Kind)}
    return {
        name: [
            {
                "id": key_of(library, row),
                "display_name": row.title,
                "has_unpublished_changes": row.changed or row.id in found.changed_below,
            }
            for row in rows
        ]
        for name, rows in levels.items()
    } | {"object_key": key}


def key_of(library: Library, row: Row[Any]) -> str:
    return item_key(library.org, library.slug, row.kind, row.type, row.code)


def past_child_json(library: Library, row: Row[Any]) -> dict[str, Any]:
    return {
        "id": key_of(library, row),
        "display_name": row.title,
        "item_type": row.type,
        "version_num": row.version_num,
    }


class People:
    """People as histories show them."""

    def __init__(self, pictures: str) -> None:
        self._pictures = pictures

    def json(self, username: str | None) -> dict[str, Any] | None:
        if username is None:
            return None
        address = self._pictures.replace("{username}", quote(username, safe=""))
        sizes = ("full", "large", "medium", "small")
        return {
            "username": username,
            "profile_image_urls": {size: address.replace("{size}", size) for size in sizes},
        }


def action_of(row: Row[Any]) -> str:
    """contract: libraries §3.10"""
    if row.old_num is None:
        return "created"
    if row.new_num is None:
        return "deleted"
    return "edited" if row.title == row.old_title else "renamed"


def entry_json(row: Row[Any], people: People) -> dict[str, Any]:
    """contract: libraries §3.10"""
    return {
        "contributor": people.json(row.changed_by),
        "changed_at": moment(row.changed_at),
        "title": row.title,
        "item_type": row.type,
        "action": action_of(row),
        "old_version": row.old_num,
        "new_version": row.new_num,
    }


def publish_json(library: Library, publish: Publish, people: People) -> dict[str, Any]:
    """contract: libraries §3.10"""
    return {
        "publish_log_uuid": str(publish.log.uuid),
        "published_by": publish.log.published_by,
        "published_at": moment(publish.log.published_at),
        "contributors": [people.json(name) for name in publish.contributors],
        "direct_published_entities": [
            {"entity_key": key_of(library, row), "title": row.title, "entity_type": row.type}
            for row in publish.asked_for
        ],
        "scope_entity_key": key_of(library, publish.scope) if publish.scope else None,
    }


def preview_json(
    library: Library, publishes: Sequence[Row[Any]], touches: Sequence[Row[Any]]
) -> dict[str, Any]:
    """What a publish would do, before it is done."""
    return {
        "publishes": [
            {
                "id": key_of(library, row),
                "display_name": row.title,
                "action": action_of(row),
                "old_version": row.old_num,
                "new_version": row.new_num,
            }
            for row in publishes
        ],
        "touches": [{"id": key_of(library, row), "display_name": row.title} for row in touches],
    }


def collection_json(collection: models.Collection, entities: Sequence[int]) -> dict[str, Any]:
    """contract: libraries §3.11; here times have microseconds."""
    return {
        "key": collection.code,
        "id": collection.id,
        "title": collection.title,
        "description": collection.description,
        "enabled": collection.enabled,
        "created": _exact(collection.created),
        "modified": _exact(collection.modified),
        "learning_package": collection.library_id,
        "created_by": collection.created_by_id,
        "entities": list(entities),
    }


def _exact(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
