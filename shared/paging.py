"""Pages: the envelopes that existing clients read, and keyset pages for our own routes."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

import orjson
from pydantic import BaseModel
from starlette.requests import Request

from shared.problems import BadInput

T = TypeVar("T")


class KeysetPage(BaseModel, Generic[T]):
    """A page in a fixed order. `next` goes back as `?after=` and is null on the last page."""

    results: list[T]
    next: str | None


def make_cursor(*values: Any) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def read_cursor(cursor: str, count: int) -> list[Any]:
    """The values a cursor was made of. Raises BadInput for anything else."""
    try:
        values = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error) as error:
        raise BadInput(
            "This cursor is not valid.", fields={"after": ["Invalid cursor."]}
        ) from error
    if not isinstance(values, list) or len(values) != count:
        raise BadInput("This cursor is not valid.", fields={"after": ["Invalid cursor."]})
    return values


def with_query(request: Request, origin: str, changes: Mapping[str, Any]) -> str:
    """The address of this request on the public origin with some parameters replaced."""
    kept = [(key, value) for key, value in request.query_params.multi_items() if key not in changes]
    added = [(key, value) for key, value in changes.items() if value is not None]
    query = urlencode(kept + added)
    return f"{origin}{request.url.path}{'?' + query if query else ''}"


def numbered(
    request: Request, origin: str, results: Sequence[Any], *, count: int, page: int, size: int
) -> dict[str, Any]:
    """The page-number envelope. contract: libraries §2.5"""
    pages = max(1, -(-count // size))
    more, before = page < pages, page > 1
    return {
        "next": with_query(request, origin, {"page": page + 1}) if more else None,
        "previous": with_query(request, origin, {"page": page - 1}) if before else None,
        "count": count,
        "num_pages": pages,
        "current_page": page,
        "start": (page - 1) * size,
        "results": results,
    }


def windowed(
    request: Request, results: Sequence[Any], *, count: int, limit: int, offset: int
) -> dict[str, Any]:
    """The limit/offset envelope on the host that was asked. contract: dispatcher §5.1"""
    origin = f"{request.url.scheme}://{request.url.netloc}"
    after, before = offset + limit, max(0, offset - limit)
    return {
        "count": count,
        "next": with_query(request, origin, {"limit": limit, "offset": after})
        if after < count
        else None,
        "previous": with_query(request, origin, {"limit": limit, "offset": before or None})
        if offset
        else None,
        "results": results,
    }
