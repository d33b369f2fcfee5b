"""Finding tasks. contract: dispatcher §5.1, §5.2"""

import asyncio
import operator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import created, reports, runs, searching
from services.dispatcher.filters import Searchable, matching, texts
from services.dispatcher.models import Task, Worker
from services.dispatcher.schemas import Created, Gone, ReportUpdate
from shared.callers import Caller
from shared.database import utc_now
from shared.problems import BadInput
from shared.testing import as_user
from tests.dispatcher.conftest import NOON, accept, finish, make_request, register, start
from tests.statements import statements

ROOT = Caller("root", superuser=True)
ADMIN = as_user("root", superuser=True)
TASKS = "/pulp/api/v3/tasks/"
WORKERS = "/pulp/api/v3/workers/"
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
        ({"created_resources": "prn:libraries.library:2"}, ["one"]),
        ({"child_tasks": "null"}, ["three", "two"]),
        ({"name": ["libraries.one", "libraries.two"]}, ["two"]),
        ({"worker__in": "a,b"}, []),
        ({"format": "json", "state": "completed"}, ["one"]),
        ({"name__contains": "%"}, []),
        ({"name__contains": "_"}, []),
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
    http: httpx.AsyncClient, tasks: dict[str, UUID], query: dict[str, Any], names: list[str]
) -> None:
    assert await found(http, **query) == names


async def test_an_expression_may_be_as_complex_as_eight(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    assert await found(http, q="NOT " + " OR ".join(["state=waiting"] * 4)) != []
    assert await found(http, q="NOT " * 7 + "state=waiting") == ["one"]
    assert await found(http, q="(" * 10 + "state=completed" + ")" * 10) == ["one"]


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
        ({"created_resources": "/libraries/3/"}, "created_resources"),
        ({"q": "created_resources=/libraries/3/ OR state=completed"}, "q"),
        ({"q": "NOT created_resources=prn:libraries.library:3"}, "q"),
        ({"child_tasks": "prn:core.taskgroup:1"}, "child_tasks"),
        ({"prn__in": f"prn:core.taskgroup:{GROUP}"}, "prn__in"),
        ({"pulp_created__gt": "9999-12-31T23:59:59-23:59"}, "pulp_created__gt"),
        ({"pulp_created__gt": "0001-01-01T00:00:00+23:59"}, "pulp_created__gt"),
        ({"pulp_created__gt": "-1"}, "pulp_created__gt"),
        ({"finished_at__lt": "nan"}, "finished_at__lt"),
        ({"pulp_created__range": "2000-01-01,x"}, "pulp_created__range"),
        ({"name__regex": "a"}, "name__regex"),
        ({"name__iexact": "a"}, "name__iexact"),
        ({"state__contains": "a"}, "state__contains"),
        ({"enc_args": "a"}, "enc_args"),
        ({"ordering": "enc_args"}, "ordering"),
        ({"ordering": "name,-parent_task"}, "ordering"),
        ({"page_size": "x"}, "page_size"),
        ({"q": "limit=1"}, "q"),
        ({"q": "NOT " * 8 + "state=completed"}, "q"),
        ({"q": "NOT " * 5000 + "state=completed"}, "q"),
        ({"q": "(" * 10000}, "q"),
        ({"q": 'name="' + chr(92) * 20001}, "q"),
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


async def test_every_lookup_of_every_date(app: FastAPI, tasks: dict[str, UUID]) -> None:
    columns = {"pulp_created": "created_at"}
    names = ("pulp_created", "unblocked_at", "started_at", "finished_at")
    async with app.state.database.sessions() as session:
        rows = (await session.exec(select(Task))).all()
        one = next(row for row in rows if row.id == tasks["one"])
        for name in names:
            column = columns.get(name, name)
            at = getattr(one, column)
            known = [row for row in rows if getattr(row, column) is not None]
            wanted: dict[str, tuple[str, Any]] = {
                "": (at.isoformat(), operator.eq),
                "__lt": (at.isoformat(), operator.lt),
                "__lte": (at.isoformat(), operator.le),
                "__gt": (at.isoformat(), operator.gt),
                "__gte": (at.isoformat(), operator.ge),
                "__range": (f"{at.isoformat()},{at.isoformat()}", operator.eq),
            }
            for lookup, (value, compare) in wanted.items():
                expected = {row.id for row in known if compare(getattr(row, column), at)}
                assert await ids(session, (name + lookup, value)) == expected, name + lookup
            unknown = {row.id for row in rows} - {row.id for row in known}
            assert await ids(session, (f"{name}__isnull", "true")) == unknown, name


async def ids(session: AsyncSession, *query: tuple[str, str], caller: Caller = ROOT) -> set[UUID]:
    search = searching.TASKS.parse(query)
    page, count, _ = await searching.find(session, search, caller=caller)
    assert count == len(page)
    return {task.id for task in page}


async def test_a_date_without_a_zone_is_in_utc(session: AsyncSession) -> None:
    task = await accept(session)
    at = NOON.replace(tzinfo=None).isoformat()

    assert await ids(session, ("pulp_created", at)) == {task}
    assert await ids(session, ("pulp_created", f"{at}+01:00")) == set()


async def test_a_task_is_found_by_its_identity(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    one, two = tasks["one"], tasks["two"]

    assert await found(http, pulp_id__in=f"{one},{two}") == ["one", "two"]
    assert await found(http, pulp_href__in=f"{TASKS}{one}/,{TASKS}{two}/") == ["one", "two"]
    assert await found(http, prn__in=f"prn:core.task:{one},prn:core.task:{two}") == ["one", "two"]
    assert await found(http, parent_task=f"prn:core.task:{one}") == ["three"]
    assert await found(http, child_tasks=f"{TASKS}{tasks['three']}/") == ["one"]
    assert await found(http, parent_task=f"{TASKS}{uuid4()}/") == []


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("/api/v3/distributions/", "distributions"),
        ("/api/v3/orphans/cleanup/", "orphans"),
        ("/api/v3/repair/", "repair"),
        ("/api/v3/servers/", "servers"),
        ("/api/v3/repositories/reclaim_space/", "reclaim_space"),
    ],
)
async def test_old_addresses_of_the_system_stand_for_its_names(
    session: AsyncSession, address: str, word: str
) -> None:
    name = f"pdrn:00000000-0000-0000-0000-000000000000:{word}"
    exclusive = await accept(session, exclusive=[name])
    shared = await accept(session, shared=[name])

    for value in (address, f"/pulp{address}", name):
        assert await ids(session, ("reserved_resources", value)) == {exclusive, shared}
        assert await ids(session, ("exclusive_resources", value)) == {exclusive}
        assert await ids(session, ("shared_resources__in", value)) == {shared}


