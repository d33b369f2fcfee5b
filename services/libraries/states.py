"""The words for kinds, levels and licences, and the rules that need no database."""

import re
import secrets
import unicodedata
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


ALLOWED = {
    AccessLevel.READ: {Permission.VIEW},
    AccessLevel.AUTHOR: set(Permission) - {Permission.EDIT_TEAM, Permission.DELETE_LIBRARY},
    AccessLevel.ADMIN: set(Permission),
}

LICENSES = (
    "", "CC:4.0:BY", "CC:4.0:BY:NC", "CC:4.0:BY:NC:ND", "CC:4.0:BY:NC:SA", "CC:4.0:BY:ND",
    "CC:4.0:BY:SA",
)  # fmt: skip

# What a library offers to create; other types are accepted all the same. contract: libraries #8
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

CODE = re.compile(r"[\w.-]+")
TYPE = re.compile(r"[a-zA-Z0-9_.-]+")


def code_is_valid(code: str) -> bool:
    """contract: content_core §1.1, checked here because a database's locale must not decide."""
    return len(code) <= 255 and CODE.fullmatch(code) is not None


def component_ref(block_type: str, code: str) -> str:
    return f"xblock.v1:{block_type}:{code}"


def new_code(title: str) -> str:
    """A code out of a title and chance. contract: libraries §4.7"""
    plain = unicodedata.normalize("NFKC", title).lower()
    slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain)).strip("-_")[:200]
    return f"{slug}-{secrets.token_hex(3)}" if slug else secrets.token_hex(6)
