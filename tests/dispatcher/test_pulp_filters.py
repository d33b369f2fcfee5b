"""Finding tasks. contract: dispatcher §5.1, §5.2"""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import event

from services.dispatcher import created, reports, runs
from services.dispatcher.schemas import Created, Gone, ReportUpdate
from shared.database import utc_now
from shared.testing import as_user
from tests.dispatcher.conftest import finish, make_request, register, start

ADMIN = as_user("root", superuser=True)
TASKS = "/pulp/api/v3/tasks/"
GROUP = uuid4()


@pytest_asyncio.fixture
async def tasks(app: FastAPI) -> dict[str, UUID]:
    one = make_request(function="one", exclusive=["a", "b"], logging_cid="cafe1")
    two = make_request(function="two", exclusive=["b"], shared=["a"], group_id=GROUP)
    three = make_request(function="three", shared=["a", "c"], parent_id=one.id)
    now = utc_now()
    async with app.state.database.sessions.begin() as session:
        await register(session, now=utc_now())
        await runs.accept(session, [one, two, three], now=utc_now())
        fence = await start(session, one.id)
        assert fence is not None
        update = ReportUpdate(
            id=uuid4(), task_id=one.id, message="Counting", code="count", state="running",
            total=3, done=1, at=utc_now(),
        )  # fmt: skip
        await reports.store(session, [update])
        await finish(session, one.id, fence)
        await created.add(
            session,
            [
                Created(
                    task_id=one.id, prn="prn:libraries.library:1", href="/libraries/1/", at=now
                ),
                Created(
                    task_id=one.id, prn="prn:libraries.library:2", href="/libraries/2/", at=now
                ),
            ],
        )
        await created.gone(session, [Gone(prn="prn:libraries.library:2", at=now)], now=now)
    return {"one": one.id, "two": two.id, "three": three.id}


async def found(http: httpx.AsyncClient, **query: Any) -> list[str]:
    answer = await http.get(TASKS, headers=ADMIN, params=query | {"ordering": "pulp_created,name"})
    assert answer.status_code == 200, answer.text
    return sorted(row["name"].partition(".")[2] for row in answer.json()["results"])


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"state": "completed"}, ["one"]),
        ({"state__in": "completed,waiting"}, ["one", "three", "two"]),
        ({"state__ne": "completed"}, ["three", "two"]),
        ({"name": "libraries.one"}, ["one"]),
        ({"name__contains": "o"}, ["one", "two"]),
        ({"name__in": "libraries.one,libraries.two"}, ["one", "two"]),
        ({"name__ne": "libraries.one"}, ["three", "two"]),
        ({"name": "no such name"}, []),
        ({"logging_cid": "cafe1"}, ["one"]),
        ({"logging_cid__contains": "afe"}, ["one"]),
        ({"started_at__isnull": "true"}, ["three", "two"]),
        ({"finished_at__isnull": "false"}, ["one"]),
        ({"pulp_created__gt": "2100-01-01T00:00:00Z"}, []),
        ({"pulp_created__range": "2000-01-01,2100-01-01"}, ["one", "three", "two"]),
        ({"unblocked_at__lte": "2000-01-01"}, []),
        ({"reserved_resources": "a"}, ["one", "three", "two"]),
        ({"reserved_resources__in": "a,b"}, ["one", "two"]),
        ({"exclusive_resources": "a"}, ["one"]),
        ({"exclusive_resources__in": "a,b"}, ["one"]),
        ({"shared_resources": "a"}, ["three", "two"]),
        ({"shared_resources__in": "a,c"}, ["three"]),
        ({"task_group": f"/pulp/api/v3/task-groups/{GROUP}/"}, ["two"]),
        ({"task_group": f"prn:core.taskgroup:{GROUP}"}, ["two"]),
        ({"task_group": "null"}, ["one", "three"]),
        ({"parent_task": "null"}, ["one", "two"]),
        ({"created_resources": "/libraries/1/"}, ["one"]),
        ({"created_resources": "prn:libraries.library:1"}, ["one"]),
        ({"created_resources": "/libraries/3/"}, []),
        ({"worker": "anything"}, []),
        ({"q": "state=completed"}, ["one"]),
        ({"q": "state=completed OR name__contains=wo"}, ["one", "two"]),
        ({"q": "NOT state=completed AND name__contains=wo"}, ["two"]),
        ({"q": "NOT (state=completed OR name__contains=wo)"}, ["three"]),
        ({"q": 'name="libraries.one"'}, ["one"]),
        ({"q": "name='libraries.one' or name='libraries.two'", "state": "waiting"}, ["two"]),
    ],
)
async def test_filters(
    http: httpx.AsyncClient, tasks: dict[str, UUID], query: dict[str, str], names: list[str]
) -> None:
    assert await found(http, **query) == names


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({"nonsense": "1"}, "nonsense"),
        ({"state": "waitin"}, "state"),
        ({"state__in": "waiting,x"}, "state__in"),
        ({"pulp_created": "yesterday"}, "pulp_created"),
        ({"pulp_created__range": "2000-01-01"}, "pulp_created__range"),
        ({"started_at__isnull": "perhaps"}, "started_at__isnull"),
        ({"parent_task": "/pulp/api/v3/tasks/1/"}, "parent_task"),
        ({"task_group": f"/pulp/api/v3/tasks/{GROUP}/"}, "task_group"),
        ({"created_resources": "nothing"}, "created_resources"),
        ({"pulp_id__in": "1"}, "pulp_id__in"),
        ({"name": "a\x00b"}, "name"),
        ({"limit": "0"}, "limit"),
        ({"limit": "99999999999"}, "limit"),
        ({"offset": "-1"}, "offset"),
        ({"ordering": "secret"}, "ordering"),
        ({"q": ""}, "q"),
        ({"q": "state"}, "q"),
        ({"q": "state=completed AND"}, "q"),
        ({"q": "(state=completed"}, "q"),
        ({"q": "state=completed)"}, "q"),
        ({"q": "ordering=name"}, "q"),
        ({"q": "q='state=completed'"}, "q"),
        ({"q": "state=nonsense"}, "q"),
        ({"q": " OR ".join(["state=completed"] * 5)}, "q"),
        ({"q": "(" * 500 + "state=completed" + ")" * 500}, "q"),
    ],
)
async def test_what_is_wrong_is_named(
    http: httpx.AsyncClient, query: dict[str, str], parameter: str
) -> None:
    answer = await http.get(TASKS, headers=ADMIN, params=query)

    assert answer.status_code == 400
    assert list(answer.json()) == [parameter]


