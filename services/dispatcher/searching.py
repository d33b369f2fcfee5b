"""Finding tasks by what Pulp's clients filter on. contract: dispatcher §5.1, §5.2"""

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, and_, func, select
from sqlmodel import col
from sqlmodel import select as select_tasks
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.models import Task
from services.dispatcher.states import State
from shared.callers import Caller
from shared.problems import BadInput

Condition = ColumnElement[bool]
DEFAULT_LIMIT = 100
LARGEST = 2**31 - 1

ORDER_FIELDS = {
    "pulp_id": Task.id,
    "pulp_created": Task.created_at,
    "pulp_last_updated": Task.updated_at,
    "state": Task.state,
    "name": Task.name,
    "logging_cid": Task.logging_cid,
    "unblocked_at": Task.unblocked_at,
    "started_at": Task.started_at,
    "finished_at": Task.finished_at,
}
DATE_FIELDS = {
    "pulp_created": Task.created_at,
    "unblocked_at": Task.unblocked_at,
    "started_at": Task.started_at,
    "finished_at": Task.finished_at,
}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "": operator.eq,
    "__lt": operator.lt,
    "__lte": operator.le,
    "__gt": operator.gt,
    "__gte": operator.ge,
}
# In which forms a claim may stand in the record, by filter.
CLAIM_FORMS = {
    "reserved_resources": ("", "shared:"),
    "exclusive_resources": ("",),
    "shared_resources": ("shared:",),
}
PLAIN = {
    "limit",
    "offset",
    "ordering",
    "fields",
    "exclude_fields",
    "minimal",
    "format",
    "page_size",
}
SELECTION = {"fields", "exclude_fields", "minimal", "format"}


@dataclass
class Search:
    """What a client asked for."""

    conditions: list[Condition] = field(default_factory=list)
    order: list[Any] = field(default_factory=list)
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    fields: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    minimal: bool = False


def parse(items: Iterable[tuple[str, str]], *, only_selection: bool = False) -> Search:
    """Read a query string. Raises BadInput, naming each parameter that is unknown or invalid."""
    search, wrong = Search(), {}
    for name, value in items:
        try:
            if "\x00" in value:
                raise ValueError("Null characters are not allowed.")
            if name in PLAIN:
                _plain(search, name, value)
            elif not only_selection and name in FILTERS:
                search.conditions.append(FILTERS[name](value))
            elif not only_selection:
                wrong[name] = ["Unexpected query parameter."]
        except ValueError as error:
            wrong[name] = [str(error)]
    if wrong:
        text = "; ".join(f"{name}: {messages[0]}" for name, messages in wrong.items())
        raise BadInput(text, fields=wrong)
    return search


def _plain(search: Search, name: str, value: str) -> None:
    match name:
        case "limit" | "page_size":
            search.limit = _number(value, least=1)
        case "offset":
            search.offset = _number(value, least=0)
        case "ordering":
            search.order = [_ordering(part) for part in value.split(",") if part]
        case "fields":
            search.fields = frozenset(value.split(",")) - {""}
        case "exclude_fields":
            search.without = frozenset(value.split(","))
        case "minimal":
            search.minimal = _boolean(value)


