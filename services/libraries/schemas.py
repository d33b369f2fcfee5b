"""Request bodies of the libraries' routes."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from services.libraries.keys import ItemKey, parse_item_key
from services.libraries.states import LICENSES, LONGEST_TYPE, TYPE, Mode
from shared.problems import NotFound

ORG = re.compile(r"[-a-zA-Z0-9_]+")
SLUG = re.compile(r"[-\w]+")
ORG_MESSAGE = 'Enter a valid "slug" consisting of letters, numbers, underscores or hyphens.'
SLUG_MESSAGE = (
    "Enter a valid “slug” consisting of Unicode letters, numbers, underscores, or hyphens."
)


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("Not a valid string.")
    if "\x00" in value:
        raise ValueError("Null characters are not allowed.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("Not a valid string.")
    return value.strip()


def _not_blank(value: str) -> str:
    if not value:
        raise ValueError("This field may not be blank.")
    return value


def _with_text(value: str) -> str:
    _not_blank(value.strip())
    return value


def _org(value: str) -> str:
    if not ORG.fullmatch(value):
        raise ValueError(ORG_MESSAGE)
    return value


def _slug(value: str) -> str:
    if not SLUG.fullmatch(value):
        raise ValueError(SLUG_MESSAGE)
    return value


def _license(value: str) -> str:
    if value not in LICENSES:
        raise ValueError(f'"{value}" is not a valid choice.')
    return value


def _not_empty(value: list[Any]) -> list[Any]:
    if not value:
        raise ValueError("This list may not be empty.")
    return value


Plain = Annotated[str, BeforeValidator(_text)]
Title = Annotated[Plain, StringConstraints(max_length=500), AfterValidator(_not_blank)]
Description = Annotated[Plain, StringConstraints(max_length=10_000)]
Slug = Annotated[Plain, AfterValidator(_slug)]
BlockType = Annotated[
    Plain, StringConstraints(max_length=LONGEST_TYPE, pattern=f"^{TYPE.pattern}$")
]
License = Annotated[Plain, AfterValidator(_license)]


def _package(value: Any) -> Any:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 30:
        return int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        kind = type(value).__name__
        raise ValueError(f"Incorrect type. Expected pk value, received {kind}.")
    return value


class LibraryCreation(BaseModel):
    """contract: libraries §3.2 #2"""

    org: Annotated[Plain, StringConstraints(max_length=255), AfterValidator(_org)]
    slug: Annotated[Plain, StringConstraints(max_length=50), AfterValidator(_slug)]
    title: Title
    description: Description
    allow_public_learning: bool = False
    allow_public_read: bool = False
    license: License = ""
    # A restored package that is not a library yet.
    learning_package: Annotated[int | None, BeforeValidator(_package)] = None


class LibraryChanges(BaseModel):
    """contract: libraries §3.2 #6"""

    title: Title = ""
    description: Description = ""
    allow_public_learning: bool = False
    allow_public_read: bool = False
    license: License = ""


class BlockCreation(BaseModel):
    """contract: libraries §3.6 #23"""

    block_type: BlockType
    definition_id: Annotated[Plain, StringConstraints(max_length=255), AfterValidator(_slug)]
    can_stand_alone: bool = True
    olx: Annotated[
        str | None, Field(description="The first version's OLX; without it an empty element.")
    ] = None
    parent_block: Any = None
    staged_content: Any = None


