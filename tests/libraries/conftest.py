"""The libraries' database and their app."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest_asyncio
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import libraries
from services.libraries.app import create_app
from services.libraries.models import Library
from shared.database import Database
from shared.testing import as_user, client, rolled_back, running
from tests.conftest import Servers

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
STAFF = as_user("ines", staff=True)
V2 = "/api/libraries/v2"


@pytest_asyncio.fixture(scope="session")
async def database(servers: Servers) -> AsyncIterator[Database]:
    database = Database(servers.urls["libraries"], pool=20)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def session(database: Database) -> AsyncIterator[AsyncSession]:
    async with rolled_back(database) as session:
        yield session


@pytest_asyncio.fixture
async def library(session: AsyncSession) -> Library:
    return await make_library(session)


@pytest_asyncio.fixture
async def app(clean: Servers) -> AsyncIterator[FastAPI]:
    async with running(create_app()) as app:
        yield app


@pytest_asyncio.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client(app) as http:
        yield http


async def make_library(session: AsyncSession, **overrides: Any) -> Library:
    values: dict[str, Any] = {
        "org": "CL-TEST", "slug": "lib-1", "title": "A library", "description": "",
        "allow_public_learning": False, "allow_public_read": False, "license": "",
    }  # fmt: skip
    return await libraries.create(session, **(values | overrides), user="ines", now=NOON)
