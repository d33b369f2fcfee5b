"""Who may see and change which user tasks. contract: user_tasks §5.5"""

from typing import Any

from sqlalchemy import or_
from sqlalchemy.orm import aliased
from sqlmodel import col, select

from services.user_tasks.models import Status, Watcher
from shared.callers import Caller
from shared.problems import Forbidden


def require_own(status: Status, caller: Caller) -> None:
    """Raises Forbidden for those who may only see it."""
    if not (caller.superuser or caller.service or status.user == caller.username):
        raise Forbidden


def visible_to(caller: Caller) -> list[Any]:
    """contract: user_tasks §5.5"""
    hidden = [col(Status.deleted_at).is_(None)]
    if caller.superuser or caller.service:
        return hidden
    return [*hidden, or_(col(Status.user) == caller.username, _watched(caller))]


def _watched(caller: Caller) -> Any:
    """What this person watches, with all that is inside: worked out once for a statement."""
    inside = (
        select(col(Watcher.status_id).label("uuid"))
        .where(col(Watcher.username) == caller.username)
        .cte(recursive=True)
    )
    member = aliased(Status)
    inside = inside.union(
        select(col(member.uuid)).join(inside, col(member.parent_id) == inside.c.uuid)
    )
    return col(Status.uuid).in_(select(inside.c.uuid))


def owned_by(caller: Caller) -> list[Any]:
    """The compatible lists: own tasks only, everyone's for superusers."""
    hidden = [col(Status.deleted_at).is_(None)]
    if caller.superuser or caller.service:
        return hidden
    return [*hidden, col(Status.user) == caller.username]