async def test_an_address_of_ours_stands_for_its_prn_and_others_for_themselves(
    session: AsyncSession,
) -> None:
    group, foreign = uuid4(), f"/elsewhere/{uuid4()}/"
    first = await accept(session, exclusive=[f"prn:core.taskgroup:{group}"])
    second = await accept(session, exclusive=[foreign])

    address = f"/pulp/api/v3/task-groups/{group}/"
    assert await ids(session, ("reserved_resources", address)) == {first}
    assert await ids(session, ("reserved_resources", foreign)) == {second}


async def test_lists_of_any_length_are_one_parameter(session: AsyncSession) -> None:
    task = await accept(session, function="found", exclusive=["a"])
    many = ",".join(f"x{number}" for number in range(40_000))
    uuids = ",".join(str(uuid4()) for _ in range(40_000))

    assert await ids(session, ("name__in", f"{many},libraries.found")) == {task}
    assert await ids(session, ("pulp_id__in", f"{uuids},{task}")) == {task}
    assert await ids(session, ("reserved_resources__in", many)) == set()
    assert await ids(session, ("shared_resources__in", many)) == set()
    assert await ids(session, ("reserved_resources__in", ",".join(["a"] * 40_000))) == {task}
    assert await ids(session, ("state__in", ",".join(["waiting"] * 40_000))) == {task}


async def test_a_page_may_be_larger_than_a_statement_has_parameters(
    session: AsyncSession,
) -> None:
    await add_many(session, 33_000)

    search = searching.TASKS.parse([("limit", "40000")])
    page, count, _ = await searching.find(session, search, caller=ROOT)

    assert len(page) == count == 33_000


