"""Answering with a stored file: streamed, with ranges, under a safe name."""

import re
from collections.abc import Mapping
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from shared.files import Files
from shared.problems import RangeNotSatisfiable

RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
OCTETS = "application/octet-stream"


async def download(
    request: Request,
    files: Files,
    path: str,
    *,
    content_type: str | None = None,
    file_name: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The file, or the part a Range header names; for HEAD the headers alone.

    Raises FileMissing, or RangeNotSatisfiable. Several ranges at once are answered whole, and so
    is a part of what has changed since the caller began (If-Range).
    """
    size = await files.size(path)
    start, end, partial = _span(_range(request, headers or {}), size)
    answer = dict(headers or {}) | {
        "Content-Length": str(end - start),
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
    }
    if partial:
        answer["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if file_name is not None:
        answer["Content-Disposition"] = attachment(file_name)
    status = 206 if partial else 200
    media_type = content_type or OCTETS
    if request.method == "HEAD":
        return Response(status_code=status, headers=answer, media_type=media_type)
    whole = start == 0 and end == size
    body = files.stream(path) if whole else files.stream(path, start=start, end=end)
    return StreamingResponse(body, status, answer, media_type)


def attachment(file_name: str) -> str:
    """A Content-Disposition for any name: plain ASCII, and the exact one after RFC 6266."""
    plain = re.sub(r"[^\w. ()-]", "_", file_name, flags=re.ASCII)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(file_name, safe='')}"


def _range(request: Request, headers: Mapping[str, str]) -> str | None:
    """The part that is asked for; RFC 9110 §13.1.5, §14.2."""
    if request.method == "HEAD":
        return None
    only_of = request.headers.get("if-range")
    if only_of is not None and only_of != headers.get("Etag"):
        return None
    return request.headers.get("range")


def _span(header: str | None, size: int) -> tuple[int, int, bool]:
    found = RANGE.fullmatch(header.strip()) if header else None
    if found is None or found.groups() == ("", ""):
        return 0, size, False
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < int(first):
            return 0, size, False  # means nothing; RFC 9110 §14.1.1
    if start >= end:
        raise RangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
    return start, end, True
