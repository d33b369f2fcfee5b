"""Values of an archive's TOML files, checked as they are taken out. contract: content_core §4.10"""

import re
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

LARGEST_NUMBER = 2**31 - 1
# Days that are in the calendar wherever somebody looks at them.
EARLIEST, LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
# Upstream's archives do not say when a version was made. No archive can say this moment.
UNKNOWN_TIME = datetime.max.replace(tzinfo=UTC)

# The time and the memory that the parser takes grow with the square of a key's parts.
MOST_PARTS = 20
_TEXTS = re.compile(
    r'"""(?:[^\\]|\\(?:.|\Z))*?(?:"{3,5}|\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'|#[^\n]*",
    re.DOTALL,
)
_BETWEEN_KEYS = re.compile(r"[\n=,{}\[\]]")

Line = Callable[[str, str], None]


def parse(text: str) -> dict[str, Any]:
    """What a TOML file says. Raises ValueError or RecursionError for what is none."""
    keys = _BETWEEN_KEYS.split(_TEXTS.sub("x", text))
    if any(key.count(".") >= MOST_PARTS for key in keys):
        raise ValueError(f"a key has more than {MOST_PARTS} parts.")
    return tomllib.loads(text)


class Table:
    """One TOML table: its values, checked as they are taken out."""

    def __init__(self, line: Line, file: str, values: Any) -> None:
        self._report, self._file = line, file
        self.present = isinstance(values, dict)
        self.values: dict[str, Any] = values if isinstance(values, dict) else {}
        if not self.present:
            line(file, "No data provided")

    def text(
        self, key: str, *, required: bool = True, blank: bool = False, longest: int | None = None
    ) -> str:
        value = self._value(key, str, "Not a valid string.", required)
        if value is None:
            return ""
        text: str = value if key == "description" else value.strip()
        if not blank and not text.strip():
            self._line(key, "This field may not be blank.")
        if "\x00" in text:
            self._line(key, "Null characters are not allowed.")
        if longest is not None and len(text) > longest:
            self._line(key, f"Ensure this field has no more than {longest} characters.")
        return text

    def number(self, key: str, least: int = 0) -> int | None:
        value = self._value(key, int, "A valid integer is required.", required=True)
        if isinstance(value, bool):
            self._line(key, "A valid integer is required.")
            return None
        if value is not None and not least <= value <= LARGEST_NUMBER:
            self._line(key, f"Ensure this value is between {least} and {LARGEST_NUMBER}.")
            return None
        number: int | None = value
        return number

    def boolean(self, key: str) -> bool:
        return self._value(key, bool, "Must be a valid boolean.", required=True) is True

    def time(self, key: str, *, required: bool = True) -> datetime | None:
        value = self._value(key, datetime, "Datetime has wrong format.", required)
        if value is None:
            return None
        moment: datetime = value
        in_utc = _in_utc(moment)
        if in_utc is None:
            self._line(key, "Datetime has wrong format.")
        return in_utc

    def time_if_any(self, key: str) -> datetime | None:
        """None for what is no time: other readers do not look at it."""
        value = self.values.get(key)
        return _in_utc(value) if isinstance(value, datetime) else None

    def _value(self, key: str, kind: type, message: str, required: bool) -> Any:
        value = self.values.get(key)
        if value is None:
            if required and self.present:
                self._line(key, "This field is required.")
            return None
        if not isinstance(value, kind):
            self._line(key, message)
            return None
        return value

    def _line(self, key: str, message: str) -> None:
        self._report(self._file, f"{key}: {message}")


def _in_utc(moment: datetime) -> datetime | None:
    """Without a zone it is in UTC already. None at the ends of the calendar."""
    try:
        in_utc = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        return None
    return in_utc if EARLIEST <= in_utc <= LATEST else None
