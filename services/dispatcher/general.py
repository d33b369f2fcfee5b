"""The general tasks: creating, changing and deleting whatever a service registers.

contract: dispatcher §6.1 to §6.5

A service describes each kind of thing once, as a `Resource`: its schema, who may do what with
it, and how. The tasks do the rest: they validate again, ask for the permission again, do all of
one task in one transaction, and tell what was made and what is gone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client
from services.dispatcher.runner import TaskContext, TaskFunction
from shared.callers import Caller
from shared.files import Files
from shared.problems import BadInput, Conflict, NotFound
from shared.settings import ServiceSettings

Thing = TypeVar("Thing")
FOREIGN_KEY_VIOLATION = "23503"


class Action(StrEnum):
    """What a general task does with a thing."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class ResourceUnknown(NotFound):
    """Nothing of this name is registered, or it cannot be treated so."""

    type, title = "resource-unknown", "There is no such kind of resource."
    code = "PLP0002"


class InstanceUnknown(NotFound):
    type = "instance-unknown"


class InstanceProtected(Conflict):
    type, title = "instance-protected", "Something refers to this, so it cannot be deleted"
    code = "PLP0029"


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks something of a resource, in which transaction: a request or a running task."""

    session: AsyncSession
    caller: Caller
    settings: ServiceSettings
    files: Files
    fence: int = 0


@dataclass(frozen=True, slots=True)
class GivenFile:
    """A temporary file in the object store, while the task that owns it runs."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Claims:
    """What a general task needs, alone or together with others."""

    exclusive: Sequence[str] = ()
    shared: Sequence[str] = ()


class TempFiles(Protocol):
    """Where a service keeps files that tasks will own."""

    def owned(self, task: TaskContext, ident: str) -> AbstractAsyncContextManager[GivenFile]:
        """The file; it is removed when this is left. Raises NotFound."""
        ...


class Resource(Generic[Thing]):
    """One kind of thing that general tasks act on.

    `schema` has every field of a creation, `changes` those that may change; a kind without
    `changes` stays as it was made.
    """

    name: str
    label: str
    schema: type[BaseModel]
    changes: type[BaseModel] | None = None
    actions: frozenset[Action] = frozenset(Action)
    from_file = False

    def ident(self, thing: Thing) -> str:
        """How callers name this thing."""
        raise NotImplementedError

    def href(self, ident: str) -> str:
        raise NotImplementedError

    def prn(self, ident: str) -> str:
        return f"prn:{self.label.lower()}:{ident}"

    async def find_many(self, session: AsyncSession, idents: Sequence[str]) -> dict[str, Thing]:
        """The things of these names, whoever asks, with a fixed number of statements."""
        raise NotImplementedError

    async def find(self, session: AsyncSession, ident: str) -> Thing | None:
        """The thing of this name, whoever asks."""
        return (await self.find_many(session, [ident])).get(ident)

    async def permit(self, call: Call, action: Action | None, subjects: Sequence[Any]) -> None:
        """Raises Forbidden, with a fixed number of statements.

        Subjects are things, or for CREATE the values of one; without an action: to see them.
        """
        raise NotImplementedError

    async def claims(self, call: Call, action: Action, subjects: Sequence[Any]) -> Claims:
        """What this needs, with a fixed number of statements. contract: dispatcher §6.11"""
        raise NotImplementedError

    async def hold(self, call: Call, action: Action, subject: Any) -> None:
        """Before anything is changed: refuse work whose lock was given to others meanwhile."""

    async def create(self, call: Call, values: Any, file: GivenFile | None) -> Thing:
        """`file` is there for kinds that are made `from_file`."""
        raise NotImplementedError

    async def values(self, session: AsyncSession, thing: Thing) -> dict[str, Any]:
        """The fields of `changes` as they are now."""
        raise NotImplementedError

    async def update(self, call: Call, thing: Thing, values: Any) -> Thing:
        """`values` are all of `changes`."""
        raise NotImplementedError

    async def delete(self, call: Call, thing: Thing) -> dict[str, int]:
        """Remove it: how many rows, by label. Raises InstanceProtected."""
        raise NotImplementedError

    async def after_delete(self, files: Files, thing: Thing) -> None:
        """When the deletion is committed: remove what is outside the database."""

    async def show(self, session: AsyncSession, thing: Thing) -> dict[str, Any]:
        """What the API tells of it, and tasks that made or changed it have as their result."""
        raise NotImplementedError


