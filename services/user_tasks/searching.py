"""Finding user tasks. contract: user_tasks §6"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlmodel import col, select

from services.user_tasks.models import Artifact, Searchable, Status
from services.user_tasks.states import State

MOST_WORDS = 10


@dataclass(frozen=True)
class Filters:
    """What is asked for; everything given must hold."""

    q: str | None = None
    states: tuple[State, ...] = ()
    name: str | None = None
    user: str | None = None
    task_type: str | None = None
    task_class: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    parent: UUID | None = None
    root_only: bool = False
    uuids: tuple[UUID, ...] = ()

    def conditions(self) -> list[Any]:
        found: list[Any] = []
        if words := _words(self.q, col(Searchable.words)):
            named = select(Searchable.status_id).where(*words)
            found.append(col(Status.uuid).in_(named))
        if self.uuids:
            found.append(col(Status.uuid).in_(self.uuids))
        if self.states:
            found.append(col(Status.state).in_(self.states))
        if self.name is not None:
            found.append(col(Status.name).icontains(clean(self.name), autoescape=True))
        if self.created_after is not None:
            found.append(col(Status.created) > self.created_after)
        if self.created_before is not None:
            found.append(col(Status.created) < self.created_before)
        if self.root_only:
            found.append(col(Status.parent_id).is_(None))
        for column, value in (
            (Status.user, self.user), (Status.task_type, self.task_type),
            (Status.task_class, self.task_class),
        ):  # fmt: skip
            if value is not None:
                found.append(col(column) == clean(value))
        if self.parent is not None:
            found.append(col(Status.parent_id) == self.parent)
        return found


def artifact_conditions(q: str | None, name: str | None) -> list[Any]:
    """Artifacts by words in uuid, name and text, and by their name."""
    found = _words(q, col(Artifact.words))
    if name is not None:
        found.append(col(Artifact.name) == clean(name))
    return found


def _words(q: str | None, column: Any) -> list[Any]:
    """Every word stands in it, in capitals or not."""
    words = re.findall(r"\S+", clean(q or ""))[:MOST_WORDS]
    return [column.icontains(word, autoescape=True) for word in words]


def clean(value: str) -> str:
    return value.replace("\x00", "")
