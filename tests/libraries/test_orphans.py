"""Cleaning up: what is an orphan, what is in use, what a lost run leaves, and the schedules."""

import asyncio
import contextlib
import io
import os
import zipfile
from collections.abc import AsyncIterator, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel import col, select

from deploy import paths
from services.dispatcher import schedules
from services.dispatcher import worker as dispatchers_worker
from services.dispatcher.app import create_app as create_dispatcher
from services.dispatcher.models import Task, TaskReport, TaskSchedule
from services.dispatcher.runner import TaskRunner
from services.dispatcher.schemas import TaskRequest
from services.dispatcher.settings import Settings as DispatcherSettings
from services.dispatcher.states import FINAL
from services.libraries import (
    components,
    containers,
    drafts,
    entities,
    library_versions,
    media,
    orphans,
    publishing,
)
from services.libraries.backup import backup_library
from services.libraries.components import NewComponent
from services.libraries.jobs import add_and_remove
from services.libraries.leftovers import tmpfile_cleanup, upload_cleanup
from services.libraries.library_versions import Change
from services.libraries.models import Library, TempFile
from services.libraries.orphans import orphan_cleanup
from services.libraries.settings import Settings
from services.libraries.states import Kind
from services.libraries.worker import runner
from services.user_tasks.app import create_app as create_user_tasks
from shared.clients import ServiceClients
from shared.database import Database, utc_now
from shared.files import Files, digest, local_folder
from shared.problems import Forbidden
from shared.settings import ServiceSettings
from shared.testing import as_user, client, running
from shared.worker import WorkerContext
from tests.conftest import Servers
from tests.libraries.runs import Recorded, files_in, make_library, make_task
from tests.libraries.test_general_tasks import Tasks

LONG_AGO = utc_now() - timedelta(days=200)
ADMIN = as_user("root", superuser=True)
API = "/pulp/api/v3"


@pytest_asyncio.fixture
async def database(clean: Servers) -> AsyncIterator[Database]:
    database = Database(clean.urls["libraries"], pool=20)
    yield database
    await database.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(f"file://{tmp_path}/objects")


@pytest_asyncio.fixture
async def library(database: Database) -> Library:
    async with database.sessions.begin() as session:
        return await make_library(session)


class Author:
    """Writes components whose every version has a file of its own, and looks what is left."""

    def __init__(self, database: Database, files: Files, library: Library) -> None:
        self.database, self.files, self.library = database, files, library

    async def write(self, *codes: str, body: str, now: datetime = LONG_AGO) -> None:
        async with self.database.sessions.begin() as session:
            await media.use_files(session, self.library)
            items = []
            for code in codes:
                file = await media.store_file(
                    self.files, self.library, f"{code} {body}".encode(), "image/png"
                )
                olx = f"<html>{body}</html>"
                items.append(NewComponent("html", code, code, olx, {"map.png": file}))
            await components.add_many(session, self.library, items, user="ada", now=now)

    async def publish(self) -> None:
        async with self.database.sessions.begin() as session:
            await publishing.publish_all(session, self.library, user="ada", now=LONG_AGO)

    async def delete(self, code: str) -> None:
        async with self.database.sessions.begin() as session:
            entity = await entities.get(session, self.library, f"xblock.v1:html:{code}")
            await drafts.delete(session, self.library, entity, user="ada", now=LONG_AGO)

    async def pin(self, code: str) -> None:
        async with self.database.sessions.begin() as session:
            await containers.create(
                session, self.library, kind=Kind.UNIT, code="u", title="U",
                children=[(f"xblock.v1:html:{code}", 1)], user="ada", now=LONG_AGO,
            )  # fmt: skip

    async def version_of(self, *codes: str, now: datetime = LONG_AGO) -> None:
        units = [await self.uuid(code) for code in codes]
        async with self.database.sessions.begin() as session:
            await library_versions.add_and_remove(
                session, self.library, Change(add=units), user="ada", now=now
            )

    async def uuid(self, code: str, number: int = 1) -> UUID:
        return UUID(str((await self.rows("uuid", code, number))[0]))

    async def rows(self, column: str, code: str, number: int) -> list[Any]:
        async with self.database.sessions() as session:
            rows = await (await session.connection()).execute(
                text(f"""
                    select version.{column} from version
                    join entity on entity.id = version.entity_id
                    where code = :code and version_num = :number
                """),
                {"code": code, "number": number},
            )
            return list(rows.scalars())

    async def kept(self, code: str, number: int = 1) -> bool:
        """Whether a version has its content, all of it; what is cleaned up has none of it."""
        [pruned] = await self.rows("pruned_at", code, number)
        async with self.database.sessions() as session:
            connection = await session.connection()
            rows = await connection.execute(
                text("""
                    select path, hash, has_file from version
                    join entity on entity.id = version.entity_id
                    join version_media on version_media.version_id = version.id
                    join media on media.id = version_media.media_id
                    where code = :code and version_num = :number order by path
                """),
                {"code": code, "number": number},
            )
            held = rows.all()
        assert [row.path for row in held] == ([] if pruned else ["block.xml", "map.png"])
        for row in held:
            if row.has_file:
                assert await self.files.exists(media.content_path(self.library, row.hash))
        return pruned is None

    async def hashes(self) -> set[str]:
        """Media that have a file."""
        async with self.database.sessions() as session:
            connection = await session.connection()
            found = await connection.execute(text("select hash from media where has_file"))
            return set(found.scalars())

    async def stored(self) -> set[str]:
        """Files that are there."""
        folder = f"content/{self.library.uuid}"
        return {path.rpartition("/")[2] for path in await files_in(self.files, folder)}

    async def clean(self, minutes: int | None = 0, **values: Any) -> dict[str, Any]:
        task = make_task(self.database, self.files, user="root", clients=Tasks())
        await orphan_cleanup(task, orphan_protection_time=minutes, administrator=True, **values)
        numbers: dict[str, Any] = task.reports.numbers()  # type: ignore[attr-defined]
        return numbers


