"""The boundary of every web process: request ids, body limits, timing."""

import time
import uuid

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.metrics import REQUESTS
from shared.problems import PROBLEM_JSON, TooLarge
from shared.settings import ServiceSettings

log = structlog.get_logger("http")
LONGEST_ID = 64
LONGEST_WISH = 200
STREAMS = ("text/event-stream", "text/event-stream; charset=utf-8")


class Boundary:
    """Gives each request an id, stops bodies over the limit, and records how long it took.

    A multipart body may be as large as an upload; the route that takes it sets its own limit.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, **_diagnostics(headers))
        started = time.perf_counter()
        status, lasting = 500, False

        async def send_marked(message: Message) -> None:
            nonlocal status, lasting
            if message["type"] == "http.response.start":
                status = message["status"]
                lasting = Headers(raw=message["headers"]).get("content-type", "") in STREAMS
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"correlation-id", request_id.encode()),
                ]
            await send(message)

        limit = self._limit(headers)
        try:
            if _declared(headers) > limit:
                await _refuse(limit, scope, receive, send_marked)
            else:
                await self._app(scope, _counted(receive, limit), send_marked)
        finally:
            # A live stream is not slow: it lasts.
            if not lasting:
                self._record(scope, status, time.perf_counter() - started)

    def _limit(self, headers: Headers) -> int:
        multipart = headers.get("content-type", "").startswith("multipart/")
        return self._settings.max_upload_bytes if multipart else self._settings.max_body_bytes

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "(none)")
        labels = (self._settings.service, scope["method"], route, str(status))
        REQUESTS.labels(*labels).observe(seconds)
        if status >= 500 or seconds > 1:
            log.warning(
                "http.slow_or_failed", route=route, status=status, seconds=round(seconds, 3)
            )


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id") or headers.get("correlation-id") or ""
    usable = given.isascii() and given.replace("-", "").isalnum() and len(given) <= LONGEST_ID
    return given if usable else uuid.uuid4().hex


def _diagnostics(headers: Headers) -> dict[str, str]:
    """What shall be recorded of the tasks that this request asks for, as it was sent."""
    wanted = headers.get("x-task-diagnostics")
    return {"task_diagnostics": wanted[:LONGEST_WISH]} if wanted else {}


def _declared(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def _counted(receive: Receive, limit: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            # FastAPI lets its own kind of exception out of its body parsing, no other.
            raise HTTPException(413, f"A request body may have at most {limit} bytes.")
        return message

    return counted


async def _refuse(limit: int, scope: Scope, receive: Receive, send: Send) -> None:
    problem = TooLarge(f"A request body may have at most {limit} bytes.")
    answer = JSONResponse(problem.as_json(), problem.status, media_type=PROBLEM_JSON)
    await answer(scope, receive, send)
