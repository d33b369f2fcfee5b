"""Environment variables of instructor_tasks, prefix `INSTRUCTOR_TASKS_`."""

from typing import Literal

from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """Nothing beyond what every service needs, yet."""

    model_config = SettingsConfigDict(env_prefix="INSTRUCTOR_TASKS_", extra="ignore")

    service: Literal["instructor_tasks"] = "instructor_tasks"
