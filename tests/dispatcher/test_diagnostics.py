"""Recording runs on request. contract: dispatcher DI-34, DI-35, §5.2"""

import asyncio
import logging
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import structlog
from fastapi import FastAPI
from pydantic import ValidationError
from sqlmodel import col, select

from services.dispatcher import client, diagnostics, reports
from services.dispatcher.models import ProfileArtifact
from services.dispatcher.options import requested
from services.dispatcher.runner import TaskContext
from services.dispatcher.schemas import ProfileUpdate
from services.dispatcher.states import State
from shared.limits import Boundary
from shared.testing import as_user
from tests.dispatcher.conftest import NOON, accept
from tests.dispatcher.in_process import Worker

log = structlog.get_logger("test")
ALL = ["memory", "pyinstrument", "memray", "logs", "debug-logs"]


async def recorded(app: FastAPI) -> dict[tuple[UUID, str], ProfileArtifact]:
    async with app.state.database.sessions() as session:
        rows = await session.exec(select(ProfileArtifact).order_by(col(ProfileArtifact.name)))
        return {(row.task_id, row.name): row for row in rows}


async def text_of(app: FastAPI, task: UUID, name: str) -> str:
    row = (await recorded(app))[task, name]
    content: bytes = await app.state.files.read(row.file)
    assert row.size == len(content)
    return content.decode()


def allowed(*options: str) -> dict[str, Any]:
    return {"task_diagnostics": list(options)}


# What is asked for


def test_only_known_diagnostics_can_be_asked_for() -> None:
    assert requested(" memory, logs,memory, nonsense") == ["memory", "logs"]
    assert requested(None) == []
    assert requested(",,\x00," * 10_000) == []


def test_of_two_ways_to_record_logs_the_fuller_one_is_taken() -> None:
    assert diagnostics.effective(["logs", "debug-logs"], ALL) == ["debug-logs"]
    assert diagnostics.effective(["logs", "debug-logs"], ["logs"]) == ["logs"]
    assert diagnostics.effective(["logs", "x"], ["x"]) == []


@pytest.mark.parametrize(
    ("header", "options"),
    [(None, []), ("logs, memory", ["logs", "memory"]), ("x" * 5000, []), ("logs,\xe9", ["logs"])],
)
async def test_what_a_request_dispatches_is_recorded_as_its_header_asks(
    app: FastAPI, header: str | None, options: list[str]
) -> None:
    asked: list[list[str]] = []

    async def dispatching(scope: Any, receive: Any, send: Any) -> None:
        request = client.make_request("noop", queue="libraries", kwargs={})
        asked.append(request.profile_options)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    boundary = Boundary(dispatching, app.state.settings)
    transport = httpx.ASGITransport(app=boundary)  # type: ignore[arg-type]
    headers = {} if header is None else {b"X-Task-Diagnostics": header.encode("latin-1")}
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        await http.get("/", headers=headers)  # type: ignore[arg-type]

    assert asked == [options]


# What is recorded


async def test_what_was_asked_for_and_is_allowed_is_recorded(app: FastAPI, worker: Worker) -> None:
    async def talks(task: TaskContext) -> None:
        log.info("said.something")
        await asyncio.sleep(0.05)

    async with worker.runs(settings=allowed("logs", "memory", "pyinstrument"), talks=talks):
        asked = await worker.dispatch("talks", profile_options=["logs", "pyinstrument", "memray"])
        plain = await worker.dispatch("talks")
        await worker.ended(asked)
        await worker.ended(plain)

    assert set(await recorded(app)) == {(asked, "task_logs"), (asked, "pyinstrument_profile")}
    logs = await text_of(app, asked, "task_logs")
    assert "said.something" in logs
    assert str(plain) not in logs


async def test_nothing_is_recorded_that_the_operator_does_not_allow(
    app: FastAPI, worker: Worker
) -> None:
    async def idle(task: TaskContext) -> None: ...

    async with worker.runs(idle=idle):
        await worker.ended(await worker.dispatch("idle", profile_options=ALL))

    assert await recorded(app) == {}


