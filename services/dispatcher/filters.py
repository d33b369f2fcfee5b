"""Reading query strings as Pulp's clients write them. contract: dispatcher §5.1"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement
from sqlmodel import col

from services.dispatcher.expressions import read_expression
from shared.problems import BadInput

Condition = ColumnElement[bool]
Filter = Callable[[str], Condition]
Filters = Mapping[str, Filter]
DEFAULT_LIMIT = 100
LARGEST = 2**31 - 1
LONGEST_PATTERN = 200
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "": operator.eq,
    "__lt": operator.lt,
    "__lte": operator.le,
    "__gt": operator.gt,
    "__gte": operator.ge,
}
PLAIN = {
    "limit": f"Results per page, {DEFAULT_LIMIT} by default",
    "page_size": "The same as limit",
    "offset": "Index of the first result",
    "ordering": "Comma list of fields, `-` for descending",
    "fields": "Only these fields, comma list",
    "exclude_fields": "Not these fields, comma list",
    "minimal": "Fewer fields",
    "format": "json",
    "q": "Filters joined by NOT, AND, OR and parentheses",
}
SELECTION = frozenset({"fields", "exclude_fields", "minimal", "format"})


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


@dataclass(frozen=True)
class Searchable:
    """By what a kind of thing can be found and ordered."""

    filters: Filters
    order: Mapping[str, Any]

    def parse(self, items: Iterable[tuple[str, str]]) -> Search:
        """Read a query string. Raises BadInput, naming each parameter that is wrong."""
        return _parse(items, self.filters, self.order)

    def parameters(self) -> list[dict[str, Any]]:
        """For OpenAPI."""
        return parameters(*sorted(self.filters), *PLAIN)


def parameters(*names: str) -> list[dict[str, Any]]:
    """Query parameters for OpenAPI."""
    return [
        {
            "name": name,
            "in": "query",
            "schema": {"type": "string"},
            "description": PLAIN.get(name, "Filter"),
        }
        for name in names
    ]


def parse_selection(items: Iterable[tuple[str, str]]) -> Search:
    """Read the query string of one thing: which fields to show. Others are passed over."""
    return _parse([(name, value) for name, value in items if name in SELECTION], {}, {})


def _parse(items: Iterable[tuple[str, str]], filters: Filters, order: Mapping[str, Any]) -> Search:
    search, wrong = Search(), {}
    for name, value in items:
        try:
            if "\x00" in value:
                raise ValueError("Null characters are not allowed.")
            if name == "q":
                search.conditions.append(read_expression(value, filters))
            elif name in PLAIN:
                _plain(search, name, value, order)
            elif name in filters:
                search.conditions.append(filters[name](value))
            else:
                wrong[name] = ["Unexpected query parameter."]
        except ValueError as error:
            wrong[name] = [str(error)]
    if wrong:
        text = "; ".join(f"{name}: {messages[0]}" for name, messages in wrong.items())
        raise BadInput(text, fields=wrong)
    return search


def _plain(search: Search, name: str, value: str, order: Mapping[str, Any]) -> None:
    match name:
        case "limit" | "page_size":
            search.limit = number(value, least=1)
        case "offset":
            search.offset = number(value, least=0)
        case "ordering":
            search.order = [_ordering(part, order) for part in value.split(",") if part]
        case "fields":
            search.fields = frozenset(value.split(",")) - {""}
        case "exclude_fields":
            search.without = frozenset(value.split(","))
        case "minimal":
            search.minimal = boolean(value)


def _ordering(part: str, order: Mapping[str, Any]) -> Any:
    column = order.get(part.removeprefix("-"))
    if column is None:
        raise ValueError(f"Select a valid choice. {part} is not one of the available choices.")
    return col(column).desc() if part.startswith("-") else col(column).asc()


def number(value: str, *, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", value) or not least <= int(value) <= LARGEST:
        raise ValueError(f"A whole number of at least {least} is required.")
    return int(value)


def boolean(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError("Must be true or false.")
    return value.lower() in ("true", "1")


def date(value: str) -> datetime:
    try:
        return TypeAdapter(datetime).validate_python(value)
    except ValidationError as error:
        raise ValueError("Enter a valid date/time.") from error


def reference(value: str, kind: str, collection: str) -> UUID:
    """The id in an href or a PRN of one of our things. Raises ValueError."""
    pattern = rf"(?:.*/{collection}/|prn:core\.{kind}:)?([0-9a-fA-F-]{{32,36}})/?"
    found = re.fullmatch(pattern, value)
    try:
        return UUID(found.group(1) if found else "")
    except ValueError as error:
        raise ValueError("URI or PRN not valid.") from error


def dates(name: str, column: Any) -> dict[str, Filter]:
    """exact, lt, lte, gt, gte, range, isnull"""
    filters: dict[str, Filter] = {
        f"{name}{lookup}": partial(_compared, column, compare)
        for lookup, compare in COMPARISONS.items()
    }
    return filters | {
        f"{name}__range": partial(_between, column),
        f"{name}__isnull": partial(_is_null, column),
    }


def texts(name: str, column: Any, *lookups: str) -> dict[str, Filter]:
    """`name` itself and `name__lookup` for each lookup; all there are if none is named."""
    chosen = lookups or tuple(TEXT_LOOKUPS)
    filters: dict[str, Filter] = {name: partial(TEXT_LOOKUPS["exact"], column)}
    return filters | {
        f"{name}__{lookup}": partial(TEXT_LOOKUPS[lookup], column)
        for lookup in chosen
        if lookup != "exact"
    }


def identities(kind: str, collection: str, column: Any) -> dict[str, Filter]:
    """pulp_id__in, pulp_href__in, prn__in"""

    def among(value: str) -> Condition:
        found: Condition = column.in_(
            [reference(part, kind, collection) for part in value.split(",")]
        )
        return found

    return dict.fromkeys(("pulp_id__in", "pulp_href__in", "prn__in"), among)


def _compared(column: Any, compare: Callable[[Any, Any], Any], value: str) -> Condition:
    condition: Condition = compare(column, date(value))
    return condition


def _is_null(column: Any, value: str) -> Condition:
    condition: Condition = column.is_(None) if boolean(value) else column.is_not(None)
    return condition


def _between(column: Any, value: str) -> Condition:
    bounds = value.split(",")
    if len(bounds) != 2:
        raise ValueError("Two dates separated by a comma are required.")
    between: Condition = column.between(date(bounds[0]), date(bounds[1]))
    return between


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError("Enter a valid regular expression.") from error
    if len(value) > LONGEST_PATTERN or re.search(r"\\[1-9]", value):
        raise ValueError("This regular expression is not supported.")
    return value


TEXT_LOOKUPS: dict[str, Callable[[Any, str], Any]] = {
    "exact": operator.eq,
    "ne": operator.ne,
    "in": lambda column, value: column.in_(value.split(",")),
    "iexact": lambda column, value: column.ilike(_literal(value)),
    "contains": lambda column, value: column.contains(value, autoescape=True),
    "icontains": lambda column, value: column.icontains(value, autoescape=True),
    "startswith": lambda column, value: column.startswith(value, autoescape=True),
    "istartswith": lambda column, value: column.istartswith(value, autoescape=True),
    "regex": lambda column, value: column.regexp_match(_pattern(value)),
    "iregex": lambda column, value: column.regexp_match(_pattern(value), flags="i"),
}


def _literal(value: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", value)


def selected(view: dict[str, Any], search: Search) -> dict[str, Any]:
    """Only the fields that were asked for."""
    if search.fields:
        return {name: value for name, value in view.items() if name in search.fields}
    return {name: value for name, value in view.items() if name not in search.without}