Registry = Mapping[str, Resource[Any]]


def registry(*resources: Resource[Any]) -> Registry:
    return {resource.name: resource for resource in resources}


def resource_of(resources: Registry, name: str, action: Action | None = None) -> Resource[Any]:
    """Raises ResourceUnknown, also for what is not done with this kind."""
    resource = resources.get(name)
    if resource is None:
        raise ResourceUnknown(f"Nothing is registered as {name[:100]!r}.")
    unchanging = action is Action.UPDATE and resource.changes is None
    if action is not None and (action not in resource.actions or unchanging):
        raise ResourceUnknown(f"{resource.name} do not offer {action}.")
    return resource


def validated(schema: type[BaseModel], data: Mapping[str, Any]) -> BaseModel:
    """Raises BadInput, naming the fields."""
    try:
        return schema.model_validate(dict(data))
    except ValidationError as error:
        fields: dict[str, list[str]] = {}
        for one in error.errors(include_url=False):
            name = ".".join(str(part) for part in one["loc"]) or "non_field_errors"
            fields.setdefault(name, []).append(one["msg"].removeprefix("Value error, "))
        first, messages = next(iter(fields.items()))
        raise BadInput(f"{first}: {messages[0]}", fields=fields) from error


async def wanted(
    session: AsyncSession,
    resource: Resource[Thing],
    thing: Thing,
    data: Mapping[str, Any],
    *,
    partial: bool,
) -> tuple[BaseModel, bool]:
    """The fields of `changes` as they shall be, and whether any is different.

    What is not given stays only if `partial`. Raises BadInput. contract: dispatcher §6.3
    """
    assert resource.changes is not None
    now = await resource.values(session, thing)
    values = validated(resource.changes, now | dict(data) if partial else data)
    return values, values.model_dump() != now


async def found(session: AsyncSession, resource: Resource[Thing], ident: str) -> Thing:
    """Raises InstanceUnknown."""
    thing = await resource.find(session, ident)
    if thing is None:
        raise InstanceUnknown(f"There is no {ident[:100]} among the {resource.name}.")
    return thing


async def deletion(call: Call, resources: Registry, instances: Sequence[tuple[str, str]]) -> Claims:
    """The claims of deleting these, as (id, kind) of which some may be gone already.

    Raises ResourceUnknown, and Forbidden when the caller may not delete one of them.
    """
    idents: dict[str, list[str]] = {}
    for ident, name in instances:
        idents.setdefault(name, []).append(ident)
    exclusive: dict[str, None] = {}
    shared: dict[str, None] = {}
    for name, mine in idents.items():
        kind = resource_of(resources, name, Action.DELETE)
        things = list((await kind.find_many(call.session, mine)).values())
        await kind.permit(call, Action.DELETE, things)
        claims = await kind.claims(call, Action.DELETE, things)
        exclusive |= dict.fromkeys(claims.exclusive)
        shared |= dict.fromkeys(claims.shared)
    return Claims([*exclusive], [*shared])


def rights_of(caller: Caller) -> dict[str, Any]:
    """What only a token says of its person, as arguments of the task that they ask for."""
    return {"administrator": caller.administrator, "groups": list(caller.groups)}


def call_of(
    task: TaskContext, session: AsyncSession, administrator: bool, groups: Sequence[str] = ()
) -> Call:
    """On whose behalf a task runs; what no person asked for, the system itself did."""
    staff = administrator or task.user is None
    caller = Caller(task.user or "", staff=staff, groups=tuple(groups))
    return Call(session, caller, task.settings, task.files, task.fence)


