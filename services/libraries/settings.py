"""Environment variables of libraries, prefix `LIBRARIES_`."""

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings

LARGEST = 10 * 366 * 24 * 60


class Settings(ServiceSettings):
    """What libraries needs to know beyond what every service does."""

    model_config = SettingsConfigDict(env_prefix="LIBRARIES_", extra="ignore")

    service: Literal["libraries"] = "libraries"
    creators: Literal["staff", "anyone"] = "staff"
    most_blocks: int = Field(default=100_000, ge=1)
    most_asset_bytes: int = Field(default=20 * 1024 * 1024, ge=1)
    wait_seconds: float = Field(default=30.0, ge=0, le=300)
    # Minutes for which nothing is an orphan; a superseded, never published save for longer.
    orphan_protection_minutes: int = Field(default=1440, ge=0, le=LARGEST)
    save_protection_minutes: int = Field(default=90 * 24 * 60, ge=0, le=LARGEST)
    upload_protection_minutes: int = Field(default=1440, ge=0, le=LARGEST)
    tmpfile_protection_minutes: int = Field(default=1440, ge=0, le=LARGEST)
