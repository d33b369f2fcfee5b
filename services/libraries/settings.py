"""Environment variables of libraries, prefix `LIBRARIES_`."""

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

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
    most_blocks: int = Field(default=100_000, ge=1)
    most_asset_bytes: int = Field(default=20 * 1024 * 1024, ge=1)
    # Where pictures of people are; `{username}` and `{size}` (a word) are filled in.
    profile_images: str = PICTURE
    wait_seconds: float = Field(default=30.0, ge=0, le=300)
    # Minutes for which nothing is an orphan; a superseded, never published save for longer.
    orphan_protection_minutes: int = Field(default=1440, ge=0, le=LARGEST)
    save_protection_minutes: int = Field(default=90 * 24 * 60, ge=0, le=LARGEST)
    upload_protection_minutes: int = Field(default=1440, ge=0, le=LARGEST)
    tmpfile_protection_minutes: int = Field(default=1440, ge=0, le=LARGEST)
