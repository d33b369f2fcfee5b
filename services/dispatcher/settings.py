"""Environment variables of the dispatcher, prefix `DISPATCHER_`."""

from datetime import timedelta
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings

LARGEST = 10 * 366 * 24 * 60


class Settings(ServiceSettings):
    """What the dispatcher needs to know beyond what every service does."""

    model_config = SettingsConfigDict(env_prefix="DISPATCHER_", extra="ignore")

    service: Literal["dispatcher"] = "dispatcher"
    worker_ttl_seconds: float = Field(default=20.0, gt=0)
    sweep_seconds: float = Field(default=2.0, gt=0)
    measure_seconds: float = Field(default=10.0, gt=0)
    most_attempts: int = Field(default=3, ge=1)
    # Minutes after which things are cleaned up, and between two clean-ups; 0: never.
    task_protection_minutes: int = Field(default=0, ge=0, le=LARGEST)
    orphan_protection_minutes: int = Field(default=1440, ge=0, le=LARGEST)
    upload_protection_minutes: int = Field(default=0, ge=0, le=LARGEST)
    tmpfile_protection_minutes: int = Field(default=0, ge=0, le=LARGEST)
    link_seconds: int = Field(default=3600, ge=1)
    lease_longest_ttl_seconds: float = Field(default=3600.0, gt=0, le=LARGEST)
    lease_longest_wait_seconds: float = Field(default=300.0, ge=0, le=LARGEST)
    lease_most_resources: int = Field(default=100, ge=1, le=1000)
    # How often those who wait look themselves whether it is their turn, told or not.
    lease_poll_seconds: float = Field(default=0.5, gt=0)
    # Immediate tasks that may be deferred are left to workers.
    prefer_defer: bool = False

    @property
    def worker_ttl(self) -> timedelta:
        return timedelta(seconds=self.worker_ttl_seconds)