async def test_immediate_tasks_are_not_recorded(app: FastAPI, worker: Worker) -> None:
    async def idle(task: TaskContext) -> None: ...

    async with worker.runs(settings=allowed(*ALL), idle=idle):
        await worker.ended(await worker.dispatch("idle", profile_options=["logs"], immediate=True))

    assert await recorded(app) == {}


async def test_children_are_recorded_as_their_parents_are(app: FastAPI, worker: Worker) -> None:
    async def parent(task: TaskContext) -> str:
        request = client.make_request("child", queue="dispatcher", kwargs={})
        await client.dispatch_now(task.clients, [request])
        return str(request.id)

    async def child(task: TaskContext) -> None: ...

    async with worker.runs(settings=allowed("memory"), parent=parent, child=child):
        first = await worker.ended(await worker.dispatch("parent", profile_options=["memory"]))
        second = UUID(first.result)
        await worker.ended(second)

    assert set(await recorded(app)) == {(first.id, "memory_profile"), (second, "memory_profile")}


async def test_a_profile_shows_the_code_of_its_own_run_only(app: FastAPI, worker: Worker) -> None:
    def spin_a_while(label: str) -> None:
        sum(number * number for number in range(400_000))

    async def profiled_function(task: TaskContext) -> None:
        for _ in range(5):
            spin_a_while("mine")
            await asyncio.sleep(0.01)

    async def neighbour_function(task: TaskContext) -> None:
        for _ in range(5):
            spin_a_while("other")
            await asyncio.sleep(0.01)

    async with worker.runs(
        settings=allowed("pyinstrument"), mine=profiled_function, other=neighbour_function
    ):
        mine = await worker.dispatch("mine", profile_options=["pyinstrument"])
        other = await worker.dispatch("other", profile_options=["pyinstrument"])
        await worker.ended(mine)
        await worker.ended(other)

    page = await text_of(app, mine, "pyinstrument_profile")
    assert "profiled_function" in page
    assert "neighbour_function" not in page
    assert "neighbour_function" in await text_of(app, other, "pyinstrument_profile")


async def test_logs_at_debug_go_to_the_recording_and_nowhere_else(
    app: FastAPI, worker: Worker
) -> None:
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    both, root = asyncio.Barrier(2), logging.getLogger()
    before = root.level

    async def whispers(task: TaskContext) -> None:
        async with asyncio.timeout(10):
            await both.wait()
        logging.getLogger("quiet").debug("a whisper")

    ear = Ear()
    root.addHandler(ear)
    try:
        async with worker.runs(settings=allowed(*ALL), whispers=whispers):
            one = await worker.dispatch("whispers", profile_options=["debug-logs", "logs"])
            two = await worker.dispatch("whispers", profile_options=["debug-logs"])
            await worker.ended(one)
            await worker.ended(two)
    finally:
        root.removeHandler(ear)

    for task in (one, two):
        assert (await text_of(app, task, "task_logs")).count("a whisper") == 1
    assert "a whisper" not in heard
    assert (root.level, ear.level) == (before, logging.NOTSET)


async def test_logs_that_cannot_be_written_plainly_are_written_all_the_same(
    app: FastAPI, worker: Worker
) -> None:
    async def mumbles(task: TaskContext) -> str:
        log.info("half a pair: \ud800", name="Ærø\x00")
        logging.getLogger("odd").info("%d", "not a number")
        return "still here"

    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        async with worker.runs(settings=allowed("logs"), mumbles=mumbles):
            task = await worker.ended(await worker.dispatch("mumbles", profile_options=["logs"]))
    finally:
        logging.raiseExceptions = before

    assert (task.state, task.result) == (State.COMPLETED, "still here")
    assert "half a pair" in await text_of(app, task.id, "task_logs")


async def test_a_recorded_log_has_an_end(
    app: FastAPI, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnostics, "MOST_LOG_BYTES", 2000)

    async def chatters(task: TaskContext) -> None:
        for number in range(1000):
            log.info("chatter", number=number)

    async with worker.runs(settings=allowed("logs"), chatters=chatters):
        task = await worker.ended(await worker.dispatch("chatters", profile_options=["logs"]))

    logs = await text_of(app, task.id, "task_logs")
    assert len(logs) < 2100
    assert logs.endswith("The rest is not kept.\n")


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Bearer SECRET.x",
        "{'authorization': 'JWT SECRET'}",
        '{"headers": {"Authorization": "Basic SECRET"}}',
        "https://x/file?signature=SECRET&expires=1",
        "postgresql://lyceum:SECRET@db/x",
        "{'password': 'SECRET'}",
        "token_secret=SECRET",
        "got eyJhbGciOi.SECRET.abc back",
    ],
)
def test_secrets_in_a_log_line_are_starred(line: str) -> None:
    hidden = diagnostics.without_secrets(line)

    assert "SECRET" not in hidden
    assert "***" in hidden


