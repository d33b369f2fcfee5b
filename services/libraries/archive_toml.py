"""The TOML files of an archive, laid out line by line as the upstream writer does."""

from datetime import UTC, datetime

from services.libraries.archive_contents import (
    FORMAT_VERSION,
    ArchivedCollection,
    ArchivedEntity,
    ArchivedVersion,
    Manifest,
)


def package_toml(manifest: Manifest) -> str:
    lines = ["[meta]", f"format_version = {FORMAT_VERSION}"]
    # Readers refuse blank ones, so they are left out.
    if manifest.created_by:
        lines.append(f"created_by = {toml_string(manifest.created_by)}")
    if manifest.created_by_email:
        lines.append(f"created_by_email = {toml_string(manifest.created_by_email)}")
    lines.append(f"created_at = {toml_time(manifest.created_at)}")
    if manifest.origin_server:
        lines.append(f"origin_server = {toml_string(manifest.origin_server)}")
    lines += [
        "",
        "[learning_package]",
        f"title = {toml_string(manifest.title)}",
        f"key = {toml_string(manifest.key)}",
        f"description = {toml_string(manifest.description)}",
        f"created = {toml_time(manifest.created)}",
        f"updated = {toml_time(manifest.updated)}",
    ]
    return "\n".join(lines) + "\n"


def entity_toml(entity: ArchivedEntity) -> str:
    lines = [
        "[entity]",
        f"can_stand_alone = {str(entity.can_stand_alone).lower()}",
        f"key = {toml_string(entity.key)}",
        f"created = {toml_time(entity.created)}",
    ]
    if entity.draft_deleted:
        lines.append("draft_deleted = true")
    if entity.draft_num is not None:
        lines += ["", "[entity.draft]", f"version_num = {entity.draft_num}"]
    lines += ["", "[entity.published]"]
    if entity.published_num is None:
        lines.append("# unpublished: no published_version_num")
    else:
        lines.append(f"version_num = {entity.published_num}")
    if entity.container_type is not None:
        lines += ["", f"[entity.container.{entity.container_type}]"]
    lines += ["", "# ### Versions"]
    for version in entity.versions:
        lines += _version_lines(version)
    return "\n".join(lines) + "\n"


def _version_lines(version: ArchivedVersion) -> list[str]:
    lines = [
        "",
        "[[version]]",
        f"title = {toml_string(version.title)}",
        f"version_num = {version.version_num}",
        f"created = {toml_time(version.created)}",
    ]
    if any(version.pins):
        lines.append(f"pins = [{', '.join(str(pin) for pin in version.pins)}]")
    types = {
        media.path: media.media_type
        for media in sorted(version.media, key=lambda media: media.path)
        if media.media_type
    }
    if types:
        pairs = (f"{toml_string(path)} = {toml_string(kind)}" for path, kind in types.items())
        lines.append(f"media_types = {{ {', '.join(pairs)} }}")
    if version.children is not None:
        children = ", ".join(toml_string(child) for child in version.children)
        lines += ["", "[version.container]", f"children = [{children}]"]
    return lines


def collection_head(collection: ArchivedCollection) -> str:
    return (
        "[collection]\n"
        f"title = {toml_string(collection.title)}\n"
        f"key = {toml_string(collection.code)}\n"
        f"description = {toml_string(collection.description)}\n"
        f"created = {toml_time(collection.created)}\n"
        "entities = "
    )


_ESCAPES = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(32), 127)} | _ESCAPES


def toml_string(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def toml_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
