"""Environment variables of libraries, prefix `LIBRARIES_`."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.libraries.entries import LIMITS, ArchiveLimits
from services.libraries.olx import LIMITS as OLX
from services.libraries.olx import OlxLimits
from services.libraries.states import BLOCK_TYPES, TYPE
from shared.settings import ServiceSettings

LARGEST = 10 * 366 * 24 * 60
PICTURE = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Ccircle cx='4' cy='3' r='2'/%3E%3Cpath d='M0 8a4 3 0 0 1 8 0'/%3E%3C/svg%3E"
)


class Settings(ServiceSettings):
    """What libraries needs to know beyond what every service does."""

    model_config = SettingsConfigDict(env_prefix="LIBRARIES_", extra="ignore")

    service: Literal["libraries"] = "libraries"
    creators: Literal["staff", "creators", "anyone"] = "staff"
    # Whether the first library of an org makes it; else only these orgs, and those in use.
    create_orgs: bool = True
    orgs: list[str] = Field(default_factory=list)
    # How long a process does not write down again what it knows of a caller.
    directory_minutes: float = Field(default=5.0, gt=0)
    # The types of components that are offered, and whether no others may be made.
    block_types: list[Annotated[str, Field(pattern=f"^{TYPE.pattern}$")]] = Field(
        default_factory=lambda: list(BLOCK_TYPES)
    )
    only_block_types: bool = False
    most_blocks: int = Field(default=100_000, ge=1)
    # How many blocks one request may edit or take back.
    most_bulk_items: int = Field(default=1000, ge=1, le=100_000)
    # How many items may be copied or moved between libraries by one request.
    most_transferred: int = Field(default=5_000, ge=1)
    most_asset_bytes: int = Field(default=20 * 1024 * 1024, ge=1)
    # Front ends, besides the suite's own origin, that may show static files in frames.
    frame_ancestors: list[Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:*-]+$")]] = Field(
        default_factory=list
    )
    # Where pictures of people are; `{username}` and `{size}` (a word) are filled in.
    profile_images: str = PICTURE
    wait_seconds: float = Field(default=30.0, ge=0, le=300)
    # Minutes for which nothing is an orphan; a superseded, never published save for longer.
    orphan_protection_minutes: int = Field(default=1440, ge=0, le=LARGEST)
    save_protection_minutes: int = Field(default=90 * 24 * 60, ge=0, le=LARGEST)
    upload_protection_minutes: int = Field(default=1440, ge=0, le=LARGEST)
    # Hours for which a restored archive waits to become a library.
    staged_hours: float = Field(default=72, gt=0, le=24 * 3660)
    # Days after which a finished export goes with its files; 0: never.
    export_days: float = Field(default=0, ge=0, le=3660)
    # As long as user_tasks keeps what has ended, so that people can be told.
    max_age_days: float = Field(default=30.0, gt=0)
    # How large an uploaded archive may become when it is unpacked, and OLX when it is read.
    archive_most_entries: int = Field(default=LIMITS.entries, ge=1)
    archive_most_file_bytes: int = Field(default=LIMITS.file_bytes, ge=1)
    archive_most_bytes: int = Field(default=LIMITS.expanded_bytes, ge=1)
    archive_most_ratio: int = Field(default=LIMITS.ratio, ge=1)
    # From which size of what comes out the ratio counts.
    archive_ratio_free_bytes: int = Field(default=LIMITS.ratio_free_bytes, ge=0)
    # Codes of 255 and paths of 500 characters, each of up to four bytes, and what is around them:
    # whatever can be stored here comes back from its backup.
    archive_most_depth: int = Field(default=300, ge=1)
    archive_most_name_bytes: int = Field(default=4000, ge=1)
    archive_most_segment_bytes: int = Field(default=2100, ge=1)
    archive_most_toml_bytes: int = Field(default=LIMITS.toml_bytes, ge=1)
    olx_most_bytes: int = Field(default=OLX.bytes, ge=1)
    olx_most_depth: int = Field(default=OLX.depth, ge=1, le=200)
    tmpfile_protection_minutes: int = Field(default=1440, ge=0, le=LARGEST)

    @property
    def allowed_types(self) -> frozenset[str] | None:
        """The only types of components that may be made; None: any."""
        return frozenset(self.block_types) if self.only_block_types else None

    @property
    def archive_limits(self) -> ArchiveLimits:
        return ArchiveLimits(
            entries=self.archive_most_entries,
            file_bytes=self.archive_most_file_bytes,
            expanded_bytes=self.archive_most_bytes,
            ratio=self.archive_most_ratio,
            ratio_free_bytes=self.archive_ratio_free_bytes,
            depth=self.archive_most_depth,
            name_bytes=self.archive_most_name_bytes,
            segment_bytes=self.archive_most_segment_bytes,
            toml_bytes=self.archive_most_toml_bytes,
        )

    @property
    def olx_limits(self) -> OlxLimits:
        return OlxLimits(bytes=self.olx_most_bytes, depth=self.olx_most_depth)