async def add_many(session: AsyncSession, count: int) -> None:
    """Tasks of zed that have ended, without a claim."""
    template = await accept(session, username="zed")
    await runs.cancel(session, [template], now=NOON)
    fields = ", ".join(
        column.name for column in Task.__table__.columns if column.name not in ("id", "seq")
    )
    copies = f"""
        insert into task (id, {fields}) select gen_random_uuid(), {fields} from task,
        generate_series(2, :count) where id = :template"""
    connection = await session.connection()
    await connection.execute(text(copies), {"count": count, "template": template})


async def test_ordering_by_several_fields_and_then_by_time(session: AsyncSession) -> None:
    made = [await accept(session, function=name) for name in ("b", "a", "b", "a")]

    async def order(value: str) -> list[int]:
        search = searching.TASKS.parse([("ordering", value)])
        page, _, _ = await searching.find(session, search, caller=ROOT)
        return [made.index(task.id) for task in page]

    assert await order("name") == [3, 1, 2, 0]
    assert await order("-name") == [2, 0, 3, 1]
    assert await order("state,-name,name") == [2, 0, 3, 1]
    assert await order("") == [3, 2, 1, 0]
    for name in searching.TASKS.order:
        assert sorted(await order(f"-{name}")) == [0, 1, 2, 3], name


async def test_fields_may_be_asked_for_and_left_out_at_once(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    async def shown(**query: Any) -> set[str]:
        answer = await http.get(TASKS, headers=ADMIN, params=query)
        single = await http.get(f"{TASKS}{tasks['one']}/", headers=ADMIN, params=query)
        names = set(answer.json()["results"][0])
        assert names == set(single.json())
        return names

    assert await shown(fields=["name", "state,prn"]) == {"name", "state", "prn"}
    assert await shown(fields="name,state", exclude_fields="state") == {"name"}
    assert await shown(fields="name,error", minimal="true") == {"name"}
    assert await shown(fields="name,nonsense") == {"name"}
    assert "result" not in await shown(exclude_fields="result,error")


async def test_the_size_of_a_page_has_two_names(
    http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    for name in ("limit", "page_size"):
        answer = await http.get(TASKS, headers=ADMIN, params={name: 1})
        assert (len(answer.json()["results"]), answer.json()["count"]) == (1, 3)


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        ({"name": "Ada@one"}, True),
        ({"name": "ada@one"}, False),
        ({"name__iexact": "ADA@ONE"}, True),
        ({"name__iexact": "ada_one"}, False),
        ({"name__in": "x,Ada@one"}, True),
        ({"name__contains": "da@"}, True),
        ({"name__contains": "DA@"}, False),
        ({"name__icontains": "DA@"}, True),
        ({"name__startswith": "Ada"}, True),
        ({"name__startswith": "ada"}, False),
        ({"name__startswith": "%"}, False),
        ({"name__istartswith": "aDA"}, True),
        ({"name__regex": "^A.a@[a-z]+$"}, True),
        ({"name__regex": "^a"}, False),
        ({"name__iregex": "^a"}, True),
        ({"q": 'NOT name__regex="^x" AND name__iregex="^a"'}, True),
    ],
)
async def test_every_lookup_of_a_workers_name(
    worker_named: None, http: httpx.AsyncClient, query: dict[str, str], seen: bool
) -> None:
    answer = await http.get(WORKERS, headers=ADMIN, params=query)

    assert (answer.status_code, answer.json()["count"]) == (200, int(seen))


@pytest_asyncio.fixture
async def worker_named(app: FastAPI) -> None:
    async with app.state.database.sessions.begin() as session:
        await register(session, now=utc_now())
        connection = await session.connection()
        await connection.execute(text("update worker set name = 'Ada@one'"))


SLOW_TO_READ = "((((((a{1,200}){1,200}){1,200})))){1,200}"