@pytest.fixture
def author(database: Database, files: Files, library: Library) -> Author:
    return Author(database, files, library)


def age(files: Files, names: Iterable[str], by: timedelta = timedelta(days=3)) -> None:
    """Make files as old as if they had been stored then."""
    folder = local_folder(files.url)
    assert folder is not None
    moment = (utc_now() - by).timestamp()
    for name in names:
        os.utime(folder / name, (moment, moment))


# What is an orphan


async def test_only_superseded_saves_that_nothing_refers_to_are_cleaned_up(
    author: Author,
) -> None:
    await author.write("published", "history", body="first")
    await author.publish()
    await author.write("history", body="second")
    await author.publish()
    await author.write("draft", "deleted", "pinned", "held", body="first")
    await author.pin("pinned")
    await author.version_of("held")
    await author.write("draft", "published", "pinned", "held", body="newer")
    await author.delete("deleted")
    await author.write("draft", body="newest")

    report = await author.clean()

    assert report["clean-up.content"] == (2, 2)
    assert report["clean-up.artifacts"][0] == 2
    assert not await author.kept("draft", 1)
    assert not await author.kept("draft", 2)
    for code, number in (("draft", 3), ("published", 1), ("published", 2), ("history", 1),
                         ("history", 2), ("deleted", 1), ("pinned", 1), ("pinned", 2),
                         ("held", 1), ("held", 2)):  # fmt: skip
        assert await author.kept(code, number), (code, number)
    gone = {digest(b"draft first"), digest(b"draft newer")}
    assert await author.stored() == await author.hashes()
    assert not gone & await author.stored()
    assert (await author.clean())["clean-up.content"] == (0, 0)


async def test_what_only_a_dropped_version_held_is_an_orphan_then(author: Author) -> None:
    await author.write("a", body="first")
    await author.version_of("a")
    await author.write("a", body="second")
    await author.version_of("a", now=LONG_AGO)
    assert (await author.clean())["clean-up.content"] == (0, 0)
    async with author.database.sessions.begin() as session:
        version = await library_versions.get(session, author.library, 1)
        second = Change(remove=["*"])
        await library_versions.add_and_remove(
            session, author.library, second, user="ada", now=LONG_AGO
        )
        await library_versions.delete(session, author.library, version)

    assert (await author.clean())["clean-up.content"] == (1, 1)
    assert not await author.kept("a", 1)


async def test_media_that_another_version_shares_stay(author: Author) -> None:
    await author.write("a", "b", body="first")
    async with author.database.sessions.begin() as session:
        entity = await entities.get(session, author.library, "xblock.v1:html:a")
        olx = "<html>second</html>"
        await components.set_olx(
            session, author.library, entity, olx, user="ada", now=LONG_AGO
        )  # keeps the file

    await author.clean()

    assert not await author.kept("a", 1)
    assert await author.kept("a", 2)
    assert digest(b"a first") in await author.stored()


