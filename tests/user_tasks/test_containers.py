"""Chains, groups and chords. contract: user_tasks §4.2, §4.6, §4.7, §4.9, §12"""

import asyncio
import random
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from sqlalchemy import event
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from services.user_tasks import statuses, trees
from services.user_tasks.errors import PlacedElsewhere, StatusUnknown
from services.user_tasks.models import Event, Status
from services.user_tasks.schemas import Lifecycle
from services.user_tasks.settings import Settings
from services.user_tasks.states import State
from services.user_tasks.views import shown_state, status_json
from shared import outbox
from shared.callers import Caller
from shared.database import Sessions, driver
from tests.user_tasks.conftest import (
    NOON,
    artifacts_of,
    get,
    later,
    make_artifact,
    make_news,
    make_report,
)

INES, ROOT = Caller("ines"), Caller("root", superuser=True)
TOP, INNER = UUID(int=1), UUID(int=2)
A, B, C = (UUID(int=number) for number in (11, 12, 13))


def box(kind: str = "group", **overrides: Any) -> dict[str, Any]:
    return {"id": TOP, "kind": kind, "members": 2, "total_steps": 6} | overrides


def member(task: UUID, state: str, *containers: dict[str, Any], **overrides: Any) -> Lifecycle:
    values = {"task_id": task, "state": state, "containers": list(containers) or [box()]}
    return make_news(**(values | overrides))


async def tell(session: AsyncSession, *news: Lifecycle) -> None:
    """Each piece in a delivery of its own."""
    for piece in news:
        await statuses.record_lifecycle(session, [piece], now=piece.at)


async def states(session: AsyncSession, *ids: UUID) -> list[str]:
    return [(await get(session, uuid)).state.value for uuid in ids]


async def steps(session: AsyncSession, uuid: UUID = TOP) -> tuple[int, int]:
    status = await get(session, uuid)
    return status.completed_steps, status.total_steps


def chord(task: UUID, state: str, *, body: bool = False, **overrides: Any) -> Lifecycle:
    """Two headers `A` and `B` in a group, and the body `C`."""
    top = box("chord", total_steps=9)
    header = [] if body else [box(id=INNER)]
    return member(task, state, top, *header, **overrides)


async def test_the_first_member_brings_its_containers(session: AsyncSession) -> None:
    await tell(session, chord(A, "Pending"))

    top, inner, leaf = [await get(session, uuid) for uuid in (TOP, INNER, A)]
    assert [row.parent_id for row in (top, inner, leaf)] == [None, TOP, INNER]
    assert {row.root_id for row in (top, inner, leaf)} == {TOP}
    assert [row.task_class for row in (top, inner)] == ["celery.chord", "celery.group"]
    assert [row.kind for row in (top, inner, leaf)] == ["chord", "group", None]
    assert [row.is_container for row in (top, inner, leaf)] == [True, True, False]
    assert [row.state.value for row in (top, inner, leaf)] == ["Pending"] * 3
    assert [(row.user, row.task_id) for row in (top, inner)] == [
        ("ines", str(TOP)),
        ("ines", str(INNER)),
    ]
    assert [row.total_steps for row in (top, inner, leaf)] == [9, 6, 3]


async def test_a_container_has_the_first_name_that_is_not_empty(session: AsyncSession) -> None:
    await tell(
        session,
        member(A, "Pending", box(name="")),
        member(B, "Pending", box(name="Both")),
        member(C, "Pending", box(name="Other")),
    )

    assert (await get(session, TOP)).name == "Both"


@pytest.mark.parametrize("kind", ["chain", "group", "chord"])
async def test_the_first_member_that_starts_starts_it(session: AsyncSession, kind: str) -> None:
    await tell(session, member(A, "Pending", box(kind)), member(B, "Pending", box(kind)))
    assert await states(session, TOP) == ["Pending"]

    await tell(session, member(B, "In Progress", box(kind), at=later(3)))

    top = await get(session, TOP)
    assert (top.state, top.started_at) == (State.IN_PROGRESS, later(3))


async def test_a_chord_starts_through_its_group(session: AsyncSession) -> None:
    await tell(session, chord(A, "In Progress"))

    assert await states(session, TOP, INNER) == ["In Progress", "In Progress"]


