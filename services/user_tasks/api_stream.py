"""User tasks as they change: server-sent events. contract: user_tasks §10, §10.2"""

from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from sqlmodel import col
from starlette.types import Receive, Send
from starlette.types import Scope as Connection

from services.user_tasks import events, statuses, stream, views
from services.user_tasks.events import Bounds, Scope
from services.user_tasks.models import Status
from services.user_tasks.stream import Follower, Start, Stream
from shared.callers import Caller, CallerDep
from shared.database import utc_now
from shared.problems import BadInput

router = APIRouter(prefix="/api/tasks/v1", tags=["live stream"])
RETRY_MS = 2000
SNAPSHOT = 200
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
ENDS = ("task.finished", "task.deleted")
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)]
After = Annotated[
    str | None,
    Query(max_length=20, description="The same as Last-Event-ID, for clients that cannot send it"),
]


class EventStream(StreamingResponse):
    """An answer that lasts, and gives its place back however it ends."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes, None], leave: Callable[[], None]) -> None:
        super().__init__(chunks, headers=HEADERS)
        self._chunks, self._leave = chunks, leave

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()
            await self._chunks.aclose()


@router.get("/events/", operation_id="events_of_mine", status_code=200, response_class=EventStream)
async def follow_mine(
    request: Request, caller: CallerDep, last_event_id: LastEventId = None, after: After = None
) -> Response:
    """All your tasks. `Last-Event-ID` resumes where a connection ended."""
    position = _position(last_event_id or after)
    return await _answer(request, caller, Scope("user", caller.username), position)


@router.get(
    "/tasks/{uuid}/events/",
    operation_id="events_of_task",
    status_code=200,
    response_class=EventStream,
)
async def follow_task(
    request: Request,
    uuid: UUID,
    caller: CallerDep,
    last_event_id: LastEventId = None,
    after: After = None,
) -> Response:
    """One task; ends after its last event. 204 when it has ended and you have seen that."""
    position = _position(last_event_id or after)
    return await _answer(request, caller, Scope("task", uuid), position)


@router.get(
    "/tasks/{uuid}/tree/events/",
    operation_id="events_of_tree",
    status_code=200,
    response_class=EventStream,
)
async def follow_tree(
    request: Request,
    uuid: UUID,
    caller: CallerDep,
    last_event_id: LastEventId = None,
    after: After = None,
) -> Response:
    """The whole tree a task is in; ends when everything in it has ended."""
    position = _position(last_event_id or after)
    root = (await _seen(request, uuid, caller)).root_id
    return await _answer(request, caller, Scope("tree", root), position)


def _position(value: str | None) -> int | None:
    if value is None or value == "":
        return None
    if not value.isascii() or not value.isdigit() or int(value) >= 2**63:
        message = "Last-Event-ID is the id of an event."
        raise BadInput(message, fields={"Last-Event-ID": [message]})
    return int(value)


async def _answer(request: Request, caller: Caller, scope: Scope, position: int | None) -> Response:
    hub: Stream = request.app.state.stream
    follower = hub.join(scope, caller.username)
    try:
        # Before the answer begins: whoever reads the tasks after that misses nothing.
        going, bounds = await _situation(request, caller, scope)
        start = stream.start(position, bounds, ended=going is not None and not going)
    except BaseException:
        hub.leave(follower)
        raise
    if start is None:
        hub.leave(follower)
        # No content: the word for a browser's EventSource not to come again.
        return Response(status_code=204)
    chunks = _chunks(request, follower, start, going)
    return EventStream(chunks, lambda: hub.leave(follower))


async def _situation(
    request: Request, caller: Caller, scope: Scope
) -> tuple[set[UUID] | None, Bounds]:
    """What has not ended of a scope, None for a person's, and where its events are.

    Raises StatusUnknown. What ends between the two looks has its last event behind the first.
    """
    # Not a session for the whole of the answer: a stream may last for hours.
    async with request.app.state.database.sessions() as session:
        bounds = await events.bounds(session, scope)
        if isinstance(scope.key, str):
            return None, bounds
        status = await statuses.get(session, scope.key, caller=caller)
        if scope.kind == "tree":
            going = await statuses.going(session, scope.key)
        else:
            going = set() if status.state.final else {status.uuid}
        return going, bounds if going else await events.bounds(session, scope)


async def _seen(request: Request, uuid: UUID, caller: Caller) -> Status:
    async with request.app.state.database.sessions() as session:
        return await statuses.get(session, uuid, caller=caller)


async def _chunks(
    request: Request, follower: Follower, start: Start, going: set[UUID] | None
) -> AsyncGenerator[bytes, None]:
    # The id alone is no event: it lets the client resume even before the first one.
    yield f"retry: {RETRY_MS}\nid: {start.position}\n\n".encode()
    if start.reset:
        yield await _reset(request, follower.scope, start.position)
    hub: Stream = request.app.state.stream
    async for event in hub.follow(follower, start.position, live=start.live):
        yield b": still here\n\n" if event is None else _written(event)
        if event is not None and going is not None and _has_ended(event, follower.scope, going):
            return


def _has_ended(event: dict[str, Any], scope: Scope, going: set[UUID]) -> bool:
    """Keep what is still going up to date. True when nothing is."""
    if event["kind"] == "task.created":
        going.add(event["status_id"])
    elif event["kind"] in ENDS:
        going.discard(event["status_id"])
        return not going
    return False


async def _reset(request: Request, scope: Scope, position: int) -> bytes:
    """How things stand, for somebody whose last event is forgotten."""
    column = {"task": Status.uuid, "tree": Status.root_id, "user": Status.user}[scope.kind]
    wanted = [col(column) == scope.key, col(Status.deleted_at).is_(None)]
    async with request.app.state.database.sessions() as session:
        rows = await statuses.page(session, conditions=wanted, size=SNAPSHOT)
        shown = await views.status_views(session, rows, request.app.state.settings, now=utc_now())
    body = {"tasks": [view.model_dump(mode="json") for view in shown]}
    return _block(position, "reset", orjson.dumps(body))


def _written(event: dict[str, Any]) -> bytes:
    # An event is the same object for all who follow: it is written once.
    if "written" not in event:
        shown = {
            "task": str(event["status_id"]),
            "root": str(event["root_id"]),
            "at": event["at"].isoformat(),
            **event["payload"],
        }
        event["written"] = _block(event["id"], event["kind"], orjson.dumps(shown))
    written: bytes = event["written"]
    return written


def _block(ident: int, kind: str, data: bytes) -> bytes:
    return f"id: {ident}\nevent: {kind}\ndata: ".encode() + data + b"\n\n"
