"""User tasks over HTTP. contract: user_tasks §5"""

import base64
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
import pytest_asyncio
from fastapi import FastAPI

from services.user_tasks import artifacts, statuses
from shared import outbox
from shared.callers import service_token
from shared.paging import make_cursor
from tests.user_tasks.conftest import (
    NOON,
    OTHER,
    OWNER,
    SUPERUSER,
    TASK,
    V0,
    V1,
    get,
    later,
    make_artifact,
    make_news,
    make_report,
    tell,
)

STATUS_FIELDS = {
    "name", "state", "state_text", "completed_steps", "total_steps", "attempts", "created",
    "modified", "artifacts", "uuid",
}  # fmt: skip
ARTIFACT_FIELDS = {"name", "created", "modified", "status", "file", "text", "url", "uuid"}
RESULT = UUID(int=70)
PATH = "user_tasks/7/course.tar.gz"
CONTENT = b"0123456789"
TASK_URL = f"{V0}/tasks/{TASK}/"
RESULT_URL = f"{V0}/artifacts/{RESULT}/"
ACTORS: list[Mapping[str, str]] = [{}, OTHER, OWNER, SUPERUSER]
TABLE: list[tuple[str, str, tuple[int, int, int, int]]] = [
    ("GET", f"{V0}/tasks/", (401, 200, 200, 200)),
    ("HEAD", f"{V0}/tasks/", (401, 200, 200, 200)),
    ("OPTIONS", f"{V0}/tasks/", (401, 200, 200, 200)),
    ("GET", TASK_URL, (401, 404, 200, 200)),
    ("HEAD", TASK_URL, (401, 404, 200, 200)),
    ("OPTIONS", TASK_URL, (401, 200, 200, 200)),
    ("DELETE", TASK_URL, (401, 404, 204, 204)),
    ("POST", f"{TASK_URL}cancel/", (401, 404, 200, 200)),
    ("GET", f"{TASK_URL}cancel/", (401, 405, 405, 405)),
    ("HEAD", f"{TASK_URL}cancel/", (401, 405, 405, 405)),
    ("OPTIONS", f"{TASK_URL}cancel/", (401, 200, 200, 200)),
    ("POST", f"{V0}/tasks/", (401, 405, 405, 405)),
    ("PUT", TASK_URL, (401, 403, 403, 405)),
    ("PATCH", TASK_URL, (401, 403, 403, 405)),
    ("GET", f"{V0}/artifacts/", (401, 200, 200, 200)),
    ("HEAD", f"{V0}/artifacts/", (401, 200, 200, 200)),
    ("OPTIONS", f"{V0}/artifacts/", (401, 200, 200, 200)),
    ("GET", RESULT_URL, (401, 404, 200, 200)),
    ("HEAD", RESULT_URL, (401, 404, 200, 200)),
    ("OPTIONS", RESULT_URL, (401, 200, 200, 200)),
    ("POST", f"{V0}/artifacts/", (401, 403, 403, 405)),
    ("PUT", f"{V0}/artifacts/", (401, 403, 403, 405)),
    ("PATCH", f"{V0}/artifacts/", (401, 403, 403, 405)),
    ("DELETE", f"{V0}/artifacts/", (401, 403, 403, 405)),
    ("POST", RESULT_URL, (401, 403, 403, 405)),
    ("PUT", RESULT_URL, (401, 403, 403, 405)),
    ("PATCH", RESULT_URL, (401, 403, 403, 405)),
    ("DELETE", RESULT_URL, (401, 403, 403, 405)),
    ("GET", f"{V0}/tasks/{UUID(int=99)}/", (401, 404, 404, 404)),
    ("DELETE", f"{V0}/tasks/{UUID(int=99)}/", (401, 404, 404, 404)),
    ("POST", f"{V0}/tasks/{UUID(int=99)}/cancel/", (401, 404, 404, 404)),
    ("GET", f"{V0}/artifacts/{UUID(int=99)}/", (401, 404, 404, 404)),
    ("GET", f"{V0}/tasks/malformed/", (401, 404, 404, 404)),
    ("DELETE", f"{V0}/tasks/malformed/", (401, 404, 404, 404)),
    ("POST", f"{V0}/tasks/malformed/cancel/", (401, 404, 404, 404)),
    ("GET", f"{V0}/artifacts/malformed/", (401, 404, 404, 404)),
    ("GET", f"{V0}/tasks", (404, 404, 404, 404)),
    ("GET", TASK_URL[:-1], (404, 404, 404, 404)),
    ("POST", f"{TASK_URL}cancel", (404, 404, 404, 404)),
    ("GET", f"{V0}/artifacts", (404, 404, 404, 404)),
    ("GET", RESULT_URL[:-1], (404, 404, 404, 404)),
]