async def test_what_was_used_within_the_protection_time_stays(author: Author) -> None:
    now = utc_now()
    await author.write("a", body="first", now=now - timedelta(minutes=30))
    await author.write("a", body="second", now=now - timedelta(minutes=8))

    assert (await author.clean(10))["clean-up.content"] == (0, 0)
    assert await author.kept("a", 1)
    assert (await author.clean(5))["clean-up.content"] == (1, 1)
    assert await author.stored() == {digest(b"a second")}
    assert (await author.clean(4_294_967_295))["clean-up.artifacts"] == (0, 0)


async def test_without_a_time_the_settings_protect_saves_longer_than_media(
    author: Author,
) -> None:
    await author.write("a", body="first", now=utc_now() - timedelta(days=30))
    await author.write("a", body="second", now=utc_now() - timedelta(days=30))
    async with author.database.sessions.begin() as session:
        lost = await media.store_file(author.files, author.library, b"lost", "image/png")
        await media.store_many(session, author.library, [lost], now=LONG_AGO)

    report = await author.clean(None)

    assert report["clean-up.content"] == (0, 0)
    assert report["clean-up.artifacts"] == (1, 1)
    assert await author.kept("a", 1)
    assert lost.hash not in await author.stored()


async def test_with_a_list_only_those_go_with_their_files_and_nothing_else(
    author: Author,
) -> None:
    await author.write("a", "b", "c", body="first")
    await author.write("a", "b", body="second")
    async with author.database.sessions.begin() as session:
        lost = await media.store_file(author.files, author.library, b"lost", "image/png")
        await media.store_many(session, author.library, [lost], now=LONG_AGO)
    listed = [str(await author.uuid(code)) for code in "ac"] + [str(uuid4())]

    report = await author.clean(content_pks=listed)

    # The text is that of the others too.
    assert report == {"clean-up.content": (1, 1), "clean-up.artifacts": (1, 1)}
    assert not await author.kept("a", 1)
    assert await author.kept("b", 1)
    assert await author.kept("c", 1)
    assert lost.hash in await author.stored()
    assert digest(b"a first") not in await author.stored()