@pytest.mark.parametrize("kind", ["chain", "group", "chord"])
async def test_it_succeeds_with_its_last_member(session: AsyncSession, kind: str) -> None:
    await tell(session, member(A, "Succeeded", box(kind), at=later(5)))
    assert (await states(session, TOP), await steps(session)) == (["In Progress"], (3, 6))

    await tell(session, member(B, "Succeeded", box(kind), at=later(9)))

    top = await get(session, TOP)
    assert (top.state, top.finished_at) == (State.SUCCEEDED, later(9))
    assert await steps(session) == (6, 6)


async def test_a_chord_succeeds_after_its_header_and_its_body(session: AsyncSession) -> None:
    await tell(session, chord(A, "Succeeded"), chord(B, "Succeeded"))
    assert await states(session, TOP, INNER) == ["In Progress", "Succeeded"]

    await tell(session, chord(C, "Succeeded", body=True))

    assert await states(session, TOP) == ["Succeeded"]
    assert (await steps(session), await steps(session, INNER)) == ((9, 9), (6, 6))


async def test_known_members_that_succeeded_are_not_all_of_them(session: AsyncSession) -> None:
    five = box(members=5)

    await tell(session, *(member(UUID(int=20 + n), "Succeeded", five) for n in range(4)))

    assert await states(session, TOP) == ["In Progress"]


@pytest.mark.parametrize("kind", ["chain", "group", "chord"])
async def test_it_fails_at_once_and_stays_failed(session: AsyncSession, kind: str) -> None:
    no = {"code": "disk", "message": "Disk full."}
    await tell(
        session,
        member(A, "In Progress", box(kind)),
        member(B, "Failed", box(kind), at=later(4), error=no),
        member(A, "Succeeded", box(kind), at=later(6)),
    )

    top = await get(session, TOP)
    assert (top.state, top.finished_at) == (State.FAILED, later(4))
    assert top.error == no | {"child": str(B)}
    assert await steps(session) == (3, 6)


async def test_every_failing_member_leaves_one_error_on_each_container(
    session: AsyncSession,
) -> None:
    first, second = {"message": "One."}, {"message": "Two."}
    news = [chord(A, "Failed", error=first), chord(B, "Failed", error=second, at=later(1))]

    await tell(session, *news, *news)

    for uuid in (TOP, INNER):
        left = await artifacts_of(session, uuid)
        assert sorted((one.name, one.text) for one in left) == [
            ("Error", "One."),
            ("Error", "Two."),
        ]
    assert [one.text for one in await artifacts_of(session, A)] == ["One."]
    assert await trees.children(session, [TOP]) == {TOP: {"Failed": 1}}
    found = (await trees.failures(session, [TOP]))[TOP]
    assert [(one.uuid, one.error["message"]) for one in found] == [(A, "One."), (B, "Two.")]


async def test_a_canceled_link_cancels_its_chain(session: AsyncSession) -> None:
    await tell(session, member(A, "Succeeded", box("chain")), member(B, "Pending", box("chain")))

    await statuses.cancel(session, B, caller=INES, now=later(9))

    top = await get(session, TOP)
    assert (top.state, top.finished_at, top.error) == (State.CANCELED, later(9), None)


@pytest.mark.parametrize("order", [1, -1])
async def test_links_canceled_after_a_failure_do_not_hide_it(
    session: AsyncSession, order: int
) -> None:
    broken = {"code": "failed", "message": "A task before it in its chain did not complete."}
    news = [
        member(A, "Failed", box("chain"), error={"message": "No."}, at=later(3)),
        member(B, "Canceled", box("chain"), error=broken, at=later(3)),
    ]

    await tell(session, *news[::order])

    assert await states(session, TOP, A, B) == ["Failed", "Failed", "Canceled"]


@pytest.mark.parametrize(
    ("other", "result"),
    [("Succeeded", "Canceled"), ("Canceled", "Canceled"), ("Failed", "Failed")],
)
@pytest.mark.parametrize("kind", ["group", "chord"])
async def test_after_a_cancel_it_ends_with_its_last_member(
    session: AsyncSession, kind: str, other: str, result: str
) -> None:
    await tell(session, member(A, "In Progress", box(kind)), member(B, "Canceled", box(kind)))
    assert await states(session, TOP) == ["In Progress"]

    await tell(session, member(A, other, box(kind), at=later(5)))

    assert await states(session, TOP) == [result]


@pytest.mark.parametrize(("kind", "shown"), [("chain", "Packing"), ("group", "In Progress")])
async def test_only_chains_show_a_members_stage(
    session: AsyncSession, kind: str, shown: str
) -> None:
    await tell(session, member(A, "In Progress", box(kind)))

    await statuses.record_progress(
        session, [make_report(task_id=A, stage="Packing")], now=later(30)
    )

    assert shown_state(await get(session, TOP)) == shown