@pytest.mark.parametrize(
    "pattern", ["[", "a**", "(?P<n>a)", "a{1000}", "[[:foo:]]", "***:(?z)", r"(a)\1", "a" * 201]
)
async def test_what_is_no_pattern_is_refused_also_where_nothing_is_looked_at(
    http: httpx.AsyncClient, pattern: str
) -> None:
    escaped = pattern.replace("\\", "\\\\")
    for name, value in (
        ("name__regex", pattern),
        ("name__iregex", pattern),
        ("q", f'name__regex="{escaped}"'),
    ):
        answer = await http.get(WORKERS, headers=ADMIN, params={name: value})
        assert answer.status_code == 400, answer.text
        assert list(answer.json()) == [name]


async def test_a_pattern_that_takes_too_long_is_refused(http: httpx.AsyncClient) -> None:
    for name, value in (("name__iregex", SLOW_TO_READ), ("q", f"name__regex='{SLOW_TO_READ}'")):
        async with asyncio.timeout(10):
            answer = await http.get(WORKERS, headers=ADMIN, params={name: value})

        # Whether the server refuses it at once or stops at its limit depends on the machine.
        assert answer.status_code == 400
        assert list(answer.json()) == [name]


async def test_also_the_search_itself_ends_in_time(session: AsyncSession) -> None:
    search = Searchable(texts("name", col(Worker.name)), {}).parse([("name__regex", "a")])
    connection = await session.connection()

    with pytest.raises(BadInput) as refused:
        async with asyncio.timeout(10), matching(session, search):
            await connection.execute(text("select pg_sleep(20)"))

    assert refused.value.fields == {"name__regex": ["This regular expression takes too long."]}


async def test_a_fault_that_is_not_the_patterns_is_not_blamed_on_it(session: AsyncSession) -> None:
    search = Searchable(texts("name", col(Worker.name)), {}).parse([("name__regex", "a")])
    connection = await session.connection()

    with pytest.raises(DBAPIError):
        async with matching(session, search):
            await connection.execute(text("select 1 / 0"))


async def test_the_time_limit_of_patterns_ends_with_them(session: AsyncSession) -> None:
    search = Searchable(texts("name", col(Worker.name)), {}).parse([("name__regex", "a")])
    connection = await session.connection()

    async def limit() -> Any:
        return (await connection.execute(text("show statement_timeout"))).scalar()

    before = await limit()
    async with matching(session, search):
        assert await limit() == "500ms"
    assert await limit() == before


@pytest.mark.parametrize(
    "query",
    [
        ("state", "failed"),
        ("state__in", "failed,running"),
        ("logging_cid", "one-of-many"),
        ("created_resources", "/made/1/"),
        ("created_resources", "prn:made:1"),
        ("parent_task", str(uuid4())),
        ("task_group", str(uuid4())),
        ("exclusive_resources", "rare"),
        ("reserved_resources", "rare"),
        ("finished_at__gt", "2100-01-01"),
    ],
)
async def test_what_is_rare_is_found_by_an_index(
    session: AsyncSession, query: tuple[str, str]
) -> None:
    await add_many(session, 5_000)
    connection = await session.connection()
    await connection.execute(
        text("update task set state = 'completed', logging_cid = gen_random_uuid()::text")
    )
    await connection.execute(text("analyze task"))

    plan = await plan_of(session, searching.TASKS.parse([query]).conditions)

    assert "Seq Scan on task" not in plan


async def plan_of(session: AsyncSession, conditions: list[Any]) -> str:
    query = select(Task.id).where(*conditions)
    compiled = query.compile(
        dialect=postgresql.asyncpg.dialect(), compile_kwargs={"literal_binds": True}
    )
    rows = await (await session.connection()).exec_driver_sql(f"explain {compiled}")
    return "\n".join(rows.scalars())


async def test_a_page_costs_the_same_however_many_tasks_are_on_it(
    app: FastAPI, http: httpx.AsyncClient, tasks: dict[str, UUID]
) -> None:
    async def cost() -> int:
        with statements(app.state.database.engine) as seen:
            assert (await http.get(TASKS, headers=ADMIN)).status_code == 200
        return len(seen)

    before = await cost()
    async with app.state.database.sessions.begin() as session:
        await runs.accept(session, [make_request() for _ in range(50)], now=utc_now())

    assert await cost() == before > 0