async def test_many_are_cleaned_up_batch_by_batch(
    author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = [f"c{number}" for number in range(7)]
    await author.write(*codes, body="first")
    await author.write(*codes, body="second")
    for name in ("_CHOOSE_SAVES", "_FIND_MEDIA"):
        statement = str(getattr(orphans, name)).replace("limit 2000", "limit 3")
        monkeypatch.setattr(orphans, name, text(statement))
    monkeypatch.setattr(orphans, "BATCH", 3)

    report = await author.clean()

    assert report["clean-up.content"] == (7, 7)
    # A file for each, and one text that all of them had.
    assert report["clean-up.artifacts"] == (8, 8)
    assert await author.stored() == {digest(f"{code} second".encode()) for code in codes}


async def test_only_administrators_and_the_system_clean_up(author: Author) -> None:
    await author.write("a", body="first")
    await author.write("a", body="second")
    with pytest.raises(Forbidden):
        await orphan_cleanup(make_task(author.database, author.files), orphan_protection_time=0)
    assert await author.kept("a", 1)
    system = make_task(author.database, author.files, user=None, clients=Tasks())
    await orphan_cleanup(system, orphan_protection_time=0)
    assert not await author.kept("a", 1)


# At the same time


async def test_a_unit_that_is_being_taken_up_is_not_cleaned_up(author: Author) -> None:
    await author.write("a", "b", body="first")
    await author.write("a", "b", body="second")
    unit = await author.uuid("a")
    async with author.database.sessions.begin() as session:
        await library_versions.add_and_remove(
            session, author.library, Change(add=[unit]), user="ada", now=LONG_AGO
        )
        report = await author.clean()  # meanwhile

    assert report["clean-up.content"][0] == 1
    assert await author.kept("a", 1)
    assert not await author.kept("b", 1)


async def test_whoever_wins_a_unit_is_in_a_version_whole_or_cleaned_up_whole(
    author: Author,
) -> None:
    codes = [f"c{number}" for number in range(24)]
    await author.write(*codes, body="first")
    await author.write(*codes, body="second")
    units = {code: await author.uuid(code) for code in codes}

    async def take_up() -> None:
        for unit in units.values():
            await add_and_remove(
                make_task(author.database, author.files, fence=5),
                library_key=author.library.key, add_content_units=[str(unit)],
            )  # fmt: skip

    async def clean_up() -> None:
        for code in reversed(codes):
            await author.clean(content_pks=[str(units[code])])

    await asyncio.gather(take_up(), clean_up())

    async with author.database.sessions() as session:
        newest = await library_versions.newest(session, author.library)
        rows = await (await session.connection()).execute(
            text("select version.uuid from library_version_content held "
                 "join version on version.id = held.version_id where removed is null")
        )  # fmt: skip
        held = set(rows.scalars())
    taken = {code for code in codes if await author.kept(code, 1)}
    assert {units[code] for code in taken} == held
    assert newest.number == len(taken)
    assert 0 < len(taken) < len(codes)


async def test_content_stored_again_during_a_clean_up_keeps_its_file(author: Author) -> None:
    await author.write("a", body="same")
    for round in range(15):
        await author.write("a", body=f"round {round}")

        async def again() -> None:
            await author.write("a", body="same", now=utc_now())

        await asyncio.gather(author.clean(), again(), author.clean())
        newest = 3 + round * 2
        assert await author.kept("a", newest), round
        assert digest(b"a same") in await author.stored()


async def test_while_somebody_stores_files_none_of_the_library_goes(author: Author) -> None:
    await author.write("a", body="first")
    await author.write("a", body="second")
    async with author.database.sessions.begin() as session:
        await media.use_files(session, author.library)
        # Stored, and not yet known to any row.
        fresh = await media.store_file(author.files, author.library, b"fresh", "image/png")
        age(author.files, [media.content_path(author.library, fresh.hash)])
        report = await author.clean()
        assert report["clean-up.artifacts"] == (0, 2)
    assert {fresh.hash, digest(b"a first")} <= await author.stored()

    await author.clean()
    assert await author.stored() == {digest(b"a second")}


class Halted(Recorded):
    """A backup that has begun to read and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def total(self, steps: int) -> None:
        self.begun.set()
        await self.go_on.wait()


async def test_a_backup_that_is_running_keeps_what_it_is_going_to_read(author: Author) -> None:
    await author.write("a", body="first")
    progress = Halted()
    task = make_task(author.database, author.files, progress)
    async with asyncio.timeout(20):
        running = asyncio.create_task(backup_library(task, library_key=author.library.key))
        await progress.begun.wait()
        await author.write("a", body="second")
        await author.clean()
        assert not await author.kept("a", 1)
        progress.go_on.set()
        result = await running

    with zipfile.ZipFile(io.BytesIO(await author.files.read(result["file"]))) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("map.png")]
        assert archive.read(name) == b"a first"
    await author.clean()
    assert await author.stored() == {digest(b"a second")}


# Lost runs, and files without rows


class Failing(Files):
    """An object store that goes away when something is to be removed."""

    async def delete(self, paths: Iterable[str]) -> None:
        raise OSError("away")


async def test_files_go_after_their_rows_and_a_run_that_was_lost_is_made_up_for(
    author: Author,
) -> None:
    await author.write("a", body="first")
    await author.write("a", body="second")
    task = make_task(author.database, Failing(author.files.url), user=None, clients=Tasks())
    with pytest.raises(OSError, match="away"):
        await orphan_cleanup(task, orphan_protection_time=0)
    assert digest(b"a first") not in await author.hashes()
    assert digest(b"a first") in await author.stored()

    await author.clean()
    assert digest(b"a first") in await author.stored()  # so young that its row may be coming
    age(author.files, await files_in(author.files, "content"))
    report = await author.clean()

    assert report["clean-up.files"] == (1, None)
    assert await author.stored() == {digest(b"a second")} == await author.hashes()


async def test_a_run_that_was_stopped_half_way_is_run_again(author: Author) -> None:
    await author.write("a", body="first")
    await author.write("a", body="second")

    class Stopped(Recorded):
        async def stage(self, text: str) -> None:
            if text == "Cleaning up media":
                raise asyncio.CancelledError

    task = make_task(author.database, author.files, Stopped(), user=None)
    with pytest.raises(asyncio.CancelledError):
        await orphan_cleanup(task, orphan_protection_time=0)
    assert not await author.kept("a", 1)
    assert digest(b"a first") in await author.stored()

    report = await author.clean()
    assert (report["clean-up.content"], report["clean-up.artifacts"]) == ((0, 0), (2, 2))
    assert await author.stored() == {digest(b"a second")}


async def test_files_that_no_row_knows_go_and_young_ones_stay(author: Author) -> None:
    await author.write("a", body="first")
    ended, waiting = uuid4(), uuid4()
    folder = f"content/{author.library.uuid}"
    old = [f"{folder}/{'1' * 40}", f"content/{uuid4()}/{'2' * 40}", "incoming/old",
           f"library_import/{ended}", f"temp_files/{uuid4()}"]  # fmt: skip
    stay = [f"{folder}/{'3' * 40}", "incoming/young", f"library_import/{waiting}",
            "exports/somebodys/file", "user_tasks/a.zip"]  # fmt: skip
    for path in [*old, *stay]:
        await author.files.put(path, b"x")
    age(author.files, [*old, *stay[2:], *await files_in(author.files, folder)])
    age(author.files, [stay[0]], by=timedelta(minutes=1))
    clients = Tasks(**{str(ended): "failed", str(waiting): "waiting"})

    task = make_task(author.database, author.files, user=None, clients=clients)
    await orphan_cleanup(task)

    for path in old:
        assert not await author.files.exists(path), path
    for path in stay:
        assert await author.files.exists(path), path
    assert await author.kept("a", 1)


async def test_uploads_go_when_their_import_was_lost(database: Database, files: Files) -> None:
    names = {state: str(uuid4()) for state in ("waiting", "running", "canceled", "unknown")}
    young = str(uuid4())
    for name in [*names.values(), young]:
        await files.put(f"library_import/{name}", b"x")
    await files.put("library_import/no-task", b"x")
    age(files, [f"library_import/{name}" for name in [*names.values(), "no-task"]])
    clients = Tasks(**{name: state for state, name in names.items() if state != "unknown"})

    await upload_cleanup(make_task(database, files, user=None, clients=clients))

    left = {path.rpartition("/")[2] for path in await files_in(files, "library_import")}
    assert left == {names["waiting"], names["running"], young}


async def test_a_temporary_file_given_away_meanwhile_stays(
    database: Database, files: Files
) -> None:
    ident, task_id = uuid4(), uuid4()
    await files.put(f"temp_files/{ident}", b"x")
    async with database.sessions.begin() as session:
        session.add(
            TempFile(
                id=ident, path=f"temp_files/{ident}", size=1, sha256="", created_by="ada",
                created_at=LONG_AGO,
            )
        )  # fmt: skip
    cleaning = make_task(database, files, user=None, clients=Tasks())
    async with database.sessions.begin() as session:
        kept = await session.get(TempFile, ident, with_for_update=True)
        assert kept is not None
        kept.task_id = task_id
        await session.flush()
        await tmpfile_cleanup(cleaning)  # meanwhile
    assert await files.exists(f"temp_files/{ident}")

    busy = Tasks(**{str(task_id): "running"})
    await tmpfile_cleanup(make_task(database, files, user=None, clients=busy))
    assert await files.exists(f"temp_files/{ident}")
    await tmpfile_cleanup(make_task(database, files, user=None, clients=Tasks()))
    assert await files_in(files, "temp_files") == []


# Over HTTP


@pytest_asyncio.fixture
async def dispatcher(clean: Servers) -> AsyncIterator[FastAPI]:
    async with running(create_dispatcher()) as app:
        yield app


@pytest_asyncio.fixture
async def http(dispatcher: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client(dispatcher) as http:
        yield http


async def tasks_of(app: FastAPI) -> list[Task]:
    async with app.state.database.sessions() as session:
        query = select(Task).order_by(col(Task.created_at), col(Task.id))
        return list((await session.exec(query)).all())


class Both(httpx.AsyncBaseTransport):
    """The way to the dispatcher and to user tasks, whose apps are in this process."""

    def __init__(self, dispatcher: FastAPI, user_tasks: FastAPI) -> None:
        self._dispatcher = httpx.ASGITransport(app=dispatcher)
        self._user_tasks = httpx.ASGITransport(app=user_tasks)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        told = paths.owner(request.url.path) == "user_tasks"
        return await (self._user_tasks if told else self._dispatcher).handle_async_request(request)


@pytest_asyncio.fixture
async def way(dispatcher: FastAPI) -> AsyncIterator[Both]:
    async with running(create_user_tasks()) as user_tasks:
        yield Both(dispatcher, user_tasks)


@contextlib.asynccontextmanager
async def worker(
    app: FastAPI, way: Both, settings: ServiceSettings, database: Database, files: Files,
    one: TaskRunner,
) -> AsyncIterator[None]:  # fmt: skip
    """A service's real worker beside the apps."""
    clients = ServiceClients(settings, transport=way)
    context = WorkerContext(settings, database, clients, files, app.state.queue)
    async with one.alive(context):
        yield
        context.stopping.set()


async def ended(app: FastAPI, count: int) -> list[Task]:
    async with asyncio.timeout(30):
        while True:
            tasks = await tasks_of(app)
            if len(tasks) >= count and all(task.state in FINAL for task in tasks):
                return tasks
            await asyncio.sleep(0.05)


QUICK = {"worker_heartbeat_seconds": 2.0, "worker_grace_seconds": 1.0}


async def test_an_administrator_asks_for_it_and_the_worker_does_it(
    http: httpx.AsyncClient, dispatcher: FastAPI, way: Both, author: Author
) -> None:
    await author.write("a", "b", body="first")
    await author.write("a", "b", body="second")
    href = f"/api/libraries/v2/resources/content/{await author.uuid('a')}/"
    body = {"content_hrefs": [href], "orphan_protection_time": 0}
    answer = await http.post(f"{API}/orphans/cleanup/", json=body, headers=ADMIN)
    assert answer.status_code == 202, answer.text
    one = TaskRunner(runner._functions)
    async with worker(dispatcher, way, Settings(**QUICK), author.database, author.files, one):
        [task] = await ended(dispatcher, 1)
    shown = (await http.get(answer.json()["task"], headers=ADMIN)).json()

    assert (task.name, task.queue, task.username) == (
        "libraries.orphan_cleanup",
        "libraries",
        "root",
    )
    assert shown["state"] == "completed", shown["error"]
    assert "pdrn:00000000-0000-0000-0000-000000000000:orphans" in str(
        shown["reserved_resources_record"]
    )
    reports = {report["code"]: report for report in shown["progress_reports"]}
    assert set(reports) == {"clean-up.content", "clean-up.artifacts"}
    for report in reports.values():
        assert (report["done"], report["total"], report["state"]) == (1, 1, "completed")
    assert shown["result"] is None
    assert not await author.kept("a", 1)
    assert await author.kept("b", 1)


async def test_the_old_route_asks_for_what_the_settings_say(
    http: httpx.AsyncClient, dispatcher: FastAPI
) -> None:
    old = await http.delete(f"{API}/orphans/", headers=ADMIN)
    plain = await http.post(f"{API}/orphans/cleanup/", headers=ADMIN)
    null = await http.post(
        f"{API}/orphans/cleanup/", json={"orphan_protection_time": None}, headers=ADMIN
    )

    assert [answer.status_code for answer in (old, plain, null)] == [202, 202, 202]
    for task in await tasks_of(dispatcher):
        assert task.arguments == {
            "content_pks": None, "orphan_protection_time": None, "administrator": True,
        }  # fmt: skip


CONTENT = "/api/libraries/v2/resources/content"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"content_hrefs": []}, "content_hrefs"),
        ({"content_hrefs": None}, "content_hrefs"),
        ({"content_hrefs": "x"}, "content_hrefs"),
        ({"content_hrefs": ["x"]}, "content_hrefs"),
        ({"content_hrefs": ["\x00"]}, "content_hrefs"),
        ({"content_hrefs": [7]}, "content_hrefs"),
        ({"content_hrefs": [f"{CONTENT}/{'-' * 36}/"]}, "content_hrefs"),
        ({"content_hrefs": [f"{CONTENT}/{uuid4()}/x"]}, "content_hrefs"),
        ({"content_hrefs": [f"/pulp/api/v3/tasks/{uuid4()}/"]}, "content_hrefs"),
        ({"content_hrefs": [f"{CONTENT}/{uuid4()}/"] * 10_001}, "content_hrefs"),
        ({"orphan_protection_time": -1}, "orphan_protection_time"),
        ({"orphan_protection_time": 4_294_967_296}, "orphan_protection_time"),
        ({"orphan_protection_time": 10**30}, "orphan_protection_time"),
        ({"orphan_protection_time": 1.5}, "orphan_protection_time"),
        ({"orphan_protection_time": "soon"}, "orphan_protection_time"),
        ([], ""),
    ],
)
async def test_a_bad_body_is_refused_and_nothing_is_dispatched(
    http: httpx.AsyncClient, dispatcher: FastAPI, body: Any, field: str
) -> None:
    answer = await http.post(f"{API}/orphans/cleanup/", json=body, headers=ADMIN)

    assert answer.status_code == 400, answer.text
    assert field in answer.text
    assert await tasks_of(dispatcher) == []


