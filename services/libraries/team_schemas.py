"""Bodies of the routes of teams, roles, people and groups."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from services.libraries import scopes
from services.libraries.directory import LONGEST_EMAIL, LONGEST_NAME
from services.libraries.models import RoleAssignment
from services.libraries.schemas import Plain
from services.libraries.states import AccessLevel, Permission, Role


def _level(value: Any) -> Any:
    if value not in list(AccessLevel):
        raise ValueError(f'"{value}" is not a valid choice.' if _short(value) else "Not valid.")
    return value


def _short(value: Any) -> bool:
    """Whether it can be said in an answer."""
    if isinstance(value, str):
        return len(value) <= 100 and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return isinstance(value, int) and abs(value) < 10**100


def _scope(value: str) -> str:
    if len(value) > LONGEST_NAME * 2 or not scopes.is_scope(value):
        raise ValueError("A scope is lib:ORG:SLUG, lib:ORG:*, lib:* or *.")
    return value


Level = Annotated[AccessLevel, BeforeValidator(_level)]
Scope = Annotated[Plain, AfterValidator(_scope)]
Name = Annotated[Plain, Field(min_length=1, max_length=LONGEST_NAME)]


class Access(BaseModel):
    """contract: libraries §3.3 #14, #16"""

    access_level: Level


class Invitation(Access):
    """contract: libraries §3.3 #12"""

    email: Annotated[Plain, Field(max_length=LONGEST_EMAIL)]


class PersonChanges(BaseModel):
    """What is left out stays as it is."""

    email: Annotated[Plain, Field(max_length=LONGEST_EMAIL)] | None = None
    active: bool | None = None
    creator: bool | None = None


class PersonView(BaseModel):
    username: str
    email: str
    active: bool
    creator: bool
    seen: datetime


class GroupView(BaseModel):
    name: str
    created: datetime
    members: int


class Assignment(BaseModel):
    """A role for a person or for a group, over a scope; `denied` takes it instead."""

    username: Name | None = None
    group: Name | None = None
    role: Role
    scope: Scope
    denied: bool = False

    @model_validator(mode="after")
    def fits(self) -> Self:
        if (self.username is None) == (self.group is None):
            raise ValueError("Give a username or a group.")
        wide = self.scope == scopes.EVERYTHING or scopes.org_of(self.scope)
        if self.role is Role.CREATOR and not wide:
            raise ValueError("A library_creator is one over * or over lib:ORG:*.")
        return self


class AssignmentView(BaseModel):
    id: int
    username: str | None
    group: str | None
    role: str
    scope: str
    denied: bool
    created: datetime
    created_by: str | None

    @classmethod
    def of(cls, row: RoleAssignment) -> Self:
        return cls(group=row.group_name, **row.model_dump(exclude={"group_name"}))


class Reason(BaseModel):
    """What speaks for a permission or, when denied, against it."""

    by: str
    scope: str
    group: str | None
    denied: bool


class PermissionView(BaseModel):
    permission: Permission
    allowed: bool
    because: list[Reason]


class PermissionsView(BaseModel):
    """What somebody may do with a library, and why."""

    library: str
    username: str
    active: bool
    permissions: list[PermissionView]
