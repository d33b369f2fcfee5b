"""Finding user tasks. contract: user_tasks §6"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import String, cast, or_
from sqlmodel import col

from services.user_tasks.models import Artifact, Status
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

    def conditions(self) -> list[Any]:
        found = _words(
            self.q,
            [
                cast(col(Status.uuid), String), col(Status.task_id), col(Status.task_class),
                col(Status.name), col(Status.user),
            ],
        )  # fmt: skip
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
    columns = [cast(col(Artifact.uuid), String), col(Artifact.name), col(Artifact.text)]
    found = _words(q, columns)
    if name is not None:
        found.append(col(Artifact.name) == clean(name))
    return found


def _words(q: str | None, columns: list[Any]) -> list[Any]:
    """Every word stands in some column, in capitals or not."""
    words = re.findall(r"\S+", clean(q or ""))[:MOST_WORDS]
    return [or_(*(column.icontains(word, autoescape=True) for column in columns)) for word in words]


def clean(value: str) -> str:
    return value.replace("\x00", "")