@pytest.mark.parametrize("headers", [as_user("ada"), {}])
async def test_others_may_not_whatever_their_body_is(
    http: httpx.AsyncClient, dispatcher: FastAPI, headers: dict[str, str]
) -> None:
    refused = 403 if headers else 401
    for body in ({}, {"content_hrefs": []}):
        answer = await http.post(f"{API}/orphans/cleanup/", json=body, headers=headers)
        assert answer.status_code == refused
    assert (await http.delete(f"{API}/orphans/", headers=headers)).status_code == refused
    assert await tasks_of(dispatcher) == []


# The built-in schedules


async def test_every_built_in_schedule_runs_in_the_worker_it_names(
    dispatcher: FastAPI, way: Both, author: Author
) -> None:
    await author.write("a", body="first", now=LONG_AGO)
    await author.write("a", body="second", now=LONG_AGO)
    upload, ident = f"library_import/{uuid4()}", uuid4()
    for path in (upload, f"temp_files/{ident}"):
        await author.files.put(path, b"x")
    age(author.files, [upload], by=timedelta(days=3))
    async with author.database.sessions.begin() as session:
        session.add(
            TempFile(
                id=ident, path=f"temp_files/{ident}", size=1, sha256="", created_by="ada",
                created_at=LONG_AGO,
            )
        )  # fmt: skip
    minutes = {f"{name}_protection_minutes": 60 for name in ("task", "orphan", "upload", "tmpfile")}
    sessions, now = dispatcher.state.database.sessions, utc_now()
    settings = DispatcherSettings(**minutes, **QUICK)
    async with sessions.begin() as session:
        await schedules.keep_built_in(session, settings, now=now)
    assert await schedules.dispatch_due(sessions, now=now + timedelta(days=2)) == 4

    state = dispatcher.state
    libraries = worker(
        dispatcher, way, Settings(**QUICK), author.database, author.files,
        TaskRunner(runner._functions),
    )  # fmt: skip
    own = worker(
        dispatcher, way, settings, state.database, state.files,
        TaskRunner(dispatchers_worker.runner._functions),
    )  # fmt: skip
    async with libraries, own:
        tasks = await ended(dispatcher, 4)

    assert {task.name: task.queue for task in tasks} == {
        "libraries.orphan_cleanup": "libraries", "libraries.upload_cleanup": "libraries",
        "libraries.tmpfile_cleanup": "libraries", "dispatcher.purge": "dispatcher",
    }  # fmt: skip
    assert {task.name: task.error for task in tasks if task.state != "completed"} == {}
    assert not await author.kept("a", 1)
    assert not await author.files.exists(upload)
    assert await files_in(author.files, "temp_files") == []
    async with sessions() as session:
        reports = (await session.exec(select(TaskReport.code))).all()
        kept = (await session.exec(select(TaskSchedule).where(TaskSchedule.built_in))).all()
    assert {"clean-up.content", "clean-up.artifacts", "clean-up.files"} <= set(reports)
    assert {schedule.last_task_id for schedule in kept} == {task.id for task in tasks}
    assert {schedule.name: schedule.arguments for schedule in kept} == {
        name: {} for name in schedules.built_in(settings)
    }


async def test_what_a_schedule_dispatches_can_be_called_with_its_arguments() -> None:
    import inspect

    services = {"libraries": runner, "dispatcher": dispatchers_worker.runner}
    for queue, function, _ in schedules.built_in(DispatcherSettings()).values():
        found = services[queue]._functions[function]
        request = TaskRequest(id=uuid4(), function=function, queue=queue)
        inspect.signature(found).bind(object(), **request.arguments)
