"""Stopping many tasks at once. contract: dispatcher §4.8, §9 P-21"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Uuid, any_, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import roles, runs
from services.dispatcher.models import Task
from services.dispatcher.schemas import MOST_CANCELED, CancelAnswer, CancelOutcome, CancelRequest
from services.dispatcher.states import FINAL, State
from services.dispatcher.views import href
from services.dispatcher.waking import push_after_commit
from shared.callers import Caller

STOPPED: dict[State, Literal["canceled", "canceling"]] = {
    State.CANCELED: "canceled",
    State.CANCELING: "canceling",
}


async def cancel_many(
    session: AsyncSession, wanted: CancelRequest, *, caller: Caller, now: datetime
) -> CancelAnswer:
    """Stop what was named or described, as far as this caller may, and say what became of each.

    A task that may not be stopped does not hold up the others. The cost in statements does not
    grow with the number of tasks.
    """
    may_change = await roles.permitted(session, caller, roles.CHANGE)
    if wanted.tasks is None:
        found = await _described(session, wanted, may_change)
        chosen, more = found[:MOST_CANCELED], len(found) > MOST_CANCELED
        before = dict.fromkeys(chosen, True)
    else:
        chosen, more = list(dict.fromkeys(wanted.tasks)), False
        may_see = await roles.permitted(session, caller, roles.VIEW)
        before = await _named(session, chosen, may_see, may_change)
    allowed = [ident for ident, may in before.items() if may]
    push_after_commit(session, await runs.cancel(session, allowed, now=now))
    after = await _states(session, list(before))
    outcomes = [_outcome(ident, before.get(ident, False), after.get(ident)) for ident in chosen]
    return CancelAnswer(tasks=outcomes, more=more)


def _outcome(ident: UUID, allowed: bool, state: State | None) -> CancelOutcome:
    task = href(ident)
    assert task is not None
    if state is None:
        return CancelOutcome(task=task, state=None, outcome="unknown")
    if not allowed:
        return CancelOutcome(task=task, state=state, outcome="forbidden")
    return CancelOutcome(task=task, state=state, outcome=STOPPED.get(state, "ended"))


async def _described(session: AsyncSession, wanted: CancelRequest, may_change: Any) -> list[UUID]:
    states = [State(wanted.state)] if wanted.state else [s for s in State if s not in FINAL]
    conditions = [may_change, col(Task.state).in_(states)]
    if wanted.name is not None:
        conditions.append(col(Task.name) == wanted.name)
    if wanted.group is not None:
        conditions.append(col(Task.group_id) == wanted.group)
    query = select(col(Task.id)).where(*conditions).order_by(col(Task.seq))
    connection = await session.connection()
    return list((await connection.execute(query.limit(MOST_CANCELED + 1))).scalars())


async def _named(
    session: AsyncSession, ids: Sequence[UUID], may_see: Any, may_change: Any
) -> dict[UUID, bool]:
    """Of these tasks those that are visible, and whether they may be stopped."""
    connection = await session.connection()
    rows = await connection.execute(select(col(Task.id), may_change).where(_among(ids), may_see))
    return {row[0]: bool(row[1]) for row in rows}


async def _states(session: AsyncSession, ids: Sequence[UUID]) -> dict[UUID, State]:
    connection = await session.connection()
    rows = await connection.execute(select(col(Task.id), col(Task.state)).where(_among(ids)))
    return {row[0]: State(row[1]) for row in rows}


def _among(ids: Sequence[UUID]) -> ColumnElement[bool]:
    """One parameter, however many ids."""
    return col(Task.id) == any_(literal(list(ids), ARRAY(Uuid)))
