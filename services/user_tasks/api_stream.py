"""User tasks as they change: server-sent events. contract: user_tasks §10, §10.2"""

from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from services.user_tasks import statuses
from services.user_tasks.events import Scope
from services.user_tasks.models import Status
from services.user_tasks.stream import Stream
from shared.callers import Caller, CallerDep
from shared.problems import BadInput, TooManyRequests

router = APIRouter(prefix="/api/tasks/v1", tags=["live stream"])
RETRY_MS = 2000
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)]
After = Annotated[
    str | None,
    Query(max_length=20, description="The same as Last-Event-ID, for clients that cannot send it"),
]


@router.get("/events/", operation_id="events_of_mine", response_class=StreamingResponse)
async def follow_mine(
    request: Request, caller: CallerDep, last_event_id: LastEventId = None, after: After = None
) -> StreamingResponse:
    """All your tasks. `Last-Event-ID` resumes where a connection ended."""
    position = _position(last_event_id or after)
    return _answer(request, caller, Scope("user", caller.username), position, ends_with=None)


@router.get(
    "/tasks/{uuid}/events/", operation_id="events_of_task", response_class=StreamingResponse
)
async def follow_task(
    request: Request,
    uuid: UUID,
    caller: CallerDep,
    last_event_id: LastEventId = None,
    after: After = None,
) -> StreamingResponse:
    """One task; ends after its last event."""
    position = _position(last_event_id or after)
    status = await _seen(request, uuid, caller)
    return _answer(
        request, caller, Scope("task", uuid), position, ends_with=uuid,
        ended=status.state.final,
    )  # fmt: skip


@router.get(
    "/tasks/{uuid}/tree/events/", operation_id="events_of_tree", response_class=StreamingResponse
)
async def follow_tree(
    request: Request,
    uuid: UUID,
    caller: CallerDep,
    last_event_id: LastEventId = None,
    after: After = None,
) -> StreamingResponse:
    """A task with everything in its tree; ends after the last event of the tree's top."""
    position = _position(last_event_id or after)
    status = await _seen(request, uuid, caller)
    root = await _seen(request, status.root_id, caller)
    return _answer(
        request, caller, Scope("tree", root.uuid), position, ends_with=root.uuid,
        ended=root.state.final,
    )  # fmt: skip


async def _seen(request: Request, uuid: UUID, caller: Caller) -> Status:
    # Not a session for the whole of the answer: a stream may last for days.
    async with request.app.state.database.sessions() as session:
        return await statuses.get(session, uuid, caller=caller)


def _position(value: str | None) -> int | None:
    if value is None or value == "":
        return None
    if not value.isascii() or not value.isdigit() or int(value) >= 2**63:
        message = "Last-Event-ID is the id of an event."
        raise BadInput(message, fields={"Last-Event-ID": [message]})
    return int(value)


def _answer(
    request: Request,
    caller: Caller,
    scope: Scope,
    position: int | None,
    *,
    ends_with: UUID | None,
    ended: bool = False,
) -> StreamingResponse:
    stream: Stream = request.app.state.stream
    most = request.app.state.settings.streams_per_user
    if stream.per_user[caller.username] >= most:
        raise TooManyRequests(f"You have {most} streams open already.")
    stream.per_user[caller.username] += 1
    chunks = _chunks(stream, caller, scope, position, ends_with, ended)
    return StreamingResponse(chunks, media_type="text/event-stream", headers=HEADERS)


async def _chunks(
    stream: Stream,
    caller: Caller,
    scope: Scope,
    position: int | None,
    ends_with: UUID | None,
    ended: bool,
) -> AsyncIterator[bytes]:
    try:
        yield f"retry: {RETRY_MS}\n\n".encode()
        # Of a task that has ended there is nothing to wait for: what is kept of it is all.
        source = stream.follow(scope, position, live=not ended)
        async for event in source:
            if event is None:
                yield b": still here\n\n"
                continue
            yield _written(event)
            last = event["kind"] in ("task.finished", "task.deleted")
            if last and event.get("status_id") == ends_with:
                break
        await source.aclose()
    finally:
        stream.per_user[caller.username] -= 1
        if not stream.per_user[caller.username]:
            del stream.per_user[caller.username]


def _written(event: dict[str, Any]) -> bytes:
    shown: dict[str, Any] = {}
    if "status_id" in event:
        shown = {
            "task": str(event["status_id"]),
            "root": str(event["root_id"]),
            "at": event["at"].isoformat(),
            **event["payload"],
        }
    head = f"id: {event['id']}\nevent: {event['kind']}\ndata: ".encode()
    return head + orjson.dumps(shown) + b"\n\n"