@pytest.mark.parametrize(
    "line", ["task.started function=backup fence=7", "3 tokens used, password reset asked for"]
)
def test_lines_without_secrets_stay_as_they_are(line: str) -> None:
    assert diagnostics.without_secrets(line) == line


# A recording never changes what becomes of its run


async def test_a_failure_stays_the_runs_own_under_every_recording(
    app: FastAPI, worker: Worker
) -> None:
    async def fails(task: TaskContext) -> None:
        raise RuntimeError("the run's own")

    async with worker.runs(settings=allowed(*ALL), fails=fails):
        task = await worker.ended(await worker.dispatch("fails", profile_options=ALL))

    assert task.state is State.FAILED
    assert task.error == {"description": "RuntimeError: the run's own"}
    assert {name for _, name in await recorded(app)} == {
        "memory_profile", "pyinstrument_profile", "task_logs",
    }  # fmt: skip


async def test_recorders_that_break_break_no_run(
    app: FastAPI, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, at: str) -> None:
            self._at = at

        async def __aenter__(self) -> None:
            if self._at == "enter":
                raise RuntimeError("cannot begin")

        async def __aexit__(self, *error: object) -> None:
            raise RuntimeError("cannot end")

    monkeypatch.setitem(diagnostics.RECORDERS, "memory", lambda *_: Broken("enter"))
    monkeypatch.setitem(diagnostics.RECORDERS, "pyinstrument", lambda *_: Broken("exit"))

    async def works(task: TaskContext) -> str:
        return "done"

    async with worker.runs(settings=allowed(*ALL), works=works):
        task = await worker.ended(await worker.dispatch("works", profile_options=ALL))

    assert (task.state, task.result) == (State.COMPLETED, "done")
    assert {name for _, name in await recorded(app)} == {"task_logs"}


