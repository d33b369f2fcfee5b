"""Staff find tasks and artifacts. contract: user_tasks §6"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import artifacts, statuses
from services.user_tasks.models import Status
from services.user_tasks.searching import Filters
from shared.database import driver
from shared.testing import as_user
from tests.user_tasks.conftest import (
    OWNER,
    SUPERUSER,
    V1,
    later,
    make_artifact,
    make_news,
    make_report,
)

STAFF = as_user("sam", staff=True)
TASKS, ARTIFACTS = f"{V1}/admin/tasks/", f"{V1}/admin/artifacts/"
EXPORT, GRADING = UUID("aaaaaaaa-0000-4000-8000-000000000001"), UUID(int=0xBBBB)
TEXT, FILE = UUID(int=0xC1), UUID(int=0xC2)


@pytest_asyncio.fixture(autouse=True)
async def known(app: FastAPI) -> None:
    """An export of ines and a failed grading of olga, a minute later."""
    async with app.state.database.sessions.begin() as session:
        news = [
            make_news(task_id=EXPORT, name="Export of CS101", task_class="libraries.backup"),
            make_news(
                task_id=GRADING, name="Grading 100%_done", task_class="instructor.grade",
                task_type="grading", user="olga", at=later(60),
            ),
            make_news(task_id=GRADING, state="Failed", user="olga", at=later(61)),
        ]  # fmt: skip
        await statuses.record_lifecycle(session, news, now=later(61))
        results = [
            make_artifact(task_id=EXPORT, artifact_id=TEXT, name="Log", text="x" * 5000 + "needle"),
            make_artifact(task_id=EXPORT, artifact_id=FILE, name="Output", url="https://a.example"),
        ]
        await artifacts.record(session, results, now=later(61))


async def found(http: httpx.AsyncClient, path: str = TASKS, **query: Any) -> list[UUID]:
    answer = await http.get(path, headers=STAFF, params=query)
    assert answer.status_code == 200, answer.text
    return [UUID(row["uuid"]) for row in answer.json()["results"]]


@pytest.mark.parametrize(
    ("words", "tasks"),
    [
        ("", [GRADING, EXPORT]),
        ("aaaaaaaa-0000", [EXPORT]),
        ("AAAAAAAA", [EXPORT]),
        ("libraries.BACKUP", [EXPORT]),
        ("export", [EXPORT]),
        ("olga", [GRADING]),
        ("cs101 ines", [EXPORT]),
        ("cs101 olga", []),
        ("100%_", [GRADING]),
        ("1__", []),
        ("%", [GRADING]),
        ("\\", []),
        ("of\nCS101", [EXPORT]),
        ("a\x00b", []),
    ],
)
async def test_every_word_must_stand_in_some_field(
    http: httpx.AsyncClient, words: str, tasks: Sequence[UUID]
) -> None:
    """contract: user_tasks §9 29"""
    assert await found(http, q=words) == tasks


@pytest.mark.parametrize(
    ("query", "tasks"),
    [
        ({"state": "Failed"}, [GRADING]),
        ({"state": ["Pending", "Failed"]}, [GRADING, EXPORT]),
        ({"user": "olga"}, [GRADING]),
        ({"user": "olg"}, []),
        ({"task_type": "grading"}, [GRADING]),
        ({"task_class": "libraries.backup"}, [EXPORT]),
        ({"created_after": later(30).isoformat()}, [GRADING]),
        ({"created_before": later(30).isoformat()}, [EXPORT]),
        ({"user": "olga", "q": "grading", "state": "Failed"}, [GRADING]),
    ],
)
async def test_tasks_are_narrowed(
    http: httpx.AsyncClient, query: dict[str, Any], tasks: Sequence[UUID]
) -> None:
    assert await found(http, **query) == tasks


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        ({}, {TEXT, FILE}),
        ({"q": "needle"}, {TEXT}),
        ({"q": "NEEDLE log"}, {TEXT}),
        ({"q": "output"}, {FILE}),
        ({"q": str(FILE)}, {FILE}),
        ({"q": "a.example"}, set()),
        ({"name": "Log"}, {TEXT}),
        ({"name": "log"}, set()),
    ],
)
async def test_artifacts_are_found_by_uuid_name_and_text(
    http: httpx.AsyncClient, query: dict[str, str], seen: set[UUID]
) -> None:
    shown = set(await found(http, ARTIFACTS, **query))
    # The failure of the grading has left its own one.
    errors = {uuid for uuid in shown if uuid not in (TEXT, FILE)}
    assert shown - errors == seen
    assert len(errors) == (0 if query else 1)


@pytest.mark.parametrize(
    ("text", "short"),
    [("x" * 50, "x" * 50), ("x" * 51, "x" * 47 + "..."), ("", "")],
)
async def test_long_texts_have_a_short_form(
    app: FastAPI, http: httpx.AsyncClient, text: str, short: str
) -> None:
    """contract: user_tasks §9 28"""
    async with app.state.database.sessions.begin() as session:
        report = make_artifact(task_id=EXPORT, artifact_id=UUID(int=0xD), name="Short", text=text)
        await artifacts.record(session, [report], now=later(90))

    answer = await http.get(ARTIFACTS, headers=STAFF, params={"name": "Short"})

    assert [row["summary"] for row in answer.json()["results"]] == [short]


async def test_a_new_name_is_found_and_the_old_one_is_not(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    async with app.state.database.sessions.begin() as session:
        report = make_report(task_id=EXPORT, name="Backup of physics")
        await statuses.record_progress(session, [report], now=later(90))

    assert await found(http, q="physics") == [EXPORT]
    assert await found(http, q="cs101") == []


async def test_deleted_tasks_are_not_found(http: httpx.AsyncClient) -> None:
    await http.delete(f"/api/tasks/v0/tasks/{EXPORT}/", headers=OWNER)

    assert await found(http, q="export") == []


async def test_only_the_top_of_each_tree_on_request(app: FastAPI, http: httpx.AsyncClient) -> None:
    chain = [{"id": str(uuid4()), "kind": "chain", "name": "All", "members": 1, "total_steps": 3}]
    member = uuid4()
    async with app.state.database.sessions.begin() as session:
        news = make_news(task_id=member, containers=chain, at=later(120))
        await statuses.record_lifecycle(session, [news], now=later(120))

    assert member in await found(http)
    assert member not in await found(http, root_only=True)
    assert UUID(str(chain[0]["id"])) in await found(http, root_only=True)


@pytest.mark.parametrize("path", [TASKS, ARTIFACTS])
async def test_searching_is_for_staff(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 401
    assert (await http.get(path, headers=OWNER)).status_code == 403
    assert (await http.get(path, headers=SUPERUSER)).status_code == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"state": "Done"}, "state"),
        ({"created_after": "yesterday"}, "created_after"),
        ({"q": "x" * 1001}, "q"),
        ({"limit": "0"}, "limit"),
        ({"after": "???"}, "after"),
        ({"root_only": "perhaps"}, "root_only"),
    ],
)
async def test_a_bad_search_is_refused_by_its_field(
    http: httpx.AsyncClient, query: dict[str, str], field: str
) -> None:
    answer = await http.get(TASKS, headers=STAFF, params=query)

    assert answer.status_code == 400
    assert field in answer.text


async def test_a_rare_word_is_found_through_its_index(session: AsyncSession) -> None:
    connection = await driver(session)
    await connection.execute("""
        insert into status (uuid, root_id, "user", task_id, is_container, task_class, task_type,
                            name, state, completed_steps, total_steps, attempts, created, modified)
        select uuid, uuid, 'u' || n % 50, uuid::text, false, 'export', '', 'Export ' || n,
               'Succeeded', 1, 1, 1, now(), now()
        from (select gen_random_uuid() as uuid, n from generate_series(1, 20000) as n) as made
    """)
    await connection.execute("""
        insert into searchable (status_id, words)
        select uuid, concat_ws(E'\\n', uuid, task_class, name, "user") from status
        on conflict do nothing
    """)
    # What a vacuum does.
    await connection.execute("select gin_clean_pending_list('searchable_words')")
    await connection.execute("analyze status, searchable")
    query = select(Status.uuid).where(*Filters(q="19999").conditions())
    written = query.compile(
        dialect=(await session.connection()).dialect, compile_kwargs={"literal_binds": True}
    )

    rows = await session.exec(text(f"explain {written}"))  # type: ignore[call-overload]

    plan = "\n".join(row[0] for row in rows)
    assert "searchable_words" in plan
    assert "Seq Scan" not in plan
