"""Environment variables of credentials, prefix `CREDENTIALS_`."""

from typing import Literal

from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """Nothing beyond what every service needs, yet."""

    model_config = SettingsConfigDict(env_prefix="CREDENTIALS_", extra="ignore")

    service: Literal["credentials"] = "credentials"
