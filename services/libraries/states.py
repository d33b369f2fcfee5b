"""The words for kinds, levels and licences, and the rules that need no database."""

import re
import secrets
import unicodedata
from collections.abc import Collection, Iterable
from enum import StrEnum


class Kind(StrEnum):
    """What an entity is. contract: libraries §1.2"""

    COMPONENT = "component"
    UNIT = "unit"
    SUBSECTION = "subsection"
    SECTION = "section"


CHILD_KIND = {
    Kind.UNIT: Kind.COMPONENT,
    Kind.SUBSECTION: Kind.UNIT,
    Kind.SECTION: Kind.SUBSECTION,
}

# How a container is called in OLX.
OLX_TAGS = {Kind.UNIT: "vertical", Kind.SUBSECTION: "sequential", Kind.SECTION: "chapter"}
KIND_OF_TAG = {tag: kind for kind, tag in OLX_TAGS.items()}


class AccessLevel(StrEnum):
    """contract: libraries §3.3"""

    ADMIN = "admin"
    AUTHOR = "author"
    READ = "read"


class ExportFormat(StrEnum):
    """What an export writes: a folder tree, or one archive."""

    TREE = "tree"
    ZIP = "zip"


class Mode(StrEnum):
    """What a transfer between libraries does with what it takes."""

    COPY = "copy"
    MOVE = "move"


class Permission(StrEnum):
    """contract: libraries §5.3"""

    VIEW = "view"
    EDIT = "edit"
    PUBLISH = "publish"
    VIEW_TEAM = "view_team"
    EDIT_TEAM = "edit_team"
    DELETE_LIBRARY = "delete_library"
    CREATE_COLLECTION = "create_collection"
    EDIT_COLLECTION = "edit_collection"
    DELETE_COLLECTION = "delete_collection"
    REUSE = "reuse"
    TAGS = "tags"
    LEARN = "learn"
    # Of no library: to make new ones.
    CREATE = "create"


class Role(StrEnum):
    """What a person or a group is over a scope. contract: libraries §5.4"""

    ADMIN = "library_admin"
    AUTHOR = "library_author"
    CONTRIBUTOR = "library_contributor"
    USER = "library_user"
    CREATOR = "library_creator"


OF_LIBRARY = frozenset(Permission) - {Permission.CREATE}

# Who has the first has the others; who is denied one of the others is denied the first.
IMPLIED = {
    Permission.VIEW: {Permission.LEARN},
    Permission.REUSE: {Permission.VIEW},
    Permission.EDIT: {Permission.VIEW},
    Permission.TAGS: {Permission.EDIT},
    Permission.PUBLISH: {Permission.EDIT},
    Permission.DELETE_LIBRARY: {Permission.EDIT},
    Permission.VIEW_TEAM: {Permission.VIEW},
    Permission.EDIT_TEAM: {Permission.VIEW_TEAM},
    # Whoever changes collections must be able to edit, too.
    Permission.EDIT_COLLECTION: {Permission.EDIT},
    Permission.CREATE_COLLECTION: {Permission.EDIT_COLLECTION},
    Permission.DELETE_COLLECTION: {Permission.EDIT_COLLECTION},
}


def with_implied(permissions: Iterable[Permission]) -> frozenset[Permission]:
    """These, and all that they bring with them."""
    found = set(permissions)
    while more := {each for one in found for each in IMPLIED.get(one, ())} - found:
        found |= more
    return frozenset(found)


def with_dependent(permissions: Iterable[Permission]) -> frozenset[Permission]:
    """These, and all that is nothing without them."""
    missing = set(permissions)
    return frozenset(one for one in Permission if with_implied({one}) & missing)


_USER = {Permission.REUSE, Permission.VIEW_TEAM}
_CONTRIBUTOR = _USER | {
    Permission.TAGS, Permission.CREATE_COLLECTION, Permission.DELETE_COLLECTION,
}  # fmt: skip
_AUTHOR = _CONTRIBUTOR | {Permission.PUBLISH}
GIVES = {
    Role.USER: with_implied(_USER),
    Role.CONTRIBUTOR: with_implied(_CONTRIBUTOR),
    Role.AUTHOR: with_implied(_AUTHOR),
    Role.ADMIN: OF_LIBRARY,
    Role.CREATOR: frozenset({Permission.CREATE}),
}
ALLOWED = {
    AccessLevel.READ: with_implied({Permission.REUSE}),
    AccessLevel.AUTHOR: OF_LIBRARY - {Permission.EDIT_TEAM, Permission.DELETE_LIBRARY},
    AccessLevel.ADMIN: OF_LIBRARY,
}

LICENSES = (
    "", "CC:4.0:BY", "CC:4.0:BY:NC", "CC:4.0:BY:NC:ND", "CC:4.0:BY:NC:SA", "CC:4.0:BY:ND",
    "CC:4.0:BY:SA",
)  # fmt: skip

# What a library offers to create, if the settings do not say otherwise. contract: libraries #8
BLOCK_TYPES = (
    "conditional", "done", "drag-and-drop-v2", "edx_sga", "freetextresponse", "google-calendar",
    "google-document", "html", "invideoquiz", "lti", "lti_consumer", "openassessment", "pdf",
    "poll", "problem", "survey", "video", "word_cloud",
)  # fmt: skip
DISPLAY_NAMES = {
    "problem": "Problem", "openassessment": "Open Response Assessment", "pdf": "PDF",
    "edx_sga": "Staff Graded Assignment", "conditional": "Conditional",
    "freetextresponse": "Free-response Question", "invideoquiz": "In-Video Quiz",
}  # fmt: skip
WITH_CHILDREN = frozenset(
    {"course", "chapter", "sequential", "vertical", "library_content", "itembank", "split_test",
     "randomize", "conditional", "wrapper", "library"}
)  # fmt: skip


def why_no_component(block_type: str, allowed: Collection[str] | None) -> str | None:
    """Why a library holds no components of a type, as the end of a sentence; None if it does.

    `allowed` is None where any type is. contract: libraries §3.6, §4.9
    """
    if block_type in WITH_CHILDREN:
        return "has children, so it is not supported in content libraries."
    if allowed is not None and block_type not in allowed:
        return "is of a type that is not allowed here."
    return None


CODE = re.compile(r"[\w.-]+")
COLLECTION_CODE = re.compile(r"[A-Za-z0-9_.-]+")
# The name of an XML element, as it is one in the OLX; in archives it is the name of a folder.
TYPE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.-]*")
LONGEST_TYPE = 100
# Control characters, line ends and halves of characters. Spaces of any width are fine.
NOT_IN_PATHS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def code_is_valid(code: str) -> bool:
    """contract: content_core §1.1, checked here because a database's locale must not decide."""
    return len(code) <= 255 and CODE.fullmatch(code) is not None


def collection_code_is_valid(code: str) -> bool:
    """contract: content_core §1.1"""
    return len(code) <= 255 and COLLECTION_CODE.fullmatch(code) is not None


def type_is_valid(block_type: str) -> bool:
    """Whether it can be in the key of a component."""
    return len(block_type) <= LONGEST_TYPE and TYPE.fullmatch(block_type) is not None


def component_ref(block_type: str, code: str) -> str:
    return f"xblock.v1:{block_type}:{code}"


def new_code(title: str) -> str:
    """A code out of a title and chance. contract: libraries §4.7"""
    plain = unicodedata.normalize("NFKC", title).lower()
    slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain)).strip("-_")[:200]
    return f"{slug}-{secrets.token_hex(3)}" if slug else secrets.token_hex(6)
