"""The one path table: which service answers under which path."""

import tomllib
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("paths.toml")


@cache
def prefixes() -> dict[str, list[str]]:
    """Path prefixes by service."""
    with TABLE.open("rb") as file:
        return {service: entry["prefixes"] for service, entry in tomllib.load(file).items()}


@cache
def by_prefix() -> list[tuple[str, str]]:
    """(prefix, service), longest first."""
    pairs = [(prefix, service) for service, mine in prefixes().items() for prefix in mine]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def owner(path: str) -> str | None:
    """The service that answers a path."""
    return next((service for prefix, service in by_prefix() if path.startswith(prefix)), None)
