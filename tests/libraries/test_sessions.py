"""One request takes one connection of the pool: with two, full pools would wait for themselves."""

from collections.abc import Iterator
from typing import Any

from fastapi.routing import iter_route_contexts

from deploy.origin import Origin
from shared.database import reading, transaction
from tests.conftest import Servers


def test_no_route_of_any_service_reads_in_one_session_and_writes_in_another(
    servers: Servers,
) -> None:
    routes = [route for app in Origin().services.values() for route in _routes(app)]
    sessions = [(name, {transaction, reading} & set(_calls(tree))) for name, tree in routes]

    assert {len(used) for _, used in sessions} >= {0, 1}
    assert [name for name, used in sessions if len(used) > 1] == []


def _routes(app: Any) -> Iterator[tuple[str, Any]]:
    for route in iter_route_contexts(app.routes):
        tree = getattr(route, "dependant", None)
        if tree is not None:
            yield f"{sorted(route.methods or ())} {route.path}", tree


def _calls(tree: Any) -> Iterator[Any]:
    yield tree.call
    for below in tree.dependencies:
        yield from _calls(below)
