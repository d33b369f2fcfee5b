"""What other services tell, through the door they use."""

import json
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import client
from services.user_tasks.errors import StatusUnknown
from shared import outbox
from shared.callers import service_token
from shared.clients import ServiceClients
from tests.user_tasks.conftest import (
    OWNER,
    SUPERUSER,
    TASK,
    V1,
    artifacts_of,
    get,
    later,
    make_artifact,
    make_news,
    make_report,
)

NOTES = "/user_tasks/notes"
JSON = {"Content-Type": "application/json"}


def note(number: int, name: str, payload: BaseModel | dict[str, Any]) -> dict[str, Any]:
    plain = payload.model_dump(mode="json") if isinstance(payload, BaseModel) else payload
    return {"id": number, "name": name, "payload": plain}


async def deliver(http: httpx.AsyncClient, app: FastAPI, *notes: dict[str, Any]) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {service_token(app.state.settings)}"} | JSON
    # Escaped, as on the wire: half a surrogate pair has no UTF-8 form.
    answer = await http.post(NOTES, content=json.dumps({"notes": notes}), headers=headers)
    assert answer.status_code == 200
    refused: dict[str, str] = answer.json()["refused"]
    return refused


async def test_what_clients_send_is_what_the_jobs_take(
    app: FastAPI, http: httpx.AsyncClient, session: AsyncSession
) -> None:
    await client.lifecycle_many(session, [make_news(), make_news(state="In Progress")])
    await client.progress_later(session, [make_report(completed_steps=2, stage="Exporting")])
    left = await outbox.waiting(session)

    refused = await deliver(
        http, app, *(note(number, name, body) for number, (_, name, body) in enumerate(left))
    )

    assert ({receiver for receiver, _, _ in left}, refused) == ({"user_tasks"}, {})
    shown = (await http.get(f"{V1}/tasks/{TASK}/", headers=OWNER)).json()
    assert (shown["state"], shown["completed_steps"]) == ("Exporting", 2)


async def test_clients_calls_reach_the_service(app: FastAPI, http: httpx.AsyncClient) -> None:
    await deliver(http, app, note(1, "on_lifecycle", make_news(state="In Progress")))
    clients = ServiceClients(app.state.settings, transport=httpx.ASGITransport(app=app))

    await client.progress(clients, [make_report(completed_steps=1)])
    await client.artifact(clients, make_artifact(text="Words."))
    status = await client.get_status(clients, TASK)
    with pytest.raises(StatusUnknown):
        await client.get_status(clients, UUID(int=99))
    await clients.close()

    assert (status.completed_steps, status.base_state) == (1, "In Progress")
    assert [artifact.text for artifact in status.artifacts] == ["Words."]


async def test_a_delivery_told_twice_counts_once(app: FastAPI, http: httpx.AsyncClient) -> None:
    notes = [
        note(1, "on_lifecycle", make_news(state="In Progress")),
        note(2, "on_progress", make_report(completed_steps=1)),
        note(3, "on_artifact", make_artifact(text="Words.")),
        note(4, "on_lifecycle", make_news(state="Failed", at=later(30))),
    ]

    await deliver(http, app, *notes)
    await deliver(http, app, *notes)

    async with app.state.database.sessions() as session:
        assert (await get(session)).completed_steps == 1
        assert sorted(left.name for left in await artifacts_of(session)) == ["Error", "Output"]


async def test_a_result_may_come_before_the_news_of_its_task(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    refused = await deliver(http, app, note(1, "on_artifact", make_artifact(text="Words.")))
    await deliver(http, app, note(2, "on_lifecycle", make_news()))

    assert refused == {}
    async with app.state.database.sessions() as session:
        assert [found.text for found in await artifacts_of(session)] == ["Words."]


async def test_bad_notes_do_not_hold_up_good_ones(app: FastAPI, http: httpx.AsyncClient) -> None:
    naive = make_news().model_dump(mode="json") | {"at": "2026-11-21T12:00:00"}
    refused = await deliver(
        http,
        app,
        note(1, "on_lifecycle", naive),
        note(2, "on_lifecycle", make_news()),
        note(3, "on_lifecycle", {}),
        note(4, "on_progress", {"task_id": str(TASK), "stage": "a\x00"}),
        note(5, "on_nothing", {}),
    )

    assert set(refused) == {"1", "3", "4", "5"}
    async with app.state.database.sessions() as session:
        assert (await get(session)).state.value == "Pending"


async def test_a_failure_with_unprintable_words_is_taken(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    failed = make_news(state="Failed").model_dump(mode="json")
    failed["error"] = {"message": "a\x00b\ud83d", "deep": ["\x00", 10**30]}

    refused = await deliver(http, app, note(1, "on_lifecycle", failed))

    assert refused == {}
    async with app.state.database.sessions() as session:
        assert [left.text for left in await artifacts_of(session)] == ["a\ufffdb\ufffd"]


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (OWNER, 403), (SUPERUSER, 403)])
async def test_people_cannot_leave_notes(
    app: FastAPI, http: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    news = note(1, "on_lifecycle", make_news())

    answer = await http.post(NOTES, json={"notes": [news]}, headers=headers)

    assert answer.status_code == status
    async with app.state.database.sessions() as session:
        assert await artifacts_of(session) == []
