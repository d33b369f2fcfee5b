"""Environment variables of the dispatcher, prefix `DISPATCHER_`."""

from datetime import timedelta
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """What the dispatcher needs to know beyond what every service does."""

    model_config = SettingsConfigDict(env_prefix="DISPATCHER_", extra="ignore")

    service: Literal["dispatcher"] = "dispatcher"
    worker_ttl_seconds: float = Field(default=20.0, gt=0)
    sweep_seconds: float = Field(default=2.0, gt=0)
    most_attempts: int = Field(default=3, ge=1)

    @property
    def worker_ttl(self) -> timedelta:
        return timedelta(seconds=self.worker_ttl_seconds)
