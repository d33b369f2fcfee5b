"""Errors a caller may have to handle, and how they look on the wire.

Own routes answer with RFC 9457. Routes that existing clients call answer with the body of
their contract, unless the caller asks for `application/problem+json`. Nothing else decides.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import httpx
import structlog
from asyncpg import PostgresError
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

log = structlog.get_logger("web")
PROBLEM_JSON = "application/problem+json"
# PostgreSQL's codes: given up so that another could go on; waited for another long enough; it
# stops, starts or takes nobody more (and all that begin with 08: the connection is gone).
GIVEN_UP, LOCKED = {"40P01", "40001"}, "55P03"
AWAY = {"57P01", "57P02", "57P03", "53300"}
# A pattern, because pydantic tries it without leaving its own code.
NO_NUL = r"^[^\x00]*$"
BUSY = "Somebody else has worked on this for a while: try again."
NO_DATABASE = "The database cannot be reached at the moment: try again."
RETRY = {"Retry-After": "5"}
# FastAPI's word for a body whose text it cannot decode.
UNREADABLE = "There was an error parsing the body"
ContractBody = Callable[["Problem"], Any]


KNOWN: dict[str, type["Problem"]] = {}


class Problem(Exception):
    """A condition with an HTTP status, a stable type and a sentence a user may read."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong"

    def __init__(
        self,
        detail: str | None = None,
        *,
        fields: dict[str, Any] | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
        **extensions: Any,
    ) -> None:
        self.detail = detail or self.title
        self.fields = fields
        self.body = body
        self.headers = headers or {}
        self.extensions = extensions
        super().__init__(self.detail)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        KNOWN[cls.type] = cls

    def as_json(self) -> dict[str, Any]:
        """The RFC 9457 members."""
        document: dict[str, Any] = {
            "type": f"urn:lyceum:{self.type}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.fields:
            document["fields"] = self.fields
        return document | self.extensions


class BadInput(Problem):
    status, type, title = 400, "bad-input", "The request is not valid"


class NotAuthenticated(Problem):
    status, type, title = 401, "not-authenticated", "Authentication credentials were not provided."

    def __init__(self, detail: str | None = None, **kwargs: Any) -> None:
        super().__init__(detail, **kwargs)
        self.headers.setdefault("WWW-Authenticate", 'JWT realm="api"')


class Forbidden(Problem):
    status, type = 403, "forbidden"
    title = "You do not have permission to perform this action."


class NotFound(Problem):
    status, type, title = 404, "not-found", "Not found."


class MethodNotAllowed(Problem):
    status, type, title = 405, "method-not-allowed", "Method not allowed."


class Conflict(Problem):
    status, type, title = 409, "conflict", "The current state does not allow this"


class TooManyRequests(Problem):
    status, type, title = 429, "too-many-requests", "Too many requests"


class TooLarge(Problem):
    status, type, title = 413, "too-large", "The request is too large"


class UnsupportedMedia(Problem):
    status, type, title = 415, "unsupported-media-type", "Unsupported media type"


class RangeNotSatisfiable(Problem):
    status, type, title = 416, "range-not-satisfiable", "The range lies outside the file"


class Unavailable(Problem):
    """A neighbour is away: try again later."""

    status, type, title = 503, "unavailable", "Not available at the moment"


class GivenUp(Problem):
    """The database gave this up so that another could go on. Nothing is stored: try again."""

    status, type, title = 409, "given-up", "Somebody changed the same at this moment: try again"


BY_STATUS: dict[int, type[Problem]] = {
    problem.status: problem
    for problem in (
        BadInput,
        NotAuthenticated,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        Conflict,
        TooLarge,
        UnsupportedMedia,
        RangeNotSatisfiable,
        Unavailable,
    )
}


def from_response(response: httpx.Response) -> Problem:
    """The exception that a service's problem answer stands for."""
    try:
        document = response.json()
        kind = str(document["type"]).removeprefix("urn:lyceum:")
    except (ValueError, KeyError, TypeError):
        text = f"{response.request.url.path} answered {response.status_code}"
        if response.status_code >= 500:
            return Unavailable(text)
        return BY_STATUS.get(response.status_code, BadInput)(text)
    usual = {"type", "title", "status", "detail", "fields"}
    default = Unavailable if response.status_code >= 500 else BadInput
    if kind == GivenUp.type:
        return Unavailable(document.get("detail"))  # so that whoever calls tries again
    problem = KNOWN.get(kind) or BY_STATUS.get(response.status_code, default)
    return problem(
        document.get("detail"),
        fields=document.get("fields"),
        **{key: value for key, value in document.items() if key not in usual},
    )


def contract_body(problem: Problem) -> Any:
    """The body most compatible routes share: field errors, an exact body, or one detail."""
    if problem.body is not None:
        return problem.body
    return problem.fields or {"detail": problem.detail}


def install(
    app: FastAPI,
    *,
    compatible: Sequence[str] = (),
    body: ContractBody = contract_body,
) -> None:
    """Answer every Problem, and every framework error, in the form its caller expects."""

    def answer(request: Request, problem: Problem) -> Response:
        wants_problem = PROBLEM_JSON in request.headers.get("accept", "")
        if wants_problem or not request.url.path.startswith(tuple(compatible)):
            return JSONResponse(
                problem.as_json(), problem.status, problem.headers, media_type=PROBLEM_JSON
            )
        return JSONResponse(body(problem), problem.status, problem.headers)

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return answer(request, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        kind = request.headers.get("content-type", "")
        # FastAPI hands the body over as it came when it is not said to be JSON.
        if isinstance(error.body, bytes) and error.body:
            return answer(request, UnsupportedMedia(f'Unsupported media type "{kind}" in request.'))
        return answer(request, invalid_request(_errors(request, error)))

    async def on_database(request: Request, error: Exception) -> Response:
        if was_given_up(error):
            return answer(request, GivenUp())
        if _code(error) == LOCKED:
            return answer(request, Unavailable(BUSY, headers=RETRY))
        if _is_away(error):
            log.warning("web.database_away", why=str(getattr(error, "orig", error)))
            return answer(request, Unavailable(NO_DATABASE, headers=RETRY))
        raise error

    async def on_unexpected(request: Request, error: Exception) -> Response:
        # The server logs the error itself; callers get no details.
        return answer(request, Problem())

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            detail = f'Method "{request.method}" not allowed.'
        else:
            detail = "Not found." if error.status_code == 404 else str(error.detail)
        if detail == UNREADABLE:
            detail = "JSON parse error - the body is not UTF-8."
        kind = BY_STATUS.get(error.status_code, BadInput)
        return answer(request, kind(detail, headers=dict(error.headers or {})))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(Exception, on_unexpected)
    for kind in (DBAPIError, PostgresError, ConnectionError, PoolTimeout):
        app.add_exception_handler(kind, on_database)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


def was_given_up(error: Exception) -> bool:
    """Whether PostgreSQL ended a transaction so that another could go on: to be done again."""
    return _code(error) in GIVEN_UP


def _is_away(error: Exception) -> bool:
    code = _code(error)
    if code is not None:
        return code in AWAY or code.startswith("08")
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return lost or isinstance(error, ConnectionError | PoolTimeout)


def _code(error: Exception) -> str | None:
    code: str | None = getattr(getattr(error, "orig", error), "sqlstate", None)
    return code


def _errors(request: Request, error: RequestValidationError) -> Sequence[Any]:
    """What did not validate; a body without a byte lacks what an empty object lacks."""
    found = error.errors()
    rest = [item for item in found if (item["loc"], item["type"]) != (("body",), "missing")]
    body = getattr(request.scope.get("route"), "body_field", None)
    if body is None or len(rest) == len(found):
        return found
    _, missing = body.validate({}, {}, loc=("body",))
    return [*rest, *missing] if missing else found


def invalid_request(errors: Sequence[Any]) -> Problem:
    """Name each field that did not validate; never echo what was sent."""
    fields: dict[str, Any] = {}
    for item in errors:
        where = [
            str(part) for part in item["loc"] if part not in ("body", "query", "path", "header")
        ]
        if item["type"] == "json_invalid":
            return BadInput(f"JSON parse error - {item['ctx']['error']}")
        if item["loc"][0] == "path":
            return NotFound()
        name = ".".join(where) or "non_field_errors"
        fields.setdefault(name, []).append(_message(item))
    return BadInput("; ".join(f"{name}: {text[0]}" for name, text in fields.items()), fields=fields)


def _message(item: dict[str, Any]) -> str:
    if item["type"] == "missing":
        return "This field is required."
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] == "string_pattern_mismatch" and item["ctx"]["pattern"] == NO_NUL:
        return "NUL characters are not allowed."
    if item["type"] in ("too_long", "string_too_long") and isinstance(item.get("input"), str):
        return f"Ensure this field has no more than {item['ctx']['max_length']} characters."
    return str(item["msg"])