async def test_a_chord_shows_the_stage_of_its_body_only(session: AsyncSession) -> None:
    await tell(session, chord(A, "In Progress"), chord(C, "In Progress", body=True))

    await statuses.record_progress(session, [make_report(task_id=A, stage="Header")], now=later(30))
    assert shown_state(await get(session, TOP)) == "In Progress"
    await statuses.record_progress(session, [make_report(task_id=C, stage="Body")], now=later(30))

    assert shown_state(await get(session, TOP)) == "Body"


async def test_steps_are_those_of_the_members(session: AsyncSession) -> None:
    await tell(session, member(A, "In Progress"), member(B, "In Progress"))

    await statuses.record_progress(
        session,
        [
            make_report(task_id=A, completed_steps=9, total_steps=5),
            make_report(task_id=B, completed_steps=1),
        ],
        now=later(30),
    )

    assert await steps(session) == (6, 8)


async def test_more_total_steps_of_a_member_are_more_of_the_container(
    session: AsyncSession,
) -> None:
    two = box(total_steps=3)
    await tell(
        session,
        member(A, "In Progress", two, total_steps=1),
        member(B, "Pending", two, total_steps=2),
    )

    await statuses.record_progress(session, [make_report(task_id=A, total_steps=3)], now=later(30))

    assert await steps(session) == (0, 5)


async def test_the_largest_steps_do_not_break_a_container(session: AsyncSession) -> None:
    huge = box(total_steps=2**62, members=2**62)
    news = [member(uuid, "Succeeded", huge, total_steps=2**62) for uuid in (A, B)]

    await tell(session, *news)

    assert await steps(session) == (2**62, 2**62)


async def test_a_retry_takes_a_members_steps_back(session: AsyncSession) -> None:
    await tell(session, member(A, "In Progress"))
    await statuses.record_progress(
        session, [make_report(task_id=A, completed_steps=2)], now=later(30)
    )

    await tell(session, member(A, "Retrying", attempt=2, at=later(20)))

    top = await get(session, TOP)
    assert (top.state, top.attempts, top.completed_steps) == (State.IN_PROGRESS, 1, 0)


async def test_a_name_goes_up_the_tree(session: AsyncSession) -> None:
    await tell(session, chord(A, "In Progress"), chord(B, "Pending"))

    await statuses.record_progress(
        session, [make_report(task_id=A, name="Winter term")], now=later(30)
    )

    names = [(await get(session, uuid)).name for uuid in (TOP, INNER, A, B)]
    assert names == ["Winter term"] * 3 + ["Export of CS101"]


async def test_a_late_report_renames_nothing(session: AsyncSession) -> None:
    await tell(session, member(A, "In Progress"))
    await statuses.record_progress(
        session, [make_report(task_id=A, at=later(20), name="New")], now=later(30)
    )

    await statuses.record_progress(
        session, [make_report(task_id=A, at=later(19), name="Old")], now=later(30)
    )

    assert [(await get(session, uuid)).name for uuid in (TOP, A)] == ["New", "New"]


async def test_canceling_ends_what_has_not_ended(session: AsyncSession) -> None:
    await tell(
        session,
        chord(A, "Succeeded"),
        chord(B, "In Progress", user="olga"),
        chord(C, "Pending", body=True),
    )

    answer = await statuses.cancel(session, TOP, caller=INES, now=later(9))

    assert answer[1]
    assert await states(session, TOP, INNER, A, B, C) == [
        "Canceled", "Canceled", "Succeeded", "Canceled", "Canceled",
    ]  # fmt: skip
    notes = [payload for _, _, payload in await outbox.waiting(session)]
    assert sorted(note["task_id"] for note in notes) == [str(B), str(C)]
    assert {note["by"] for note in notes} == {"ines"}


async def test_canceling_an_inner_group_reaches_the_top(session: AsyncSession) -> None:
    await tell(
        session, chord(A, "In Progress"), chord(B, "Pending"), chord(C, "Pending", body=True)
    )

    await statuses.cancel(session, INNER, caller=INES, now=later(9))
    assert await states(session, TOP, INNER, A, B, C) == [
        "In Progress", "Canceled", "Canceled", "Canceled", "Pending",
    ]  # fmt: skip
    await tell(session, chord(C, "Canceled", body=True, at=later(10)))

    assert await states(session, TOP) == ["Canceled"]


