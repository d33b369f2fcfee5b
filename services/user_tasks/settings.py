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

    @property
    def link_ttl(self) -> timedelta:
        return timedelta(seconds=self.link_seconds)
