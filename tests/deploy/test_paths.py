"""One path table, and every route lies under it."""

import importlib

import pytest

from deploy import paths, proxy


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/api/libraries/v2/lib:a:b/", "libraries"),
        ("/api/tasks/v0/tasks/", "user_tasks"),
        ("/tasks/", "user_tasks"),
        ("/pulp/api/v3/tasks/", "dispatcher"),
        ("/dispatcher/docs", "dispatcher"),
        ("/courses/course-v1:a+b+c/instructor/api/x", "instructor_tasks"),
        ("/", None),
        ("/nothing", None),
        ("/librariesx", None),
    ],
)
def test_who_answers(path: str, service: str | None) -> None:
    assert paths.owner(path) == service


def test_no_prefix_belongs_to_two_services() -> None:
    prefixes = [prefix for prefix, _ in paths.by_prefix()]

    assert len(prefixes) == len(set(prefixes))


@pytest.mark.parametrize("service", sorted(paths.prefixes()))
def test_every_route_of_a_service_lies_under_its_prefixes(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LYCEUM_TOKEN_SECRET", "x" * 40)
    monkeypatch.setenv(f"{service.upper()}_DATABASE_URL", "postgresql://u@h/d")
    app = importlib.import_module(f"services.{service}.app").create_app()

    documented = app.openapi()["paths"]

    for path in [app.docs_url, app.openapi_url, *documented]:
        assert paths.owner(path) == service, path


def test_the_proxys_configuration_is_current() -> None:
    assert proxy.TARGET.read_text() == proxy.render()


def test_the_proxy_lets_nobody_in_by_the_inner_doors() -> None:
    for service in paths.prefixes():
        for name in ("notes", "metrics"):
            assert f"location = /{service}/{name} {{ return 404; }}" in proxy.render()