@pytest_asyncio.fixture
async def task(app: FastAPI) -> FastAPI:
    """One running task of `ines`, with a file it left."""
    async with app.state.database.sessions.begin() as session:
        await tell(session, "Pending", "In Progress")
        report = make_report(completed_steps=1, stage="Exporting")
        await statuses.record_progress(session, [report], now=later(0))
    await leave_file(app)
    return app


async def leave_file(app: FastAPI, **overrides: Any) -> None:
    values: dict[str, Any] = {
        "artifact_id": RESULT, "file": PATH, "file_name": "course.tar.gz",
        "size": len(CONTENT), "content_type": "application/gzip",
    }  # fmt: skip
    report = make_artifact(**(values | overrides))
    await app.state.files.put(report.file, CONTENT)
    async with app.state.database.sessions.begin() as session:
        await artifacts.store(session, [report])


async def many(app: FastAPI, count: int, **overrides: Any) -> list[str]:
    """Tasks of which some share their time; their ids, newest first."""
    news = [
        make_news(task_id=UUID(int=100 + number), at=later(number // 2), **overrides)
        for number in range(count)
    ]
    async with app.state.database.sessions.begin() as session:
        await statuses.record_lifecycle(session, news, now=later(0))
    return [str(piece.task_id) for piece in reversed(news)]


async def link(http: httpx.AsyncClient) -> str:
    answer = await http.get(RESULT_URL, headers=OWNER)
    url: str = answer.json()["file"]
    return url


@pytest.mark.parametrize(("method", "path", "answers"), TABLE)
@pytest.mark.parametrize("actor", range(4), ids=["anonymous", "other", "owner", "superuser"])
async def test_every_actor_is_answered_as_listed(
    task: FastAPI,
    http: httpx.AsyncClient,
    method: str,
    path: str,
    answers: tuple[int, int, int, int],
    actor: int,
) -> None:
    answer = await http.request(method, path, headers=dict(ACTORS[actor]))

    assert answer.status_code == answers[actor]


async def test_anonymous_callers_are_challenged(http: httpx.AsyncClient) -> None:
    answer = await http.get(f"{V0}/tasks/")

    assert "www-authenticate" in answer.headers
    assert set(answer.json()) == {"detail"}


async def test_a_status_has_exactly_these_fields(task: FastAPI, http: httpx.AsyncClient) -> None:
    answer = await http.get(TASK_URL, headers=OWNER)

    body = answer.json()
    assert set(body) == STATUS_FIELDS
    assert (body["state"], body["state_text"]) == ("Exporting", "Exporting")
    assert (body["completed_steps"], body["total_steps"], body["attempts"]) == (1, 3, 1)
    assert body["created"] == "2026-11-21T12:00:00.000000Z"
    assert body["artifacts"] == [f"http://lyceum.test{RESULT_URL}"]


async def test_an_artifact_has_exactly_these_fields(task: FastAPI, http: httpx.AsyncClient) -> None:
    answer = await http.get(RESULT_URL, headers=OWNER)

    body = answer.json()
    assert set(body) == ARTIFACT_FIELDS
    assert (body["name"], body["text"], body["url"]) == ("Output", "", "")
    assert body["status"] == f"http://lyceum.test{TASK_URL}"
    assert body["file"].startswith(f"http://lyceum.test{RESULT_URL}file?")


async def test_an_artifact_without_a_file_has_no_link(
    task: FastAPI, http: httpx.AsyncClient
) -> None:
    async with task.state.database.sessions.begin() as session:
        note = make_artifact(artifact_id=UUID(int=71), text="Words.", url="http://a.test/")
        await artifacts.store(session, [note])

    url = f"{V0}/artifacts/{UUID(int=71)}/"
    shown, file = await http.get(url, headers=OWNER), await http.get(f"{url}file", headers=OWNER)

    assert (shown.json()["file"], shown.json()["text"]) == ("", "Words.")
    assert file.status_code == 404


async def test_lists_are_bare_arrays_newest_first(
    app: FastAPI, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.user_tasks.api.ROWS", 3)
    ids = await many(app, 7)

    tasks = await http.get(f"{V0}/tasks/", headers=OWNER)

    assert [row["uuid"] for row in tasks.json()] == ids
    assert all(set(row) == STATUS_FIELDS for row in tasks.json())


@pytest.mark.parametrize("count", [0, 3, 7])
async def test_artifacts_are_listed_newest_first(
    task: FastAPI, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("services.user_tasks.api.ROWS", 3)
    reports = [make_artifact(at=later(30 + number // 2)) for number in range(count)]
    async with task.state.database.sessions.begin() as session:
        await artifacts.store(session, reports)

    listed = (await http.get(f"{V0}/artifacts/", headers=OWNER)).json()

    newest = sorted(reports, key=lambda report: (report.at, report.artifact_id), reverse=True)
    assert [row["uuid"] for row in listed] == [
        *(str(report.artifact_id) for report in newest),
        str(RESULT),
    ]
    assert all(set(row) == ARTIFACT_FIELDS for row in listed)


@pytest.mark.parametrize("kind", ["tasks", "artifacts"])
async def test_lists_show_only_ones_own_but_superusers_everything(
    task: FastAPI, http: httpx.AsyncClient, kind: str
) -> None:
    counts = [
        len((await http.get(f"{V0}/{kind}/", headers=dict(actor))).json())
        for actor in (OTHER, OWNER, SUPERUSER)
    ]

    assert counts == [0, 1, 1]


async def test_cancel_answers_with_the_status_after_it(
    task: FastAPI, http: httpx.AsyncClient
) -> None:
    answer = await http.post(f"{TASK_URL}cancel/", content=b"{ignored", headers=OWNER)

    assert set(answer.json()) == STATUS_FIELDS | {"changed"}
    assert (answer.json()["state"], answer.json()["completed_steps"]) == ("Canceled", 1)
    assert answer.json()["changed"] is True
    async with task.state.database.sessions() as session:
        notes = await outbox.waiting(session)
    assert [note[:2] for note in notes] == [("dispatcher", "on_cancel_requested")]


async def test_canceling_what_has_ended_is_answered_all_the_same(
    task: FastAPI, http: httpx.AsyncClient
) -> None:
    async with task.state.database.sessions.begin() as session:
        await tell(session, "Succeeded", at=later(30))
    before = (await http.get(TASK_URL, headers=OWNER)).json()

    answer = await http.post(f"{TASK_URL}cancel/", headers=OWNER)

    assert (answer.status_code, answer.json()) == (200, before | {"changed": False})


async def test_delete_removes_everything_and_stops_the_work(
    task: FastAPI, http: httpx.AsyncClient
) -> None:
    url = await link(http)

    gone = await http.delete(TASK_URL, headers=OWNER)

    assert (gone.status_code, gone.content) == (204, b"")
    assert not await task.state.files.exists(PATH)
    for path in (TASK_URL, RESULT_URL, url, f"{V1}/tasks/{TASK}/"):
        assert (await http.get(path, headers=OWNER)).status_code == 404
    for path in (f"{V0}/tasks/", f"{V0}/artifacts/"):
        assert (await http.get(path, headers=SUPERUSER)).json() == []
    async with task.state.database.sessions() as session:
        notes = await outbox.waiting(session)
    assert [note[:2] for note in notes] == [("dispatcher", "on_cancel_requested")]


async def test_late_notes_do_not_bring_a_deleted_task_back(
    task: FastAPI, http: httpx.AsyncClient
) -> None:
    await http.delete(TASK_URL, headers=OWNER)

    async with task.state.database.sessions.begin() as session:
        await tell(session, "Pending", "In Progress", "Failed")
        await statuses.record_progress(session, [make_report(at=later(99))], now=later(0))
        await artifacts.store(session, [make_artifact(text="late")])

    assert (await http.get(TASK_URL, headers=OWNER)).status_code == 404
    assert (await http.delete(TASK_URL, headers=OWNER)).status_code == 404
    assert (await http.get(f"{V0}/artifacts/", headers=SUPERUSER)).json() == []


async def test_deleting_what_has_ended_stops_nothing(
    task: FastAPI, http: httpx.AsyncClient
) -> None:
    async with task.state.database.sessions.begin() as session:
        await tell(session, "Failed", at=later(30))

    gone = await http.delete(TASK_URL, headers=OWNER)

    assert gone.status_code == 204
    async with task.state.database.sessions() as session:
        assert (await get(session)).state.value == "Failed"
        assert await outbox.waiting(session) == []


async def test_a_signed_link_works_without_a_token(task: FastAPI, http: httpx.AsyncClient) -> None:
    answer = await http.get(await link(http))

    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-type"] == "application/gzip"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_head_of_a_link_has_no_body(task: FastAPI, http: httpx.AsyncClient) -> None:
    answer = await http.head(await link(http))

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "10"


@pytest.mark.parametrize(("actor", "status"), [({}, 401), (OTHER, 404), (OWNER, 200)])
async def test_without_a_signature_a_token_is_needed(
    task: FastAPI, http: httpx.AsyncClient, actor: dict[str, str], status: int
) -> None:
    answer = await http.get(f"{RESULT_URL}file", headers=actor)

    assert answer.status_code == status


async def test_an_expired_link_is_refused(
    task: FastAPI, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task.state.settings, "link_seconds", -1)

    answer = await http.get(await link(http), headers=OWNER)

    assert answer.status_code == 403


@pytest.mark.parametrize("signature", ["", "0" * 64, "é", "€", "\x00"])
async def test_a_forged_link_is_refused(
    task: FastAPI, http: httpx.AsyncClient, signature: str
) -> None:
    forged: dict[str, Any] = {"expires": int(time.time()) + 60, "signature": signature}

    answer = await http.get(f"{RESULT_URL}file", params=forged, headers=OWNER)

    assert answer.status_code == 403


async def test_a_link_cannot_be_prolonged_or_moved(task: FastAPI, http: httpx.AsyncClient) -> None:
    url = urlsplit(await link(http))
    query = {key: values[0] for key, values in parse_qs(url.query).items()}
    longer = query | {"expires": str(int(query["expires"]) + 1)}

    prolonged = await http.get(url.path, params=longer)
    moved = await http.get(f"{V0}/artifacts/{uuid4()}/file", params=query)

    assert (prolonged.status_code, moved.status_code) == (403, 403)


@pytest.mark.parametrize(
    ("span", "content", "where"),
    [
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
    ],
)
async def test_a_part_can_be_asked_for(
    task: FastAPI, http: httpx.AsyncClient, span: str, content: bytes, where: str
) -> None:
    answer = await http.get(await link(http), headers={"Range": span})

    assert (answer.status_code, answer.content) == (206, content)
    assert answer.headers["content-range"] == where


async def test_a_part_beyond_the_end_is_refused(task: FastAPI, http: httpx.AsyncClient) -> None:
    answer = await http.get(await link(http), headers={"Range": "bytes=10-"})

    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */10"


@pytest.mark.parametrize("name", ['a"; filename="b.exe', "a\r\nSet-Cookie: b=c", "Übung €.zip"])
async def test_no_file_name_escapes_its_header(
    app: FastAPI, http: httpx.AsyncClient, name: str
) -> None:
    async with app.state.database.sessions.begin() as session:
        await tell(session, "Pending")
    await leave_file(app, file_name=name)

    answer = await http.get(await link(http))

    assert (answer.status_code, answer.content) == (200, CONTENT)
    shown = answer.headers["content-disposition"]
    assert shown.startswith('attachment; filename="')
    assert (shown.count('"'), shown.isascii(), "set-cookie" in answer.headers) == (2, True, False)


@pytest.mark.parametrize("content_type", ["text/h\r\nSet-Cookie: b=c", "é/€", ""])
async def test_a_strange_content_type_is_not_sent(
    app: FastAPI, http: httpx.AsyncClient, content_type: str
) -> None:
    async with app.state.database.sessions.begin() as session:
        await tell(session, "Pending")
    await leave_file(app, content_type=content_type)

    answer = await http.get(await link(http))

    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-type"] == "application/octet-stream"


async def test_a_lost_file_is_not_found(task: FastAPI, http: httpx.AsyncClient) -> None:
    url = await link(http)
    await task.state.files.delete([PATH])

    assert (await http.get(url)).status_code == 404


async def test_v1_shows_a_task_in_full(task: FastAPI, http: httpx.AsyncClient) -> None:
    answer = await http.get(f"{V1}/tasks/{TASK}/", headers=OWNER)

    body = answer.json()
    assert (body["state"], body["base_state"], body["stage"]) == (
        "Exporting", "In Progress", "Exporting",
    )  # fmt: skip
    assert (body["user"], body["task_type"], body["parent"]) == ("ines", "course_export", None)
    assert [artifact["uuid"] for artifact in body["artifacts"]] == [str(RESULT)]
    assert body["artifacts"][0]["size"] == len(CONTENT)


async def test_v1_shows_what_a_task_was_asked_for(app: FastAPI, http: httpx.AsyncClient) -> None:
    wanted = {"library_key": "lib:A:B", "deep": [{"a": None}], "odd": "a\x00b"}
    async with app.state.database.sessions.begin() as session:
        await statuses.record_lifecycle(session, [make_news(parameters=wanted)], now=NOON)

    shown = (await http.get(f"{V1}/tasks/{TASK}/", headers=OWNER)).json()

    assert shown["parameters"] == wanted | {"odd": "a\ufffdb"}


async def test_v1_keeps_tasks_from_others(task: FastAPI, http: httpx.AsyncClient) -> None:
    one = await http.get(f"{V1}/tasks/{TASK}/", headers=OTHER)
    page = await http.get(f"{V1}/tasks/", headers=OTHER)
    anonymous = await http.get(f"{V1}/tasks/")

    assert (one.status_code, anonymous.status_code) == (404, 401)
    assert page.json() == {"results": [], "next": None}


@pytest.mark.parametrize("limit", [1, 3, 6, 7, 200])
async def test_v1_pages_show_each_task_once(
    app: FastAPI, http: httpx.AsyncClient, limit: int
) -> None:
    ids = await many(app, 7)
    seen: list[str] = []
    params: dict[str, Any] | None = {"limit": limit}

    while params is not None:
        page = (await http.get(f"{V1}/tasks/", params=params, headers=OWNER)).json()
        seen += [row["uuid"] for row in page["results"]]
        params = {"limit": limit, "after": page["next"]} if page["next"] else None

    assert seen == ids


async def test_v1_pages_can_be_narrowed(task: FastAPI, http: httpx.AsyncClient) -> None:
    await many(task, 3, task_type="import")

    async def count(**params: str) -> int:
        page = await http.get(f"{V1}/tasks/", params=params, headers=OWNER)
        return len(page.json()["results"])

    assert await count(state="Pending") == 3
    assert await count(state="In Progress") == 1
    assert await count(task_type="import") == 3
    assert await count(task_type="imp\x00ort", state="In Progress") == 0


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "%%%",
        "é",
        base64.urlsafe_b64encode(b"{}").decode(),
        make_cursor(),
        make_cursor(1, 2),
        make_cursor(None, None),
        make_cursor("yesterday", str(TASK)),
        make_cursor(NOON.isoformat(), "x"),
        make_cursor(NOON.isoformat(), [1]),
        make_cursor("2026-11-21T12:00:00", str(TASK)),
        make_cursor("0001-01-01T00:00:00+14:00", str(TASK)),
        make_cursor("9999-12-31T23:59:59-14:00", str(TASK)),
    ],
)
async def test_a_bad_cursor_is_refused(task: FastAPI, http: httpx.AsyncClient, cursor: str) -> None:
    answer = await http.get(f"{V1}/tasks/", params={"after": cursor}, headers=OWNER)

    assert answer.status_code == 400
    assert orjson.loads(answer.content)["status"] == 400


@pytest.mark.parametrize(
    "params", [{"limit": "0"}, {"limit": "201"}, {"state": "Exporting"}, {"limit": "x"}]
)
async def test_bad_parameters_are_refused(http: httpx.AsyncClient, params: dict[str, str]) -> None:
    answer = await http.get(f"{V1}/tasks/", params=params, headers=OWNER)

    assert answer.status_code == 400


async def test_several_tasks_are_read_by_their_ids(app: FastAPI, http: httpx.AsyncClient) -> None:
    ids = [uuid4() for _ in range(3)]
    async with app.state.database.sessions.begin() as session:
        news = [
            make_news(task_id=ids[0]), make_news(task_id=ids[1], user="olga"),
            make_news(task_id=ids[2]),
        ]  # fmt: skip
        await statuses.record_lifecycle(session, news, now=NOON)

    async def read(headers: dict[str, str], *wanted: Any) -> set[str]:
        answer = await http.get(
            f"{V1}/tasks/", headers=headers, params={"uuid": [str(one) for one in wanted]}
        )
        assert answer.status_code == 200, answer.text
        return {row["uuid"] for row in answer.json()["results"]}

    service = {"Authorization": f"Bearer {service_token(app.state.settings)}"}
    first, second, third = map(str, ids)
    assert await read(service, *ids[:2], uuid4()) == {first, second}
    assert await read(OWNER, *ids[:2]) == {first}
    assert await read(OWNER) == {first, third}
    for wrong in (["x"], [str(uuid4())] * 201):
        answer = await http.get(f"{V1}/tasks/", headers=OWNER, params={"uuid": wrong})
        assert answer.status_code == 400
