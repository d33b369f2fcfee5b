"""Environment variables every service has.

A service's own variable (`LIBRARIES_REDIS_URL`) wins over the suite's (`LYCEUM_REDIS_URL`).
"""

from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ServiceName = Literal["libraries", "instructor_tasks", "user_tasks", "credentials", "dispatcher"]
SHORTEST_SECRET = 32
DEVELOPMENT_MARK = "development"


class ServiceSettings(BaseSettings):
    """What any process of any service needs to know."""

    model_config = SettingsConfigDict(extra="ignore")

    service: ServiceName
    environment: Literal["development", "production"] = "development"
    database_url: str
    database_pool: int = Field(default=10, ge=1, le=200)
    # How long a request may wait for what others have locked.
    lock_wait_seconds: float = Field(default=20.0, gt=0, le=3600)
    redis_url: str = "redis://127.0.0.1:6379/0"
    object_store: str = "file://.lyceum/objects"
    origin_url: str = "http://127.0.0.1:8100"
    dispatcher_url: str | None = None
    user_tasks_url: str | None = None
    libraries_url: str | None = None
    instructor_tasks_url: str | None = None
    credentials_url: str | None = None
    token_secret: SecretStr = SecretStr("")
    jwks_url: str | None = None
    token_audience: str | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "json"
    max_body_bytes: int = Field(default=10 * 1024 * 1024, ge=1024)
    max_upload_bytes: int = Field(default=1024 * 1024 * 1024, ge=1024)
    worker_concurrency: int = Field(default=10, ge=1, le=1000)
    worker_port: int = Field(default=0, ge=0, le=65535)
    worker_heartbeat_seconds: float = Field(default=4.0, gt=0)
    # How long a worker goes on without the dispatcher: shorter than the dispatcher's own limit,
    # so that a run has stopped before its locks are given away.
    worker_silence_seconds: float = Field(default=10.0, gt=0)
    worker_grace_seconds: float = Field(default=30.0, ge=0)
    # What may be recorded of runs on request: memory, pyinstrument, memray, logs, debug-logs.
    task_diagnostics: list[str] = []
    # How many events a stream keeps, about; 0: all.
    event_stream_length: int = Field(default=100_000, ge=0)
    outbox_poll_seconds: float = Field(default=1.0, gt=0)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        suite = EnvSettingsSource(settings_cls, env_prefix="LYCEUM_")
        return init_settings, env_settings, suite, file_secret_settings

    @model_validator(mode="after")
    def refuse_weak_secret(self) -> Self:
        """Production never starts on a missing, short or development secret."""
        secret = self.token_secret.get_secret_value()
        if len(secret) < SHORTEST_SECRET:
            raise ValueError(
                f"LYCEUM_TOKEN_SECRET must have at least {SHORTEST_SECRET} characters; "
                "make one with: openssl rand -hex 32"
            )
        if self.environment == "production" and DEVELOPMENT_MARK in secret:
            raise ValueError(
                "LYCEUM_TOKEN_SECRET is a development secret; production needs its own."
            )
        return self

    def url_of(self, service: str) -> str:
        """Where another service listens; the public origin unless set apart."""
        own: str | None = getattr(self, f"{service}_url")
        return (own or self.origin_url).rstrip("/")

    @property
    def queue(self) -> str:
        """The arq queue this service's jobs wait in."""
        return queue_name(self.service)

    @property
    def heartbeat(self) -> timedelta:
        return timedelta(seconds=self.worker_heartbeat_seconds)


def queue_name(service: str) -> str:
    return f"lyceum:{service}"
