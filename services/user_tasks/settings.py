"""Environment variables of user_tasks, prefix `USER_TASKS_`."""

from datetime import timedelta
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """What user_tasks needs to know beyond what every service does."""

    model_config = SettingsConfigDict(env_prefix="USER_TASKS_", extra="ignore")

    service: Literal["user_tasks"] = "user_tasks"
    link_seconds: int = Field(default=3600, ge=1)
    max_age_days: float = Field(default=30.0, gt=0)
    event_retention_hours: float = Field(default=24.0, gt=0)
    stream_heartbeat_seconds: float = Field(default=15.0, gt=0)
    # In one web process.
    streams_per_user: int = Field(default=20, ge=1)
    # After that a stream ends and its client comes again, with a token that is still good.
    stream_seconds: float = Field(default=3600.0, gt=0)

    @property
    def link_ttl(self) -> timedelta:
        return timedelta(seconds=self.link_seconds)

    @property
    def max_age(self) -> timedelta:
        return timedelta(days=self.max_age_days)

    @property
    def event_retention(self) -> timedelta:
        return timedelta(hours=self.event_retention_hours)
