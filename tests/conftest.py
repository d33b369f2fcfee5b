"""Real PostgreSQL and Redis for every test, one pair of servers per test process."""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.databases import create_databases
from deploy.stores import Stores, start_stores
from shared.migrations.__main__ import upgrade_one
from shared.testing import environment, truncate_all


@dataclass(frozen=True)
class Servers:
    """The running stores and where each service's database is."""

    stores: Stores
    urls: dict[str, str]
    folder: Path


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("stores")
    stores = start_stores(folder)
    try:
        urls = dict(create_databases(stores.database_url))
        with environment(urls, stores.redis_url, folder):
            for service, url in urls.items():
                upgrade_one(service, url)
            yield Servers(stores, urls, folder)
    finally:
        stores.stop()


@pytest_asyncio.fixture
async def clean(servers: Servers) -> AsyncIterator[Servers]:
    """Empty databases after a test that really commits."""
    yield servers
    for url in servers.urls.values():
        await truncate_all(url)


def pytest_configure() -> None:
    os.environ.setdefault("TZ", "UTC")