class GeneralTasks:
    """The dispatched functions for one service's resources.

    Their arguments are what the service that dispatched them checked already; `administrator`
    and `groups` are what the person's token said then (`rights_of`). Everything else is checked
    again when they run.
    """

    def __init__(self, resources: Registry, temp_files: TempFiles) -> None:
        self._resources, self._temp_files = resources, temp_files

    def functions(self) -> dict[str, TaskFunction]:
        """For a worker's runner."""
        return {
            "general_create": self.general_create,
            "general_create_from_temp_file": self.general_create_from_temp_file,
            "general_update": self.general_update,
            "general_delete": self.general_delete,
            "general_multi_delete": self.general_multi_delete,
        }

    async def general_create(
        self,
        task: TaskContext,
        *,
        resource: str,
        data: dict[str, Any],
        administrator: bool = False,
        groups: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Make one thing; it is the result, and a created resource of the task."""
        kind = resource_of(self._resources, resource, Action.CREATE)
        return await self._create(task, kind, data, administrator, groups, None)

    async def general_create_from_temp_file(
        self,
        task: TaskContext,
        *,
        resource: str,
        temp_file: str,
        data: dict[str, Any],
        administrator: bool = False,
        groups: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The same with a file, which this task owns: whatever comes of it, the file goes."""
        kind = resource_of(self._resources, resource, Action.CREATE)
        async with self._temp_files.owned(task, temp_file) as file:
            return await self._create(task, kind, data, administrator, groups, file)

    async def _create(
        self,
        task: TaskContext,
        kind: Resource[Any],
        data: dict[str, Any],
        administrator: bool,
        groups: Sequence[str],
        file: GivenFile | None,
    ) -> dict[str, Any]:
        async with task.sessions.begin() as session:
            call = call_of(task, session, administrator, groups)
            values = validated(kind.schema, data)
            await kind.permit(call, Action.CREATE, [values])
            await kind.hold(call, Action.CREATE, values)
            thing = await kind.create(call, values, file)
            ident = kind.ident(thing)
            await task.created(session, kind.prn(ident), kind.href(ident))
            return await kind.show(session, thing)

    async def general_update(
        self,
        task: TaskContext,
        *,
        resource: str,
        instance_id: str,
        data: dict[str, Any],
        partial: bool = False,
        administrator: bool = False,
        groups: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Change one thing; as it is now is the result. Raises InstanceUnknown."""
        kind = resource_of(self._resources, resource, Action.UPDATE)
        async with task.sessions.begin() as session:
            call = call_of(task, session, administrator, groups)
            await _held(call, kind, Action.UPDATE, await found(session, kind, instance_id))
            thing = await found(session, kind, instance_id)
            values, different = await wanted(session, kind, thing, data, partial=partial)
            if different:
                thing = await kind.update(call, thing, values)
            return await kind.show(session, thing)

    async def general_delete(
        self,
        task: TaskContext,
        *,
        resource: str,
        instance_id: str,
        administrator: bool = False,
        groups: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Remove one thing: counts by label. What is gone already is told as skipped."""
        return await self.general_multi_delete(
            task,
            instances=[[instance_id, resource]],
            administrator=administrator,
            groups=groups,
        )

    async def general_multi_delete(
        self,
        task: TaskContext,
        *,
        instances: Sequence[Sequence[str]],
        administrator: bool = False,
        groups: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Remove things in this order, all or none: counts by label, and what was not there."""
        counts: Counter[str] = Counter()
        skipped: list[str] = []
        gone: list[tuple[Resource[Any], Any]] = []
        async with task.sessions.begin() as session:
            call = call_of(task, session, administrator, groups)
            for ident, name in instances:
                kind = resource_of(self._resources, name, Action.DELETE)
                thing = await kind.find(session, ident)
                if thing is not None:
                    await _held(call, kind, Action.DELETE, thing)
                    thing = await kind.find(session, ident)
                if thing is None:
                    skipped.append(f"{kind.label}:{ident}")
                    continue
                counts.update(await _deleted(kind, call, thing, ident))
                gone.append((kind, thing))
        for kind, thing in gone:
            await kind.after_delete(task.files, thing)
        result: dict[str, Any] = dict(counts)
        return result | {"skipped": skipped} if skipped else result


async def _held(call: Call, kind: Resource[Any], action: Action, thing: Any) -> None:
    """Allowed and locked; what others did until then is seen by whoever reads it again."""
    await kind.permit(call, action, [thing])
    await kind.hold(call, action, thing)
    call.session.expire_all()


async def _deleted(kind: Resource[Any], call: Call, thing: Any, ident: str) -> dict[str, int]:
    try:
        async with call.session.begin_nested():
            counts = await kind.delete(call, thing)
    except IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) != FOREIGN_KEY_VIOLATION:
            raise
        raise InstanceProtected(f"Something refers to {kind.label} {ident}.") from error
    await client.gone(call.session, kind.prn(ident))
    return counts
