"""A worker and the dispatcher together: real app, real stores, functions of the test's own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from fastapi import FastAPI

from services.dispatcher import client, runner
from services.dispatcher.immediate import ImmediateRunner
from services.dispatcher.runner import Again, TaskContext
from services.dispatcher.schemas import TaskRequest
from services.dispatcher.states import State
from shared.problems import NotFound
from tests.dispatcher.in_process import Worker


async def test_a_result_an_error_and_a_missing_function_are_recorded(worker: Worker) -> None:
    async def adds(task: TaskContext, *, a: int, b: int) -> int:
        return a + b

    async def refuses(task: TaskContext) -> None:
        raise NotFound("There is no such course.")

    async with worker.runs(adds=adds, refuses=refuses):
        added = await worker.ended(
            await worker.dispatch("adds", arguments={"a": 1, "b": 2}, exclusive=["x"])
        )
        refused = await worker.ended(await worker.dispatch("refuses"))
        missing = await worker.ended(await worker.dispatch("nowhere"))
        wrong = await worker.ended(await worker.dispatch("adds", arguments={"c": 1}))

    assert (added.state, added.result) == (State.COMPLETED, 3)
    assert refused.error == {"description": "There is no such course.", "code": "not-found"}
    assert missing.error is not None
    assert "no function called nowhere" in missing.error["description"]
    assert wrong.error is not None
    assert "TypeError" in wrong.error["description"]


async def test_a_run_whose_answer_was_lost_is_made_once(worker: Worker) -> None:
    made: list[UUID] = []

    async def counts(task: TaskContext) -> None:
        made.append(task.task_id)

    worker.way.lose = 1
    async with worker.runs(counts=counts):
        tasks = [await worker.dispatch("counts") for _ in range(3)]
        for task in tasks:
            assert (await worker.ended(task)).state is State.COMPLETED

    assert worker.way.lost == 1
    assert sorted(made) == sorted(tasks)


async def test_a_function_that_wants_to_be_repeated_is(worker: Worker) -> None:
    attempts: list[int] = []

    async def thrice(task: TaskContext) -> str:
        attempts.append(task.attempt)
        if task.attempt < 3:
            raise Again(seconds=0)
        return "at last"

    async with worker.runs(thrice=thrice):
        task = await worker.ended(await worker.dispatch("thrice"))

    assert (task.state, task.result, attempts) == (State.COMPLETED, "at last", [1, 2, 3])


async def test_a_canceled_run_cleans_up_and_ends_canceled(worker: Worker) -> None:
    cleaned: list[bool] = []
    begun = asyncio.Event()

    async def cleans(task: TaskContext) -> None:
        try:
            begun.set()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            cleaned.append(True)

    async with worker.runs(cleans=cleans):
        task = await worker.dispatch("cleans")
        await begun.wait()
        await worker.cancel(task)
        assert (await worker.ended(task)).state is State.CANCELED

    assert cleaned == [True]


async def test_a_cancel_that_is_told_again_does_not_disturb_the_cleaning_up(
    worker: Worker,
) -> None:
    begun, cleaning, clean = asyncio.Event(), asyncio.Event(), asyncio.Event()
    cleaned: list[bool] = []

    async def cleans(task: TaskContext) -> None:
        try:
            begun.set()
            await asyncio.sleep(60)
        finally:
            cleaning.set()
            await clean.wait()
            cleaned.append(True)

    async with worker.runs(cleans=cleans) as found:
        task = await worker.dispatch("cleans")
        await begun.wait()
        await worker.cancel(task)
        await cleaning.wait()
        for _ in range(3):
            found.cancel(task)
            await asyncio.sleep(0)
        clean.set()
        assert (await worker.ended(task)).state is State.CANCELED

    assert cleaned == [True]


async def test_a_function_that_swallows_every_cancel_never_goes_on(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CANCEL_AGAIN_SECONDS", 0.1)
    rounds, over = 0, False

    async def gooey(task: TaskContext) -> None:
        nonlocal rounds
        while not over:  # Python, too, must be able to put it away.
            with contextlib.suppress(BaseException):
                rounds += 1
                await asyncio.sleep(0.01)

    async with worker.runs(gooey=gooey):
        task = await worker.dispatch("gooey", exclusive=["x"])
        await worker.until(task, lambda found: found.state is State.RUNNING)
        await worker.cancel(task)
        assert (await worker.ended(task)).state is State.CANCELED
        before = rounds
        await asyncio.sleep(0.1)
        assert rounds == before
    over = True


async def test_cancels_inside_a_library_are_not_ours(worker: Worker) -> None:
    async def busy(task: TaskContext) -> int:
        for _ in range(10):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 60)
                group.cancel_scope.cancel()
        return 10

    async with worker.runs(busy=busy):
        task = await worker.ended(await worker.dispatch("busy"))

    assert (task.state, task.result) == (State.COMPLETED, 10)


async def test_what_a_run_dispatches_is_its_child_in_its_correlation(
    app: FastAPI, worker: Worker, http: httpx.AsyncClient
) -> None:
    async def parent(task: TaskContext) -> str:
        request = client.make_request("child", queue="dispatcher", kwargs={})
        await client.dispatch_now(task.clients, [request])
        return str(request.id)

    async def child(task: TaskContext) -> None: ...

    async with worker.runs(parent=parent, child=child):
        first = await worker.dispatch("parent", logging_cid="c0ffee")
        second = UUID((await worker.ended(first)).result)
        await worker.ended(second)

    from services.dispatcher.models import Task

    async with app.state.database.sessions() as session:
        row = await session.get(Task, second)
    assert (row.parent_id, row.logging_cid) == (first, "c0ffee")


# Immediate tasks: contract dispatcher §2.3, §2.4


@contextlib.asynccontextmanager
async def here(worker: Worker, **functions: Callable[..., Any]) -> AsyncIterator[ImmediateRunner]:
    found = ImmediateRunner(functions)
    async with found.beside()(_with_clients(worker)):
        yield found


def _with_clients(worker: Worker) -> FastAPI:
    app = FastAPI()
    app.state._state.update(worker.app.state._state)
    app.state.clients = worker.clients
    return app


def immediate(function: str, **values: Any) -> TaskRequest:
    return TaskRequest.model_validate(
        {"id": uuid4(), "function": function, "queue": "dispatcher", "immediate": True, **values}
    )


async def says(task: TaskContext) -> str:
    return "hello"


async def test_an_immediate_task_has_ended_when_the_call_returns(worker: Worker) -> None:
    async with here(worker, says=says) as process:
        task = await process.run_now(immediate("says", exclusive=["x"], deferred=False))

    assert (task.state, task.result, task.error) == (State.COMPLETED, "hello", None)


async def test_an_immediate_task_on_a_busy_resource_waits_or_is_canceled(worker: Worker) -> None:
    async with here(worker, says=says) as process:
        holder = await worker.dispatch("nobody runs this", exclusive=["x"])
        waits = await process.run_now(immediate("says", exclusive=["x"]))
        canceled = await process.run_now(immediate("says", exclusive=["x"], deferred=False))
        await worker.cancel(holder)
        async with worker.runs(says=says):
            later = await worker.ended(waits.id)

    assert waits.state is State.WAITING
    assert waits.waiting_for is not None
    assert waits.waiting_for.resources == ["x"]
    assert (canceled.state, canceled.error) == (
        State.CANCELED,
        {"reason": "Resources temporarily unavailable."},
    )
    assert (later.state, later.result) == (State.COMPLETED, "hello")


async def test_an_immediate_task_that_takes_too_long_fails(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "IMMEDIATE_SECONDS", 0.1)

    async def slow(task: TaskContext) -> None:
        await asyncio.sleep(10)

    async with here(worker, slow=slow) as process:
        task = await process.run_now(immediate("slow"))

    assert task.state is State.FAILED
    assert task.error is not None
    assert task.error["error_code"] == "PLP0024"
    assert "timed out after" in task.error["description"]


async def test_a_plain_function_cannot_be_run(worker: Worker) -> None:
    def plain(task: TaskContext) -> None: ...

    async with here(worker, plain=plain) as process:
        task = await process.run_now(immediate("plain"))

    assert task.state is State.FAILED
    assert task.error is not None
    assert task.error["error_code"] == "PLP0023"
    assert "must be async" in task.error["description"]


async def test_a_failure_of_an_immediate_task_is_in_its_row_only(worker: Worker) -> None:
    async def breaks(task: TaskContext) -> None:
        raise ValueError("broken")

    async with here(worker, breaks=breaks) as process:
        task = await process.run_now(immediate("breaks"))

    assert task.error == {"description": "ValueError: broken"}


async def test_a_web_process_takes_no_work(worker: Worker) -> None:
    async with here(worker, says=says):
        task = await worker.dispatch("says")
        await asyncio.sleep(0.3)
        found = await client.get_task(worker.clients, task)

    assert found.state is State.WAITING
    assert found.waiting_for is not None
    assert found.waiting_for.worker