class ContainerCreation(BaseModel):
    """contract: libraries §3.8 #39"""

    container_type_code: Literal["unit", "subsection", "section"]
    display_name: Title
    slug: Annotated[Plain, StringConstraints(max_length=255), AfterValidator(_slug)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("container_type_code") is None:
            older = data.get("container_type")
            return data | ({"container_type_code": older} if older is not None else {})
        return data


class ContainerChanges(BaseModel):
    """contract: libraries §3.8 #41"""

    display_name: Title


class ChildKeys(BaseModel):
    """contract: libraries §3.8 #44 to #46"""

    usage_keys: Annotated[list[Any], AfterValidator(_not_empty)]


class ChildPin(BaseModel):
    """Which version of a child is shown, null for always the newest; `expected` is its key."""

    pinned_version_num: Annotated[int, Field(ge=1, le=2**31 - 1)] | None
    expected: str | None = None


class CollectionCreation(BaseModel):
    """contract: libraries §3.11 #56. A `key` that is sent is ignored."""

    title: Title
    description: Description


class CollectionChanges(BaseModel):
    """contract: libraries §3.11 #58"""

    title: Title = ""
    description: Description = ""


def _item_keys(keys: list[str]) -> list[str]:
    if not keys:
        raise ValueError("This list may not be empty.")
    try:
        for key in set(keys):
            parse_item_key(key)
    except NotFound:
        raise ValueError("Not a valid key of a component or a container.") from None
    return keys


def _texts(values: list[Any]) -> list[str]:
    """What is wrong with one is told of the whole field. contract: libraries §2.4"""
    return [_text(value) for value in values]


Texts = Annotated[
    list[Any],
    AfterValidator(_texts),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]


class CollectionItems(BaseModel):
    """Components and containers, mixed. contract: libraries §3.11 #61"""

    usage_keys: Annotated[Texts, AfterValidator(_item_keys)]

    @property
    def items(self) -> list[ItemKey]:
        return [parse_item_key(key) for key in dict.fromkeys(self.usage_keys)]


class Transfer(BaseModel):
    """Components and containers, mixed, to copy or move into a library with what is below them."""

    items: Annotated[list[Plain], Field(max_length=1000), AfterValidator(_item_keys)]
    mode: Mode = Mode.COPY
    collections: Annotated[list[Plain], Field(max_length=100)] = []

    @property
    def keys(self) -> list[ItemKey]:
        return [parse_item_key(key) for key in self.items]


class ItemsWanted(BaseModel):
    """What to read at once; `olx` only when it is asked for, as it may be much."""

    keys: Annotated[list[Plain], Field(max_length=100), AfterValidator(_item_keys)]
    olx: bool = False

    @property
    def items(self) -> list[ItemKey]:
        return [parse_item_key(key) for key in self.keys]


class ManyItems(BaseModel):
    """Items in the order they were asked for, and the keys of what is not there."""

    items: list[dict[str, Any]]
    missing: list[str]


class TransferDone(BaseModel):
    """New keys by old ones; `kept` are those of a move that something else still holds."""

    mode: Mode
    keys: dict[str, str]
    kept: list[str]


class ItemCollections(BaseModel):
    """All collections an item is to be in. contract: libraries §3.6 #27"""

    collection_keys: Texts


class ItemCount(BaseModel):
    """How many were sent."""

    count: int


class OlxText(BaseModel):
    """contract: libraries §3.6 #30"""

    olx: Annotated[str, AfterValidator(_with_text)]


class BlockEdit(OlxText):
    """One component's new OLX."""

    usage_key: Plain
    version_num: Annotated[
        int | None,
        Field(ge=1, le=2**31 - 1, description="Only if the draft still has this version."),
    ] = None


class BlockEdits(BaseModel):
    """Components to edit together, all or none."""

    blocks: Annotated[list[BlockEdit], AfterValidator(_not_empty)]


class BlockEdited(BaseModel):
    """A component, and the number of the version that was made."""

    usage_key: str
    version_num: int


class BlocksEdited(BaseModel):
    """In the order in which they were sent."""

    blocks: list[BlockEdited]


class Discards(BaseModel):
    """Components and containers, mixed; with `below` also all that the containers hold."""

    usage_keys: Annotated[list[Plain], AfterValidator(_not_empty)]
    below: bool = False


class Unpublished(BaseModel):
    """How many items differ from what readers see: edited or new ones, and deleted ones."""

    changes: int
    deletes: int


class FieldChanges(BaseModel):
    """contract: libraries §3.12"""

    data: str | None = None
    metadata: dict[str, Any] | None = None


class BlockFields(BaseModel):
    """contract: libraries §3.12"""

    display_name: str
    metadata: dict[str, Any]
    data: str


class FieldsSaved(BlockFields):
    """The fields as they are now, and the number of the version that has them."""

    id: str
    version_num: int


class Discarded(BaseModel):
    """Keys of the items whose drafts were taken back."""

    discarded: list[str]


class OlxSaved(BaseModel):
    """The text as it was sent, and the number of the version it made."""

    olx: str
    version_num: int


class TaskStarted(BaseModel):
    """Work that was dispatched; follow it under its id."""

    task_id: str
