"""Reading query strings as Pulp's clients write them. contract: dispatcher §5.1"""

import contextlib
import operator
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Text, Uuid, any_, literal, text
from sqlalchemy.exc import DBAPIError
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher.expressions import read_expression
from services.dispatcher.schemas import moment
from shared.problems import BadInput

Condition = ColumnElement[bool]
Filter = Callable[[str], Condition]
Filters = Mapping[str, Filter]
DEFAULT_LIMIT = 100
LARGEST = 2**31 - 1
LONGEST_PATTERN = 200
PATTERN_LOOKUPS = ("__regex", "__iregex")
PATTERN_MILLISECONDS = 500
# By PostgreSQL's codes for a pattern that is none, and for a statement that took too long.
PATTERN_REFUSALS = {
    "2201B": "Enter a valid regular expression.",
    "57014": "This regular expression takes too long.",
}
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
# Lists that go on when they come twice; of any other parameter the last one counts.
LISTS = frozenset({"fields", "exclude_fields"})
SELECTION = frozenset({"fields", "exclude_fields", "minimal", "format"})


class Use(NamedTuple):
    """A filter with its value, and the parameter it stood in: its own, or `q`."""

    parameter: str
    filter: str
    value: str


@dataclass
class Search:
    """What a client asked for."""

    conditions: list[Condition] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    order: list[Any] = field(default_factory=list)
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    fields: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    minimal: bool = False

    def shows(self, name: str) -> bool:
        """Whether this field was asked for."""
        return (not self.fields or name in self.fields) and name not in self.without


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
    search, wrong = Search(), dict[str, str]()
    for name, value in _once(items).items():
        try:
            if "\x00" in value:
                raise ValueError("Null characters are not allowed.")
            if name == "q":
                apply = partial(_applied, search, filters, name)
                search.conditions.append(read_expression(value, apply))
            elif name in PLAIN:
                _plain(search, name, value, order)
            elif name in filters:
                search.conditions.append(_applied(search, filters, name, name, value))
            else:
                raise ValueError("Unexpected query parameter.")
        except ValueError as error:
            wrong[name] = str(error)
    if wrong:
        raise refused(wrong)
    return search


def _once(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in items:
        found[name] = f"{found[name]},{value}" if name in LISTS and name in found else value
    return found


def _applied(search: Search, filters: Filters, parameter: str, name: str, value: str) -> Condition:
    make = filters.get(name)
    if make is None:
        raise ValueError(f"Filter '{name}' does not exist.")
    search.uses.append(Use(parameter, name, value))
    return make(value)


def refused(wrong: Mapping[str, str]) -> BadInput:
    """What is wrong with which parameter."""
    text = "; ".join(f"{name}: {message}" for name, message in wrong.items())
    return BadInput(text, fields={name: [message] for name, message in wrong.items()})


@contextlib.asynccontextmanager
async def matching(session: AsyncSession, search: Search) -> AsyncIterator[None]:
    """Around the statements of a search: patterns are checked, and cost no more than a moment.

    Raises BadInput, naming the parameter, for one that PostgreSQL does not know or that takes
    too long. Searches without patterns are let through as they are.
    """
    patterns = [use for use in search.uses if use.filter.endswith(PATTERN_LOOKUPS)]
    if not patterns:
        yield
        return
    connection = await session.connection()
    await connection.execute(text(f"set local statement_timeout = {PATTERN_MILLISECONDS}"))
    for use in patterns:
        with _pattern_refused([use]):
            # Also where no row would be looked at.
            await connection.execute(text("select '' ~ :pattern"), {"pattern": use.value})
    with _pattern_refused(patterns):
        yield
    await connection.execute(text("set local statement_timeout to default"))


@contextlib.contextmanager
def _pattern_refused(uses: Iterable[Use]) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        reason = PATTERN_REFUSALS.get(getattr(error.orig, "sqlstate", ""))
        if reason is None:
            raise
        raise refused({use.parameter: reason for use in uses}) from error


def _plain(search: Search, name: str, value: str, order: Mapping[str, Any]) -> None:
    match name:
        case "limit" | "page_size":
            search.limit = number(value, least=1)
        case "offset":
            search.offset = number(value, least=0)
        case "ordering":
            parts = dict.fromkeys(part for part in value.split(",") if part)
            search.order = [_ordering(part, order) for part in parts]
        case "fields":
            search.fields = frozenset(value.split(",")) - {""}
        case "exclude_fields":
            search.without = frozenset(value.split(",")) - {""}
        case "minimal":
            search.minimal = boolean(value)


def _ordering(part: str, order: Mapping[str, Any]) -> Any:
    column = order.get(part.removeprefix("-"))
    if column is None:
        raise ValueError(f"Select a valid choice. {part} is not one of the available choices.")
    return column.desc() if part.startswith("-") else column.asc()


def number(value: str, *, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", value) or not least <= int(value) <= LARGEST:
        raise ValueError(f"A whole number of at least {least} is required.")
    return int(value)


def boolean(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError("Must be true or false.")
    return value.lower() in ("true", "1")


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


def among_texts(column: Any, values: Iterable[str]) -> Condition:
    """One of these: one parameter, however many there are."""
    found: Condition = column == any_(literal(list(values), ARRAY(Text)))
    return found


def among_ids(column: Any, values: Sequence[UUID]) -> Condition:
    """One of these: one parameter, however many there are."""
    found: Condition = column == any_(literal(list(values), ARRAY(Uuid)))
    return found


def identities(kind: str, collection: str, column: Any) -> dict[str, Filter]:
    """pulp_id__in, pulp_href__in, prn__in"""

    def named(value: str) -> Condition:
        return among_ids(column, [reference(part, kind, collection) for part in value.split(",")])

    return dict.fromkeys(("pulp_id__in", "pulp_href__in", "prn__in"), named)


def _compared(column: Any, compare: Callable[[Any, Any], Any], value: str) -> Condition:
    condition: Condition = compare(column, moment(value))
    return condition


def _is_null(column: Any, value: str) -> Condition:
    condition: Condition = column.is_(None) if boolean(value) else column.is_not(None)
    return condition


def _between(column: Any, value: str) -> Condition:
    bounds = value.split(",")
    if len(bounds) != 2:
        raise ValueError("Two dates separated by a comma are required.")
    between: Condition = column.between(moment(bounds[0]), moment(bounds[1]))
    return between


def _pattern(value: str) -> str:
    """What PostgreSQL makes of it is seen in `matching`."""
    if len(value) > LONGEST_PATTERN:
        raise ValueError(f"A regular expression may have at most {LONGEST_PATTERN} characters.")
    if re.search(r"\\[1-9]", value):
        raise ValueError("A regular expression may not refer back to its groups.")
    return value


TEXT_LOOKUPS: dict[str, Callable[[Any, str], Any]] = {
    "exact": operator.eq,
    "ne": operator.ne,
    "in": lambda column, value: among_texts(column, value.split(",")),
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
    return {name: value for name, value in view.items() if search.shows(name)}
