"""Values of an archive's TOML files, checked as they are taken out. contract: content_core §4.10"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

LARGEST_NUMBER = 2**31 - 1
# Upstream's archives do not say when a version was made.
UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)

Line = Callable[[str, str], None]


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
        text: str = value if key in ("key", "description") else value.strip()
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
        if moment.tzinfo is None:
            return moment.replace(tzinfo=UTC)
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            self._line(key, "Datetime has wrong format.")
            return None

    def seen_time(self, key: str) -> datetime:
        """A time that was checked before."""
        value = self.values.get(key)
        if not isinstance(value, datetime):
            return UNKNOWN_TIME
        return value if value.tzinfo else value.replace(tzinfo=UTC)

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
