"""Tasks that a person sees as one: chains, groups and chords. contract: user_tasks §4.2

A chain runs its links one after another; when one does not complete, the rest is canceled. The
members of a group run beside each other. A chord is a group, its header, and a body that runs
when all of it has completed. Each is shown as a container that holds its tasks. Everything
follows from claims: links share an exclusive resource of their own, and a body waits exclusively
for what its header shares. So a group may hold chains and chords, and a chain may hold chains,
which run as one; a header holds plain tasks.
"""

from collections.abc import Sequence
from uuid import UUID

from services.dispatcher.schemas import TaskRequest
from services.user_tasks.schemas import ContainerKind, ContainerSpec
from shared import ids


def chain(
    links: Sequence[TaskRequest], *, name: str = "", container_id: UUID | None = None
) -> list[TaskRequest]:
    """These tasks, to be run one after another. Dispatch them together, in this order."""
    if any(_kind(link) not in (None, "chain") for link in links):
        raise ValueError("A chain holds plain tasks and chains.")
    held = container_id or ids.new_id()
    inside = _container(held, "chain", name, links)
    return [
        _member(link, inside, chain_id=held, exclusive=[f"chain:{held}"], dependent=place > 0)
        for place, link in enumerate(links)
    ]


def group(
    members: Sequence[TaskRequest], *, name: str = "", container_id: UUID | None = None
) -> list[TaskRequest]:
    """These tasks, to be run beside each other."""
    inside = _container(container_id or ids.new_id(), "group", name, members)
    return [_member(member, inside) for member in members]


def chord(
    header: Sequence[TaskRequest],
    body: TaskRequest,
    *,
    name: str = "",
    container_id: UUID | None = None,
) -> list[TaskRequest]:
    """The tasks of the header beside each other, and the body when all of them completed."""
    if any(task.chain_id is not None or _kind(task) for task in [*header, body]):
        raise ValueError("A chord holds plain tasks.")
    held = container_id or ids.new_id()
    resource = f"chord:{held}"
    grouped = group(header, name=name)
    inside = _container(held, "chord", name, [*grouped, body])
    members = [_member(member, inside, chain_id=held, shared=[resource]) for member in grouped]
    last = _member(body, inside, chain_id=held, exclusive=[resource], dependent=True)
    return [*members, last]


def _kind(task: TaskRequest) -> str | None:
    """Of the grouping a task is directly in."""
    containers = task.user_task.containers if task.user_task is not None else []
    return containers[0].kind if containers else None


def _container(
    container_id: UUID, kind: ContainerKind, name: str, tasks: Sequence[TaskRequest]
) -> ContainerSpec:
    """Tasks that no person sees count neither as members nor as steps."""
    seen = {task.id: task.user_task for task in tasks if task.user_task is not None}
    children = {spec.containers[0].id if spec.containers else key for key, spec in seen.items()}
    return ContainerSpec(
        id=container_id,
        kind=kind,
        name=name,
        members=len(children),
        total_steps=sum(spec.total_steps for spec in seen.values()),
    )


def _member(
    task: TaskRequest,
    inside: ContainerSpec,
    *,
    chain_id: UUID | None = None,
    exclusive: Sequence[str] = (),
    shared: Sequence[str] = (),
    dependent: bool = False,
) -> TaskRequest:
    changes: dict[str, object] = {
        "exclusive": [*task.exclusive, *exclusive],
        "shared": [*task.shared, *shared],
        "chain_id": chain_id or task.chain_id,
        "dependent": dependent or task.dependent,
    }
    if task.user_task is not None:
        containers = [inside, *task.user_task.containers]
        changes["user_task"] = task.user_task.model_copy(update={"containers": containers})
    return task.model_copy(update=changes)
