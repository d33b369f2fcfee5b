"""The claim logic against a model of a few lines: the rule of the contract, applied literally."""

from dataclasses import dataclass, field
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import runs
from services.dispatcher.schemas import FinishReport
from tests.dispatcher.conftest import NOON, make_request, ready, start

RESOURCES = "abc"


@dataclass
class Model:
    """Unfinished tasks in order: which resources, alone or together."""

    tasks: dict[UUID, dict[str, bool]] = field(default_factory=dict)
    running: dict[UUID, int] = field(default_factory=dict)

    def ready(self) -> set[UUID]:
        """contract: dispatcher §3.1, the walk over all unfinished tasks, oldest first"""
        taken_alone: set[str] = set()
        taken_together: set[str] = set()
        found = set()
        for task, claims in self.tasks.items():
            alone = {name for name, exclusive in claims.items() if exclusive}
            together = set(claims) - alone
            free = not alone & (taken_alone | taken_together) and not together & taken_alone
            if free and task not in self.running:
                found.add(task)
            taken_alone |= alone
            taken_together |= together
        return found


claims = st.dictionaries(st.sampled_from(RESOURCES), st.booleans(), max_size=3)
steps = st.one_of(
    st.tuples(st.just("accept"), st.lists(claims, min_size=1, max_size=4)),
    st.tuples(st.just("start"), st.integers(0, 20)),
    st.tuples(st.just("finish"), st.lists(st.integers(0, 20), min_size=1, max_size=3)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
)


@given(history=st.lists(steps, max_size=25))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_exactly_the_tasks_of_the_rule_are_ready(
    session: AsyncSession, history: list
) -> None:
    nested = await session.begin_nested()
    model = Model()
    for kind, argument in history:
        await STEPS[kind](session, model, argument)
        expected = model.ready()
        for task in model.tasks:
            assert await ready(session, task) is (task in expected)
    await nested.rollback()


async def _accept(session: AsyncSession, model: Model, batch: list[dict[str, bool]]) -> None:
    requests = []
    for wanted in batch:
        task = uuid4()
        alone = [name for name, exclusive in wanted.items() if exclusive]
        together = [name for name, exclusive in wanted.items() if not exclusive]
        requests.append(make_request(id=task, exclusive=alone, shared=together))
        model.tasks[task] = wanted
    await runs.accept(session, requests, now=NOON)


async def _start(session: AsyncSession, model: Model, index: int) -> None:
    tasks = list(model.tasks)
    if not tasks:
        return
    task = tasks[index % len(tasks)]
    may = task in model.ready()
    fence = await start(session, task)
    if task not in model.running:
        assert (fence is not None) is may
        if fence is not None:
            assert fence > max(model.running.values(), default=0)
            model.running[task] = fence


async def _finish(session: AsyncSession, model: Model, indexes: list[int]) -> None:
    chosen = {list(model.running)[i % len(model.running)] for i in indexes if model.running}
    reports = [
        FinishReport(task_id=task, fence=model.running[task], state="completed") for task in chosen
    ]
    if reports:
        answers = await runs.finish(session, reports, now=NOON)
        assert all(answer.accepted for answer in answers)
    for task in chosen:
        del model.tasks[task], model.running[task]


async def _cancel(session: AsyncSession, model: Model, index: int) -> None:
    waiting = [task for task in model.tasks if task not in model.running]
    if waiting:
        task = waiting[index % len(waiting)]
        await runs.cancel(session, [task], now=NOON)
        del model.tasks[task]


STEPS = {"accept": _accept, "start": _start, "finish": _finish, "cancel": _cancel}