async def test_canceling_a_failed_group_still_stops_who_goes_on(session: AsyncSession) -> None:
    await tell(session, member(A, "Failed"), member(B, "In Progress"))

    answer = await statuses.cancel(session, TOP, caller=INES, now=later(9))
    again = await statuses.cancel(session, TOP, caller=INES, now=later(10))

    assert (answer[1], again[1]) == (True, False)
    assert await states(session, TOP, A, B) == ["Failed", "Failed", "Canceled"]
    assert [note[2]["task_id"] for note in await outbox.waiting(session)] == [str(B)]


async def test_members_told_of_after_the_cancel_are_canceled_too(session: AsyncSession) -> None:
    await tell(session, chord(A, "Pending"))
    await statuses.cancel(session, TOP, caller=INES, now=later(9))

    await tell(session, chord(B, "In Progress"), chord(C, "Succeeded", body=True))

    assert await states(session, TOP, B, C) == ["Canceled", "Canceled", "Succeeded"]
    notes = [payload for _, _, payload in await outbox.waiting(session)]
    assert [note["task_id"] for note in notes] == [str(A), str(B)]


async def test_deleting_a_container_removes_everything_in_it(session: AsyncSession) -> None:
    await tell(session, chord(A, "Succeeded"), chord(B, "In Progress"))
    await statuses.artifacts.store(session, [make_artifact(task_id=A, file="a/b")])

    paths = await statuses.delete(session, TOP, caller=INES, now=later(9))
    await tell(session, chord(C, "In Progress", body=True))

    assert paths == ["a/b"]
    for uuid in (TOP, INNER, A, B, C):
        with pytest.raises(StatusUnknown):
            await statuses.get(session, uuid, caller=ROOT)
    notes = [payload for _, _, payload in await outbox.waiting(session)]
    assert [note["task_id"] for note in notes] == [str(B), str(C)]


async def test_deleting_a_member_that_runs_counts_as_canceling_it(session: AsyncSession) -> None:
    await tell(session, member(A, "Succeeded"), member(B, "In Progress"))

    await statuses.delete(session, B, caller=INES, now=later(9))

    assert (await get(session, TOP)).state is State.CANCELED
    assert await trees.children(session, [TOP]) == {TOP: {"Succeeded": 1}}


async def test_a_task_stays_where_it_was_first_told_to_be(session: AsyncSession) -> None:
    await tell(session, member(A, "Pending"), make_news(task_id=B))

    for wrong in (
        member(A, "Pending", box(id=INNER)),
        member(B, "Pending"),
        member(C, "Pending", box(id=B)),
        member(C, "Pending", box(id=INNER), box()),
        make_news(task_id=TOP, state="Failed"),
    ):
        with pytest.raises(PlacedElsewhere):
            await statuses.record_lifecycle(session, [wrong], now=NOON)


