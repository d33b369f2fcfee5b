"""Five services behind one origin in one process."""

from collections.abc import AsyncIterator

import httpx
import pytest_asyncio

from deploy.origin import create_app
from shared.testing import as_user
from tests.conftest import Servers


@pytest_asyncio.fixture
async def http(clean: Servers) -> AsyncIterator[httpx.AsyncClient]:
    origin = create_app()
    front = origin._front
    async with front.router.lifespan_context(front):
        transport = httpx.ASGITransport(app=origin, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://lyceum.test") as http:
            yield http


async def test_the_index_links_every_documentation(http: httpx.AsyncClient) -> None:
    page = await http.get("/")

    assert page.status_code == 200
    assert 'name="viewport"' in page.text
    for service in (await http.get("/healthz")).json()["services"]:
        assert f'href="/{service}/docs"' in page.text
        assert (await http.get(f"/{service}/docs")).status_code == 200
        assert (await http.get(f"/{service}/openapi.json")).json()["openapi"].startswith("3.")


async def test_ready_when_all_services_are(http: httpx.AsyncClient) -> None:
    answer = await http.get("/readyz")

    assert (answer.status_code, answer.json()) == (200, {"ready": True, "missing": {}})


async def test_each_path_reaches_its_service(http: httpx.AsyncClient) -> None:
    ada = as_user("ada", staff=True)

    assert (await http.get("/api/libraries/v2/", headers=ada)).json() == []
    assert (await http.get("/api/tasks/v0/tasks/", headers=ada)).json() == []
    assert (await http.get("/pulp/api/v3/tasks/", headers=ada)).json()["count"] == 0


async def test_nobody_answers_elsewhere(http: httpx.AsyncClient) -> None:
    answer = await http.get("/elsewhere")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
