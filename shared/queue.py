"""Putting jobs on a service's queue. With `shared.worker` the only place that knows arq."""

import asyncio
import contextlib
from typing import Any

import orjson
from arq.connections import ArqRedis, RedisSettings, create_pool
from redis.exceptions import RedisError

from shared.problems import Unavailable
from shared.settings import queue_name

EXPIRES_MS = 7 * 24 * 3600 * 1000


def redis_settings(url: str) -> RedisSettings:
    settings = RedisSettings.from_dsn(url)
    settings.conn_timeout, settings.conn_retries, settings.conn_retry_delay = 3, 2, 1
    return settings


class Queue:
    """Hands jobs to workers through Redis. What is lost there must be pushed again by its owner."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opening: asyncio.Task[ArqRedis] | None = None

    async def redis(self) -> ArqRedis:
        """The connection pool, opened on first use. Raises Unavailable while Redis is away."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        opening = self._opening
        try:
            # A caller that is canceled must not leave a pool behind that nobody closes.
            return await asyncio.shield(opening)
        except (RedisError, OSError) as error:
            if self._opening is opening:
                self._opening = None
            raise Unavailable("Redis cannot be reached.") from error

    async def _open(self) -> ArqRedis:
        return await create_pool(
            redis_settings(self._url),
            job_serializer=orjson.dumps,
            job_deserializer=orjson.loads,
        )

    async def push(self, service: str, job: str, *, job_id: str, **kwargs: Any) -> bool:
        """Queue one job. False when a job of this id is waiting or running already."""
        redis = await self.redis()
        try:
            queued = await redis.enqueue_job(
                job, _job_id=job_id, _queue_name=queue_name(service), _expires=EXPIRES_MS, **kwargs
            )
        except (RedisError, OSError) as error:
            raise Unavailable("Redis cannot be reached.") from error
        return queued is not None

    async def close(self) -> None:
        if self._opening is not None:
            with contextlib.suppress(RedisError, OSError):
                await (await self._opening).aclose(close_connection_pool=True)
