"""Calling another service: time limits, retries, and its exceptions raised again."""

import asyncio
from typing import Any

import httpx
import orjson
import stamina
import structlog

from shared.callers import ServiceTokens
from shared.lines import Lines
from shared.problems import PROBLEM_JSON, Problem, Unavailable, from_response
from shared.settings import ServiceSettings

READ_SECONDS = 15.0
TIMEOUT = httpx.Timeout(READ_SECONDS, connect=3.0)


class ServiceClients:
    """One process's connections to the other services, under this service's own token."""

    def __init__(
        self, settings: ServiceSettings, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._settings = settings
        self._tokens = ServiceTokens(settings)
        self._transport = transport or Lines()

    async def close(self) -> None:
        await self._transport.aclose()

    async def get(self, service: str, path: str, **params: Any) -> Any:
        """The JSON another service answers.

        Raises the Problem it answered with, or Unavailable when it cannot be reached.
        """
        return await self._call("GET", service, path, params=params, attempts=3)

    async def post(
        self, service: str, path: str, body: Any, *, attempts: int = 3, patience: float = 0.0
    ) -> Any:
        """Send JSON; only for calls that may arrive twice. Raises as `get` does.

        `patience` are seconds that the answer may take beyond the usual.
        """
        return await self._call(
            "POST", service, path, body=body, attempts=attempts, patience=patience
        )

    async def _call(
        self, method: str, service: str, path: str, *, attempts: int, **kwargs: Any
    ) -> Any:
        async for attempt in stamina.retry_context(
            on=Unavailable, attempts=attempts, wait_initial=0.1, wait_max=2.0, timeout=30.0
        ):
            with attempt:
                return await self._once(method, self._settings.url_of(service) + path, **kwargs)
        raise AssertionError("unreachable")

    async def _once(
        self,
        method: str,
        url: str,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        patience: float = 0.0,
    ) -> Any:
        headers = {
            "Accept": f"{PROBLEM_JSON}, application/json",
            "Authorization": f"Bearer {self._tokens.current()}",
        }
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        if request_id:
            headers["X-Request-Id"] = str(request_id)
        content = None
        if body is not None:
            content = orjson.dumps(body, default=str)
            headers["Content-Type"] = "application/json"
        request = httpx.Request(
            method, url, params=params, headers=headers, content=content,
            extensions={"timeout": TIMEOUT.as_dict() | {"read": READ_SECONDS + patience}},
        )  # fmt: skip
        try:
            response = await self._transport.handle_async_request(request)
            await response.aread()
        except httpx.HTTPError as error:
            raise Unavailable(f"{url} cannot be reached: {type(error).__name__}") from error
        if response.is_error:
            raise from_response(response)
        return orjson.loads(response.content) if response.content else None


async def patiently(call: Any, *, what: str, longest: float = 10.0) -> Any:
    """Repeat a call until its service is back. Only a final Problem gets out."""
    pause = 0.2
    while True:
        try:
            return await call()
        except Unavailable as problem:
            structlog.get_logger("clients").warning(
                "waiting_for_service", what=what, why=problem.detail
            )
        await asyncio.sleep(pause)
        pause = min(longest, pause * 2)


__all__ = ["Problem", "ServiceClients", "patiently"]