@pytest.mark.parametrize(
    "wrong",
    [
        [box(id=A)],
        [box(), box()],
        [box(kind="ring")],
        [box(members=-1)],
        [box(members=2**63)],
        [box(total_steps=2**63)],
        [box(name="a\x00")],
        [box(id=UUID(int=50 + n)) for n in range(11)],
    ],
)
def test_paths_that_cannot_be_stored_are_refused(wrong: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        member(A, "Pending", *wrong)


def story(turn: int) -> list[Lifecycle]:
    """Everything that is told of a chord whose parts end by chance."""
    chance = random.Random(turn)
    news = []
    for uuid in (A, B, C):
        end = chance.choice(["Succeeded", "Succeeded", "Failed", "Canceled"])
        error = {"message": f"{uuid}"} if end == "Failed" else None
        life = [("Pending", None), ("In Progress", None), (end, error)]
        for second, (state, why) in enumerate(life):
            at = later(uuid.int * 10 + second)
            news.append(chord(uuid, state, body=uuid == C, at=at, error=why))
    return news


@pytest.mark.parametrize("turn", range(12))
async def test_any_order_of_news_ends_alike(session: AsyncSession, turn: int) -> None:
    ordered, mixed = story(turn), story(turn)
    random.Random(turn).shuffle(mixed)
    ends = {piece.task_id: piece.state for piece in ordered}

    await tell(session, *mixed, *ordered)

    def result(*parts: str) -> str:
        return next(word for word in ("Failed", "Canceled", "Succeeded") if word in parts)

    inner = result(ends[A], ends[B])
    assert await states(session, INNER, TOP) == [inner, result(inner, ends[C])]
    failed = [uuid for uuid in (A, B, C) if ends[uuid] == "Failed"]
    assert sorted(one.text for one in await artifacts_of(session, TOP)) == list(map(str, failed))


async def test_containers_are_found_whatever_the_number_of_members(
    session: AsyncSession,
) -> None:
    counts = []
    for number, size in enumerate((2, 40)):
        top = box(id=UUID(int=1000 + number), members=size)
        ids = [UUID(int=2000 + 100 * number + place) for place in range(size)]
        news = [member(uuid, "Failed", top, error={"message": "No."}) for uuid in ids]
        counts.append(
            await _statements(session, statuses.record_lifecycle(session, news, now=NOON))
        )
        reports = [make_report(task_id=uuid, completed_steps=1, at=NOON) for uuid in ids]
        counts.append(
            await _statements(session, statuses.record_progress(session, reports, now=NOON))
        )

    assert counts[:2] == counts[2:]
    assert max(counts) < 20


async def _statements(session: AsyncSession, work: Any) -> int:
    connection = await session.connection()
    seen: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        seen.append(statement)

    event.listen(connection.sync_connection, "before_cursor_execute", note)
    # Most go past the session, straight to the driver.
    with (await driver(session)).query_logger(lambda record: seen.append(record.query)):
        await work
    event.remove(connection.sync_connection, "before_cursor_execute", note)
    return len(seen)


@pytest.fixture
def sessions(app: FastAPI) -> Sessions:
    found: Sessions = app.state.database.sessions
    return found


@pytest.mark.parametrize("turn", range(3))
async def test_members_that_end_at_once_end_their_container_once(
    sessions: Sessions, turn: int
) -> None:
    ids = [UUID(int=100 + number) for number in range(20)]
    top = box(members=20, total_steps=60)

    async def work(mine: list[UUID]) -> None:
        for uuid in mine:
            async with sessions.begin() as session:
                await statuses.record_progress(
                    session, [make_report(task_id=uuid, name="All")], now=later(30)
                )
            async with sessions.begin() as session:
                news = [member(uuid, "Succeeded", top, at=later(20))]
                await statuses.record_lifecycle(session, news, now=NOON)

    async with sessions.begin() as session:
        await statuses.record_lifecycle(
            session, [member(uuid, "In Progress", top) for uuid in ids[:15]], now=NOON
        )
    async with asyncio.timeout(60):
        await asyncio.gather(*(work(ids[place::4]) for place in range(4)))

    async with sessions() as session:
        query = select(Event.kind).where(Event.status_id == TOP, Event.kind == "task.finished")
        assert len((await session.exec(query)).all()) == 1
        assert (await get(session, TOP)).state is State.SUCCEEDED
        assert await steps(session) == (60, 60)


async def test_canceling_beside_members_that_end_leaves_nothing_live(sessions: Sessions) -> None:
    ids = [UUID(int=100 + number) for number in range(20)]
    top = box(members=20, total_steps=60)

    async def ends(mine: list[UUID]) -> None:
        for uuid in mine:
            async with sessions.begin() as session:
                await statuses.record_lifecycle(
                    session, [member(uuid, "In Progress", top)], now=NOON
                )
                await statuses.record_lifecycle(session, [member(uuid, "Succeeded", top)], now=NOON)

    async def cancels() -> None:
        await asyncio.sleep(0.01)
        async with sessions.begin() as session:
            await statuses.cancel(session, TOP, caller=INES, now=later(9))

    async with sessions.begin() as session:
        await statuses.record_lifecycle(session, [member(ids[0], "Pending", top)], now=NOON)
    async with asyncio.timeout(60):
        await asyncio.gather(cancels(), *(ends(ids[place::3]) for place in range(3)))

    async with sessions() as session:
        found = await states(session, TOP, *ids)
        notes = [payload["task_id"] for _, _, payload in await outbox.waiting(session)]
    assert set(found) <= {"Succeeded", "Canceled"}
    canceled = [
        str(uuid) for uuid, state in zip(ids, found[1:], strict=True) if state != "Succeeded"
    ]
    assert sorted(notes) == sorted(canceled)
    assert found[0] == ("Canceled" if canceled else "Succeeded")


async def test_v0_lists_containers_with_clamped_steps(session: AsyncSession) -> None:
    await tell(session, member(A, "Succeeded"))

    shown = status_json(await session.get_one(Status, TOP), [], Settings())

    assert (shown["completed_steps"], shown["total_steps"], shown["name"]) == (3, 6, "")
