"""Reading a backup archive, whoever wrote it: all of it is understood, or nothing is.

Every mistake becomes a line `FILE: what is wrong`. contract: content_core §4.9, libraries §6.3
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from services.libraries.archive_contents import (
    COLLECTIONS,
    DISABLED_COLLECTIONS,
    FORMAT_VERSION,
    OLX_PATH,
    ArchivedCollection,
    ArchivedEntity,
    ArchivedMedia,
    ArchivedVersion,
    Manifest,
)
from services.libraries.archive_spool import ArchivedFile, EntitySpool, kind_of
from services.libraries.archive_tables import LARGEST_NUMBER, UNKNOWN_TIME, Table, parse
from services.libraries.entries import (
    LIMITS,
    ArchiveLimits,
    ArchiveRefused,
    Unpacked,
    is_junk,
    read,
    shown,
)
from services.libraries.states import Kind, code_is_valid, collection_code_is_valid, type_is_valid
from services.libraries.unpacking import unpack

COLLECTION_FOLDERS = (COLLECTIONS, DISABLED_COLLECTIONS)
LONGEST_LOG = 10_000
VERSIONS = "component_versions"
CHILD_KINDS = {
    Kind.UNIT: Kind.COMPONENT, Kind.SUBSECTION: Kind.UNIT, Kind.SECTION: Kind.SUBSECTION
}  # fmt: skip
CONTAINER_TYPES = {kind.value for kind in CHILD_KINDS}
NAMESPACE = "xblock.v1"
# Any that upstream writes: also those of a machine without a domain.
EMAIL = re.compile(r"[^@\s]\S*@[^@\s]+")
MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(; ?[\w.+=-]+)*", re.ASCII)
LONGEST_TITLE, LONGEST_PATH, LONGEST_KEY, LONGEST_TEXT = 500, 500, 255, 1_000_000
_VERSION_FOLDER = re.compile(r"v(0|[1-9]\d{0,9})")
_IN_VERSION = re.compile(r"(^|/)entities/([^/]+/){2,3}component_versions/[^/]+/")


class ArchiveInvalid(ArchiveRefused):
    """Not an archive of this format, or one with mistakes."""

    type, title = "archive-invalid", "The archive cannot be read"

    @property
    def log(self) -> str:
        """The text a person gets. contract: content_core §4.10"""
        return "\n".join(["Errors encountered during restore:", *self.lines]) + "\n"


@dataclass
class ArchiveContents:
    """All that an archive says. Entities and media are read on demand, until it is closed."""

    manifest: Manifest
    entities: EntitySpool
    collections: list[ArchivedCollection]
    _files: Unpacked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.entities.close()
        self._files.close()


def read_archive(
    path: Path, limits: ArchiveLimits = LIMITS, check: Callable[[], None] = lambda: None
) -> ArchiveContents:
    """Read an archive. Close what comes back. Raises ArchiveInvalid with all its lines."""
    try:
        files = unpack(path, limits, check, _passed_over)
    except ArchiveRefused as error:
        raise ArchiveInvalid(error.lines) from error
    entities = EntitySpool(files)
    try:
        return _Reader(files, entities, check, limits.toml_bytes).read()
    except BaseException:
        entities.close()
        files.close()
        raise


@dataclass
class _Reader:
    files: Unpacked
    entities: EntitySpool
    check: Callable[[], None]
    most_toml: int
    lines: list[str] = field(default_factory=list)
    more_lines: int = 0

    def read(self) -> ArchiveContents:
        self.root = _wrapping_folder(self.files)
        manifest = self._manifest()
        collection_files = []
        for name in self._names():
            parts = name.split("/")
            if parts[0] in COLLECTION_FOLDERS and len(parts) == 2 and name.endswith(".toml"):
                collection_files.append(name)
            elif parts[0] == "entities":
                self._entity_file(name, parts)
        collections = {
            name: found for name in collection_files if (found := self._collection(name))
        }
        self._check_references(collections)
        if self.lines or manifest is None:
            more = [f"and {self.more_lines} more."] if self.more_lines else []
            raise ArchiveInvalid([*self.lines, *more] or ["package.toml: unreadable."])
        return ArchiveContents(manifest, self.entities, [*collections.values()], self.files)

    def line(self, file: str, detail: str) -> None:
        if len(self.lines) < LONGEST_LOG:
            self.lines.append(f"{shown(file)}: {detail}")
        else:
            self.more_lines += 1

    def _names(self) -> Iterator[str]:
        return (name.removeprefix(self.root) for name in self.files.names())

    # Which file is what, by its place: a `.toml` among a component's media is media.

    def _entity_file(self, name: str, parts: list[str]) -> None:
        place = _media_place(parts)
        if place is not None:
            if place.version is None:
                self.line(name, "the folder of a version must be called v and its number.")
            elif f"{self.root}{place.owner}.toml" not in self.files:
                self.line(name, f"Missing component TOML file at {place.owner}.toml")
        elif len(parts) in (2, 4) and name.endswith(".toml"):
            entity = self._entity(name)
            if entity is not None and not self.entities.add(entity, name):
                self.line(name, f"the archive has this key twice: {shown(entity.key)}")
        else:
            self.line(name, "not in the folder of a version.")

    def _media_of(self, owner: str) -> dict[int, list[tuple[str, str]]]:
        """Paths and names of a component's files, by the number of their version."""
        folder = f"{owner.removesuffix('/')}/{VERSIONS}/"
        media: dict[int, list[tuple[str, str]]] = {}
        for full in self.files.under(self.root + folder):
            name = full.removeprefix(self.root)
            place = _media_place(name.split("/"))
            if place is not None and place.owner == owner and place.version is not None:
                media.setdefault(place.version, []).append((place.path, name))
        return media

    # TOML files

    def _document(self, name: str) -> dict[str, Any] | None:
        self.check()
        if self.files.size(self.root + name) > self.most_toml:
            self.line(name, f"larger than {self.most_toml} bytes.")
            return None
        try:
            return parse(read(self.files, self.root + name).decode())
        except UnicodeDecodeError:
            self.line(name, "is not UTF-8.")
        except (ValueError, RecursionError) as error:
            self.line(name, f"is not valid TOML: {error}")
        return None

    def _manifest(self) -> Manifest | None:
        name = "package.toml"
        if self.root + name not in self.files:
            self.line(name, "Missing learning package file.")
            return None
        document = self._document(name)
        if document is None:
            return None
        meta = Table(self.line, f"{name} meta section", document.get("meta"))
        package = Table(
            self.line, f"{name} learning package section", document.get("learning_package")
        )
        version = meta.number("format_version")
        if version is not None and version != FORMAT_VERSION:
            self.line(name, f"format_version {version} is not known; {FORMAT_VERSION} is.")
        return Manifest(
            title=package.text("title", longest=LONGEST_TITLE),
            key=package.text("key", longest=LONGEST_KEY),
            description=package.text("description", blank=True, longest=LONGEST_TEXT),
            created=package.time("created") or UNKNOWN_TIME,
            updated=package.time_if_any("updated")
            or package.time_if_any("created")
            or UNKNOWN_TIME,
            created_at=meta.time("created_at") or UNKNOWN_TIME,
            created_by=meta.text("created_by", required=False, longest=LONGEST_TITLE),
            created_by_email=self._email(meta),
            origin_server=meta.text("origin_server", required=False, longest=LONGEST_TITLE),
        )

    def _email(self, meta: Table) -> str:
        email = meta.text("created_by_email", required=False, longest=LONGEST_TITLE)
        if email and not EMAIL.fullmatch(email):
            self.line("package.toml meta section", "created_by_email: Enter a valid email address.")
        return email

    def _entity(self, name: str) -> ArchivedEntity | None:
        document = self._document(name)
        if document is None:
            return None
        table = Table(self.line, name, document.get("entity"))
        if not table.present:
            return None
        component = name.count("/") == 3
        key = table.text("key")
        container_type = None if component else self._container_type(name, table)
        if key:
            self._check_key(name, key, component)
        media = self._media_of(name.removesuffix(".toml")) if component else {}
        versions = self._versions(name, document.get("version", []), media if component else None)
        draft = self._pointer(name, table, "draft", versions)
        published = self._pointer(name, table, "published", versions)
        # Versions that are neither are those that containers pin.
        wanted = [number for number in dict.fromkeys((draft, published, *versions)) if number]
        for number in sorted(media.keys() - wanted):
            self.line(name, f"has files of version {number}, which is not one of its versions.")
        return ArchivedEntity(
            key=key,
            created=table.time("created", required=False) or UNKNOWN_TIME,
            can_stand_alone=table.boolean("can_stand_alone"),
            container_type=container_type,
            draft_num=draft,
            published_num=published,
            # What is published and has no draft waits for its deletion to be published.
            draft_deleted=draft is None
            and (published is not None or table.values.get("draft_deleted") is True),
            versions=[versions[number] for number in wanted if number in versions],
        )

    def _container_type(self, name: str, table: Table) -> str:
        container = table.values.get("container")
        if not isinstance(container, dict):
            self.line(name, "container: This field is required.")
        elif len(container) != 1:
            self.line(name, "Container must be a dict with exactly one key.")
        elif (kind := str(next(iter(container)))) not in CONTAINER_TYPES:
            self.line(name, f"Invalid container value: {shown(kind)}")
        else:
            return kind
        return ""

    def _check_key(self, name: str, key: str, component: bool) -> None:
        if component and key.count(":") < 2:
            self.line(
                name,
                f"Invalid entity_key format: '{shown(key)}'. "
                "Expected format: '{namespace}:{type_name}:{component_code}'",
            )
            return
        parts = key.split(":", 2) if component else [key]
        if component and parts[0] != NAMESPACE:
            self.line(name, f"key: components are of {NAMESPACE}, not of {shown(parts[0])}.")
        if not code_is_valid(parts[-1]) or (component and not type_is_valid(parts[1])):
            self.line(name, f"key: illegal characters in {shown(key)!r}.")

    def _versions(
        self, name: str, raw: Any, media: dict[int, list[tuple[str, str]]] | None
    ) -> dict[int, ArchivedVersion]:
        """By number; a component's have media, a container's have children."""
        if not isinstance(raw, list):
            self.line(name, "version: must be a list of tables.")
            return {}
        versions: dict[int, ArchivedVersion] = {}
        for values in raw:
            table = Table(self.line, name, values)
            number = table.number("version_num", least=1)
            if number is None:
                continue
            if number in versions:
                self.line(name, f"version_num {number} stands twice.")
            children = self._children(name, table) if media is None else None
            versions[number] = ArchivedVersion(
                version_num=number,
                title=table.text("title", blank=True, longest=LONGEST_TITLE),
                created=table.time("created", required=False) or UNKNOWN_TIME,
                media=self._media((media or {}).get(number, ()), _types(table)),
                children=children,
                pins=self._pins(name, table, children or []),
            )
        return versions

    def _children(self, name: str, table: Table) -> list[str]:
        container = table.values.get("container")
        if not isinstance(container, dict) or set(container) != {"children"}:
            self.line(name, "Container must have a 'children' key.")
            return []
        children = container["children"]
        if not isinstance(children, list) or not all(isinstance(ref, str) for ref in children):
            self.line(name, "'children' must be a list.")
            return []
        return children

    def _pins(self, name: str, table: Table, children: list[str]) -> tuple[int, ...]:
        pins = table.values.get("pins", [])
        numbers = isinstance(pins, list) and all(
            type(pin) is int and 0 <= pin <= LARGEST_NUMBER for pin in pins
        )
        if pins and (not numbers or len(pins) != len(children)):
            self.line(name, "'pins' must have a version number, or 0, for each child.")
            return ()
        return tuple(pins) if numbers else ()

    def _pointer(
        self, name: str, entity: Table, which: str, versions: dict[int, ArchivedVersion]
    ) -> int | None:
        values = entity.values.get(which, {})
        if not isinstance(values, dict):
            self.line(name, f"{which}: must be a table.")
            return None
        if not values.get("version_num"):
            return None
        number = Table(self.line, name, values).number("version_num", least=1)
        if number is not None and number not in versions:
            self.line(name, f"{which} version {number} has no [[version]] of that number.")
        return number

    # Media

    def _media(
        self, found: Sequence[tuple[str, str]], types: dict[str, Any]
    ) -> list[ArchivedMedia]:
        return [
            ArchivedMedia(
                path,
                UNKNOWN_TIME,
                ArchivedFile(self.files, self.root + file),
                _checked_type(types.get(path)),
            )
            for path, file in found
            if self._media_is_fine(path, file)
        ]

    def _media_is_fine(self, path: str, file: str) -> bool:
        if path != path.strip() or len(path) > LONGEST_PATH:
            self.line(file, "the path has blanks at its ends or is too long.")
            return False
        if path == OLX_PATH:
            try:
                text = read(self.files, self.root + file).decode()
            except UnicodeDecodeError:
                self.line(file, "is not UTF-8.")
                return False
            if "\x00" in text:
                self.line(file, "has a NUL character.")
                return False
        return True

    # Collections, and what refers to what

    def _collection(self, name: str) -> ArchivedCollection | None:
        document = self._document(name)
        if document is None:
            return None
        table = Table(self.line, f"{name} collection section", document.get("collection"))
        if not table.present:
            return None
        code = table.text("key")
        if code and not collection_code_is_valid(code):
            self.line(name, f"key: illegal characters in {shown(code)!r}.")
        members = table.values.get("entities")
        if not isinstance(members, list) or not all(isinstance(ref, str) for ref in members):
            self.line(f"{name} collection section", "entities: This field is required.")
            members = []
        created = table.time_if_any("created") or UNKNOWN_TIME
        return ArchivedCollection(
            code=code,
            title=table.text("title", longest=LONGEST_TITLE),
            description=table.text("description", blank=True, longest=LONGEST_TEXT),
            created=created,
            modified=created,
            members=members,
            enabled=not name.startswith(f"{DISABLED_COLLECTIONS}/"),
        )

    def _check_references(self, collections: dict[str, ArchivedCollection]) -> None:
        for entity in self.entities.containers():
            self._check_children(entity)
            self._check_pins(entity)
        self._check_twice(collections)
        for file, collection in collections.items():
            assert isinstance(collection.members, list)
            for ref in collection.members:
                self.check()
                if self.entities.kind(ref) is None:
                    code = shown(collection.code)
                    self.line(file, f"Entity ref {shown(ref)} not found for collection {code}")

    def _check_children(self, entity: ArchivedEntity) -> None:
        kind, file = kind_of(entity), self.entities.file(entity.key)
        for ref in {ref for version in entity.versions for ref in version.children or ()}:
            self.check()
            found = self.entities.kind(ref)
            if found is None:
                self.line(file, f"child {shown(ref)} is not in the archive.")
            elif found is not CHILD_KINDS[kind]:
                self.line(file, f"{shown(ref)} cannot be a child of a {kind.value}.")

    def _check_pins(self, entity: ArchivedEntity) -> None:
        pins: dict[str, set[int]] = {}
        for version in entity.versions:
            for ref, pin in zip(version.children or (), version.pins, strict=False):
                if pin:
                    pins.setdefault(ref, set()).add(pin)
        file = self.entities.file(entity.key)
        for ref, numbers in sorted(pins.items()):
            self.check()
            pinned = self.entities.get(ref)
            known = {version.version_num for version in pinned.versions} if pinned else numbers
            for pin in sorted(numbers - known):
                detail = f"version {pin} of {shown(ref)}, which it pins, is not in the archive."
                self.line(file, detail)

    def _check_twice(self, collections: dict[str, ArchivedCollection]) -> None:
        seen: set[str] = set()
        for file, collection in collections.items():
            if collection.code in seen:
                self.line(file, f"the archive has this key twice: {shown(collection.code)}")
            seen.add(collection.code)