async def test_addresses_stand_for_the_names_that_are_claimed(
    app: FastAPI, http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    address = f"{TASKS}{tasks['one']}/"
    orphans = "pdrn:00000000-0000-0000-0000-000000000000:orphans"
    request = make_request(
        function="claims", exclusive=[f"prn:core.task:{tasks['one']}"], shared=[orphans]
    )
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [request], now=utc_now())

    assert await found(http, exclusive_resources=address) == ["claims"]
    assert await found(http, shared_resources="/pulp/api/v3/orphans/cleanup/") == ["claims"]


async def test_a_task_shows_its_reports_and_what_it_made(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    task = (await http.get(f"{TASKS}{tasks['one']}/", headers=ADMIN)).json()

    assert task["progress_reports"] == [
        {
            "message": "Counting", "code": "count", "state": "completed", "total": 3, "done": 1,
            "suffix": None,
        }
    ]  # fmt: skip
    assert task["created_resources"] == ["/libraries/1/", "<unavailable>"]
    assert task["created_resource_prns"] == ["prn:libraries.library:1", "<unavailable>"]
    assert task["child_tasks"] == [f"{TASKS}{tasks['three']}/"]


async def test_a_page_costs_the_same_however_many_tasks_are_on_it(
    app: FastAPI, http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    async def statements() -> int:
        count = 0

        def on_execute(_: Any, __: Any, statement: str, *rest: Any) -> None:
            nonlocal count
            # What the sweep does meanwhile is written in lower case.
            count += statement.startswith("SELECT")

        engine = app.state.database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", on_execute)
        try:
            assert (await http.get(TASKS, headers=ADMIN)).status_code == 200
        finally:
            event.remove(engine, "before_cursor_execute", on_execute)
        return count

    before = await statements()
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [make_request() for _ in range(50)], now=utc_now())

    assert await statements() == before