def _number(value: str, *, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", value) or not least <= int(value) <= LARGEST:
        raise ValueError(f"A whole number of at least {least} is required.")
    return int(value)


def _boolean(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError("Must be true or false.")
    return value.lower() in ("true", "1")


def _ordering(part: str) -> Any:
    column = ORDER_FIELDS.get(part.removeprefix("-"))
    if column is None:
        raise ValueError(f"Select a valid choice. {part} is not one of the available choices.")
    return col(column).desc() if part.startswith("-") else col(column).asc()


def _state(value: str) -> State:
    try:
        return State(value)
    except ValueError as error:
        raise ValueError(
            f"Select a valid choice. {value} is not one of the available choices."
        ) from error


def _states(value: str) -> list[State]:
    return [_state(part) for part in value.split(",")]


def _date(value: str) -> datetime:
    try:
        return TypeAdapter(datetime).validate_python(value)
    except ValidationError as error:
        raise ValueError("Enter a valid date/time.") from error


def task_id(value: str) -> UUID:
    """The id in an href or a PRN of a task. Raises ValueError."""
    found = re.fullmatch(r"(?:.*/tasks/|prn:core\.task:)?([0-9a-fA-F-]{32,36})/?", value)
    try:
        return UUID(found.group(1) if found else "")
    except ValueError as error:
        raise ValueError("URI or PRN not valid.") from error


def _claims(values: Sequence[str], forms: Sequence[str]) -> Condition:
    """All of these resources are claimed, each in one of the given forms."""
    record: Any = col(Task.reserved)
    if len(forms) == 1:
        only: Condition = record.contains([forms[0] + value for value in values])
        return only
    return and_(*(record.overlap([form + value for form in forms]) for value in values))


def _resource_filters() -> dict[str, Callable[[str], Condition]]:
    filters: dict[str, Callable[[str], Condition]] = {}
    for name, forms in CLAIM_FORMS.items():
        filters[name] = partial(_one_claim, forms)
        filters[f"{name}__in"] = partial(_many_claims, forms)
    return filters


def _one_claim(forms: Sequence[str], value: str) -> Condition:
    return _claims([value], forms)


def _many_claims(forms: Sequence[str], value: str) -> Condition:
    return _claims(value.split(","), forms)


def _date_filters() -> dict[str, Callable[[str], Condition]]:
    filters: dict[str, Callable[[str], Condition]] = {}
    for name, attribute in DATE_FIELDS.items():
        for lookup, compare in COMPARISONS.items():
            filters[f"{name}{lookup}"] = partial(_compared, col(attribute), compare)
        filters[f"{name}__range"] = partial(_between, col(attribute))
        filters[f"{name}__isnull"] = partial(_is_null, col(attribute))
    return filters


def _compared(column: Any, compare: Callable[[Any, Any], Any], value: str) -> Condition:
    condition: Condition = compare(column, _date(value))
    return condition


def _is_null(column: Any, value: str) -> Condition:
    condition: Condition = column.is_(None) if _boolean(value) else column.is_not(None)
    return condition


def _between(column: Any, value: str) -> Condition:
    bounds = value.split(",")
    if len(bounds) != 2:
        raise ValueError("Two dates separated by a comma are required.")
    between: Condition = column.between(_date(bounds[0]), _date(bounds[1]))
    return between


def _contains(column: Any, value: str) -> Condition:
    condition: Condition = column.contains(value, autoescape=True)
    return condition


def _ids(value: str) -> Condition:
    return col(Task.id).in_([task_id(part) for part in value.split(",")])


def _with_child(value: str) -> Condition:
    child = select(col(Task.parent_id)).where(col(Task.id) == task_id(value))
    return col(Task.id).in_(child)


FILTERS: dict[str, Callable[[str], Condition]] = {
    "state": lambda value: col(Task.state) == _state(value),
    "state__in": lambda value: col(Task.state).in_(_states(value)),
    "state__ne": lambda value: col(Task.state) != _state(value),
    "name": lambda value: col(Task.name) == value,
    "name__contains": lambda value: _contains(col(Task.name), value),
    "name__in": lambda value: col(Task.name).in_(value.split(",")),
    "name__ne": lambda value: col(Task.name) != value,
    "logging_cid": lambda value: col(Task.logging_cid) == value,
    "logging_cid__contains": lambda value: _contains(col(Task.logging_cid), value),
    "parent_task": lambda value: col(Task.parent_id) == task_id(value),
    "child_tasks": _with_child,
    "pulp_id__in": _ids,
    "pulp_href__in": _ids,
    "prn__in": _ids,
    # Old clients still send it; a worker is not shown any more, so nothing matches.
    "worker": lambda value: col(Task.id).is_(None),
    **_date_filters(),
    **_resource_filters(),
}
PARAMETERS = {
    **dict.fromkeys(sorted(FILTERS), "Filter"),
    "ordering": "Comma list of fields, `-` for descending",
    "limit": f"Results per page, {DEFAULT_LIMIT} by default",
    "offset": "Index of the first result",
    "fields": "Only these fields, comma list",
    "exclude_fields": "Not these fields, comma list",
    "minimal": "Fewer fields",
}


async def find(
    session: AsyncSession, search: Search, *, caller: Caller
) -> tuple[Sequence[Task], int, dict[UUID, list[UUID]]]:
    """The page of tasks this caller may see, how many there are in all, and their children."""
    conditions = list(search.conditions)
    if not caller.administrator:
        conditions.append(col(Task.username) == caller.username)
    connection = await session.connection()
    counted = await connection.execute(select(func.count()).select_from(Task).where(*conditions))
    rows = await session.exec(
        select_tasks(Task)
        .where(*conditions)
        .order_by(*search.order, col(Task.created_at).desc(), col(Task.seq).desc())
        .limit(search.limit)
        .offset(search.offset)
    )
    tasks = rows.all()
    children = {} if search.minimal else await children_of(session, [task.id for task in tasks])
    return tasks, counted.scalar_one(), children


async def children_of(session: AsyncSession, parents: Sequence[UUID]) -> dict[UUID, list[UUID]]:
    """Child task ids by parent, in one statement."""
    found: dict[UUID, list[UUID]] = {}
    if parents:
        connection = await session.connection()
        rows = await connection.execute(
            select(col(Task.parent_id), col(Task.id))
            .where(col(Task.parent_id).in_(parents))
            .order_by(col(Task.seq))
        )
        for parent, child in rows:
            found.setdefault(parent, []).append(child)  # type: ignore[arg-type]
    return found
