"""Opaque keys of libraries and blocks: made and read by the platform's own package."""

from dataclasses import dataclass
from functools import lru_cache

from opaque_keys import InvalidKeyError
from opaque_keys.edx.locator import (
    LibraryContainerLocator,
    LibraryLocatorV2,
    LibraryUsageLocatorV2,
)

from services.libraries.errors import BlockUnknown, FieldRefused, LibraryUnknown
from services.libraries.states import Kind, component_ref

# Keys are read again and again; what is no key is not remembered.
REMEMBERED = 10_000
CONTAINERS = frozenset(Kind) - {Kind.COMPONENT}


def library_key(org: str, slug: str) -> str:
    """`lib:ORG:SLUG`. Raises FieldRefused for what does not make a key."""
    try:
        return str(LibraryLocatorV2(org=org, slug=slug))  # type: ignore[no-untyped-call]
    except (InvalidKeyError, ValueError) as error:
        raise FieldRefused("slug", "This organisation and slug do not make a key.") from error


@lru_cache(maxsize=REMEMBERED)
def canonical_library_key(text: str) -> str:
    """The same text, if it is a library's key in its exact form. Raises LibraryUnknown."""
    try:
        parsed = LibraryLocatorV2.from_string(text)
    except InvalidKeyError as error:
        raise LibraryUnknown from error
    if str(parsed) != text or "\x00" in text:
        raise LibraryUnknown
    return text


@lru_cache(maxsize=REMEMBERED)
def parse_usage_key(text: str) -> LibraryUsageLocatorV2:
    """Raises BlockUnknown for what is not a component's key in its exact form."""
    try:
        key = LibraryUsageLocatorV2.from_string(text)
    except InvalidKeyError as error:
        raise BlockUnknown from error
    if str(key) != text or "\x00" in text:
        raise BlockUnknown
    return key


@lru_cache(maxsize=REMEMBERED)
def parse_container_key(text: str) -> LibraryContainerLocator:
    """Raises BlockUnknown for what is not a container's key in its exact form."""
    try:
        key = LibraryContainerLocator.from_string(text)
    except InvalidKeyError as error:
        raise BlockUnknown from error
    if str(key) != text or "\x00" in text:
        raise BlockUnknown
    return key


@dataclass(frozen=True, slots=True)
class ItemKey:
    """The parts of a component's or a container's key."""

    library_key: str
    kind: Kind
    type: str
    code: str

    @property
    def ref(self) -> str:
        """How its library names it. contract: content_core §1.5, §1.6"""
        return component_ref(self.type, self.code) if self.kind is Kind.COMPONENT else self.code


@lru_cache(maxsize=REMEMBERED)
def parse_item_key(text: str) -> ItemKey:
    """Raises BlockUnknown for what is neither a component's nor a container's key."""
    if text.startswith("lct:"):
        container = parse_container_key(text)
        if container.container_type not in CONTAINERS:
            raise BlockUnknown
        kind = Kind(container.container_type)
        return ItemKey(str(container.lib_key), kind, kind.value, container.container_id)
    block = parse_usage_key(text)
    return ItemKey(str(block.lib_key), Kind.COMPONENT, block.block_type, block.usage_id)


# Keys of what is stored, whose parts are known to be good, are made at the speed of a text.


def usage_key(org: str, slug: str, block_type: str, code: str) -> str:
    return f"lb:{org}:{slug}:{block_type}:{code}"


def container_key(org: str, slug: str, container_type: str, code: str) -> str:
    return f"lct:{org}:{slug}:{container_type}:{code}"


def item_key(org: str, slug: str, kind: str, type: str, code: str) -> str:
    """How callers name a component or a container."""
    if kind == Kind.COMPONENT:
        return usage_key(org, slug, type, code)
    return container_key(org, slug, type, code)


def object_key(library: str, kind: Kind, type: str, code: str) -> str:
    """The same, from a library's key."""
    _, org, slug = library.split(":")
    return item_key(org, slug, kind, type, code)


def collection_key(library: str, code: str) -> str:
    """`lib-collection:ORG:SLUG:CODE`, from a library's key."""
    return f"lib-collection:{library.removeprefix('lib:')}:{code}"
