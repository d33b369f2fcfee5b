"""What a backup archive, format version 1, holds. contract: content_core §4"""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

FORMAT_VERSION = 1
OLX_PATH = "block.xml"
COLLECTIONS, DISABLED_COLLECTIONS = "collections", "disabled_collections"

ByteStream = Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `package.toml` says: the library, and who made the archive, when and where."""

    title: str
    key: str
    description: str
    created: datetime
    updated: datetime
    created_at: datetime
    created_by: str = ""
    created_by_email: str = ""
    origin_server: str = ""


@dataclass(frozen=True, slots=True)
class ArchivedMedia:
    """One file of a version; large ones are given as a stream."""

    path: str
    created: datetime
    data: bytes | ByteStream
    # Where it is not what the name of the file says.
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class ArchivedVersion:
    """A component's version has media, a container's has children, some with a pinned version."""

    version_num: int
    title: str
    created: datetime
    media: Sequence[ArchivedMedia] = ()
    children: Sequence[str] | None = None
    # As many as children; 0 is no pin. Empty when there is none.
    pins: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class ArchivedEntity:
    """A component or container with its versions: draft, published, then others that are pinned."""

    key: str
    created: datetime
    can_stand_alone: bool = True
    container_type: str | None = None
    draft_num: int | None = None
    published_num: int | None = None
    draft_deleted: bool = False
    versions: Sequence[ArchivedVersion] = ()


@dataclass(frozen=True, slots=True)
class ArchivedCollection:
    """A collection; its members are entity keys in byte order."""

    code: str
    title: str
    description: str
    created: datetime
    modified: datetime
    members: Sequence[str] | AsyncIterable[str] = ()
    enabled: bool = True
