"""Scopes: one library (`lib:ORG:SLUG`), an org's (`lib:ORG:*`), all (`lib:*`), everything (`*`).

contract: libraries §5.4
"""

import re

from services.libraries.errors import LibraryUnknown
from services.libraries.keys import canonical_library_key

EVERYTHING, ALL_LIBRARIES = "*", "lib:*"
OF_ORG = re.compile(r"lib:([a-zA-Z0-9_.-]+):\*")


def of_org(org: str) -> str:
    return f"lib:{org}:*"


def org_of(scope: str) -> str | None:
    """The org whose libraries all are in this scope, and no others."""
    found = OF_ORG.fullmatch(scope)
    return found[1] if found else None


def is_library(scope: str) -> bool:
    try:
        return canonical_library_key(scope) == scope
    except LibraryUnknown:
        return False


def is_scope(text: str) -> bool:
    return text in (EVERYTHING, ALL_LIBRARIES) or org_of(text) is not None or is_library(text)


def covering(scope: str) -> list[str]:
    """All scopes that this one is in, itself included: the only ones that can match it."""
    found = [scope]
    if is_library(scope):
        found.append(of_org(scope.split(":")[1]))
    if scope != EVERYTHING:
        found.append(ALL_LIBRARIES)
    return list(dict.fromkeys([*found, EVERYTHING]))