def _passed_over(name: str) -> bool:
    """What macOS and Windows leave in archives; whatever is in a version's folder is its own."""
    top = name.startswith("__MACOSX/")
    return top or (is_junk(name) and not _IN_VERSION.search(name))


def _types(table: Table) -> dict[str, Any]:
    types = table.values.get("media_types")
    return types if isinstance(types, dict) else {}


def _checked_type(value: Any) -> str:
    """A media type that fits a header; anything else is left to the file's name."""
    fits = isinstance(value, str) and len(value) <= 255 and MEDIA_TYPE.fullmatch(value)
    return value if fits else ""


@dataclass(frozen=True, slots=True)
class _Place:
    """Of which component and version a file is; None where the folder is not one of a version."""

    owner: str
    version: int | None
    path: str


def _media_place(parts: list[str]) -> _Place | None:
    """None for what is in no folder of versions."""
    for stem in (4, 3):  # The code `...` had no name of its own in older archives.
        if len(parts) > stem + 2 and parts[stem] == VERSIONS:
            number = _VERSION_FOLDER.fullmatch(parts[stem + 1])
            owner = "/".join(parts[:4]) if stem == 4 else "/".join(parts[:3]) + "/"
            return _Place(owner, int(number[1]) if number else None, "/".join(parts[stem + 2 :]))
    return None


def _wrapping_folder(files: Unpacked) -> str:
    """Some tools put everything into one folder; that changes nothing."""
    if "package.toml" in files:
        return ""
    top = next(files.names(), "").partition("/")[0] + "/"
    within = all(name.startswith(top) for name in files.names())
    return top if within and f"{top}package.toml" in files else ""
