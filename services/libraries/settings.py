"""Environment variables of libraries, prefix `LIBRARIES_`."""

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """What libraries needs to know beyond what every service does."""

    model_config = SettingsConfigDict(env_prefix="LIBRARIES_", extra="ignore")

    service: Literal["libraries"] = "libraries"
    creators: Literal["staff", "anyone"] = "staff"
    most_blocks: int = Field(default=100_000, ge=1)
    most_asset_bytes: int = Field(default=20 * 1024 * 1024, ge=1)
    wait_seconds: float = Field(default=30.0, ge=0, le=300)