async def test_a_store_that_is_away_fails_no_run(
    app: FastAPI, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("no store")

    monkeypatch.setattr(app.state.files, "put", away)

    async def works(task: TaskContext) -> str:
        return "done"

    async with worker.runs(settings=allowed("logs"), works=works):
        task = await worker.ended(await worker.dispatch("works", profile_options=["logs"]))

    assert task.result == "done"
    assert await recorded(app) == {}


# Reading what was recorded


async def test_the_owner_gets_links_that_need_no_token_and_take_ranges(
    app: FastAPI, worker: Worker, http: httpx.AsyncClient
) -> None:
    async def talks(task: TaskContext) -> None:
        log.info("said.something")

    async with worker.runs(settings=allowed("logs"), talks=talks):
        task = await worker.dispatch("talks", profile_options=["logs"], username="ada")
        await worker.ended(task)
    listing = f"/pulp/api/v3/tasks/{task}/profile_artifacts/"

    urls = (await http.get(listing, headers=as_user("ada"))).json()["urls"]
    whole = await http.get(urls["task_logs"])
    part = await http.get(urls["task_logs"], headers={"Range": "bytes=3-9"})
    beyond = await http.get(urls["task_logs"], headers={"Range": "bytes=99999999-"})

    assert list(urls) == ["task_logs"]
    assert "said.something" in whole.text
    assert whole.headers["content-disposition"].startswith('attachment; filename="task_logs.txt"')
    assert (part.status_code, part.content) == (206, whole.content[3:10])
    assert beyond.status_code == 416
    assert (await http.get(listing, headers=as_user("root", staff=True))).status_code == 200
    assert (await http.get(listing, headers=as_user("bob"))).status_code == 404
    assert (await http.get(listing)).status_code == 401


async def test_other_links_lead_nowhere(
    app: FastAPI, worker: Worker, http: httpx.AsyncClient
) -> None:
    async def idle(task: TaskContext) -> None: ...

    async with worker.runs(settings=allowed("logs", "memory"), idle=idle):
        task = await worker.dispatch("idle", profile_options=["logs", "memory"], username="ada")
        await worker.ended(task)
    listing = f"/pulp/api/v3/tasks/{task}/profile_artifacts/"
    urls = (await http.get(listing, headers=as_user("ada"))).json()["urls"]
    good = httpx.URL(urls["task_logs"])

    for bad in (
        good.copy_set_param("expires", "1"),
        good.copy_set_param("expires", str(int(good.params["expires"]) + 1)),
        good.copy_set_param("expires", "9" * 40),
        good.copy_set_param("expires", "soon"),
        good.copy_set_param("signature", ""),
        good.copy_set_param("signature", "é" * 64),
        good.copy_set_param("signature", "0" * 64),
        good.copy_with(path=good.path.replace("task_logs", "memory_profile")),
        good.copy_with(path=good.path.replace("task_logs", "x%00")),
        good.copy_with(path=good.path.replace(str(task), str(uuid4()))),
    ):
        assert 400 <= (await http.get(bad)).status_code < 500, bad
    assert (await http.get(good)).status_code == 200


async def test_what_was_recorded_goes_with_its_task(
    app: FastAPI, worker: Worker, http: httpx.AsyncClient
) -> None:
    async def idle(task: TaskContext) -> None: ...

    async with worker.runs(settings=allowed("logs"), idle=idle):
        task = await worker.dispatch("idle", profile_options=["logs"], username="ada")
        await worker.ended(task)
    (row,) = (await recorded(app)).values()

    answer = await http.delete(f"/pulp/api/v3/tasks/{task}/", headers=as_user("ada"))

    assert answer.status_code == 204
    assert not await app.state.files.exists(row.file)
    assert await recorded(app) == {}


async def test_a_repeated_run_replaces_what_was_recorded_before(app: FastAPI) -> None:
    async with app.state.database.sessions.begin() as session:
        task = await accept(session)
        for size in (1, 2):
            one = ProfileUpdate(
                task_id=task, name="task_logs", file=f"diagnostics/{task}/task_logs.txt", size=size
            )
            await reports.store_profiles(session, [one, one], now=NOON)
        gone = uuid4()
        unknown = ProfileUpdate(task_id=gone, name="task_logs", file=f"diagnostics/{gone}/x")
        await reports.store_profiles(session, [unknown], now=NOON)

    found = await recorded(app)
    assert {key: row.size for key, row in found.items()} == {(task, "task_logs"): 2}


@pytest.mark.parametrize(
    "values",
    [
        {"file": "libraries/secret.txt"},
        {"file": f"diagnostics/{UUID(int=2)}/task_logs.txt"},
        {"file": f"diagnostics/{UUID(int=1)}/../../x"},
        {"file": f"diagnostics/{UUID(int=1)}/a\x00"},
        {"name": "../x"},
        {"size": -1},
        {"size": 2**63},
    ],
)
def test_a_recording_can_only_be_a_file_of_its_own_task(values: dict[str, Any]) -> None:
    task = UUID(int=1)
    good = {"task_id": task, "name": "task_logs", "file": f"diagnostics/{task}/task_logs.txt"}
    ProfileUpdate.model_validate(good)

    with pytest.raises(ValidationError):
        ProfileUpdate.model_validate(good | values)


# A folder of its own: DI-35


@pytest.mark.parametrize("fails", [False, True])
async def test_a_run_has_a_private_folder_that_goes_with_it(worker: Worker, fails: bool) -> None:
    seen: list[Path] = []

    async def writes(task: TaskContext) -> None:
        (task.folder.path / "x").write_text("x")
        assert task.folder.path is task.folder.path
        seen.append(task.folder.path)
        assert task.folder.path.stat().st_mode & 0o777 == 0o700
        if fails:
            raise ValueError("broken")

    async with worker.runs(writes=writes):
        task = await worker.ended(await worker.dispatch("writes"))

    assert task.state is (State.FAILED if fails else State.COMPLETED)
    assert len(seen) == 1
    assert not seen[0].exists()
