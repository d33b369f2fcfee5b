"""Routes of general tasks on registered resources, and of temporary files.

contract: dispatcher §6.1 to §6.5
"""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from services.dispatcher import client as dispatcher
from services.dispatcher import general
from services.dispatcher.general import Action, Call, Claims, Resource, rights_of
from services.dispatcher.schemas import TaskRequest, UserTaskSpec
from services.libraries import contents, temp_files
from services.libraries.api import settings_of
from services.libraries.api_tasks import REQUIRED
from services.libraries.registry import RESOURCES
from services.libraries.resources import moment
from services.libraries.schemas import Plain
from shared import outbox
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.problems import BadInput
from shared.uploads import chunks

router = APIRouter(prefix="/api/libraries/v2", tags=["general tasks"])
MOST_AT_ONCE = 100
UNCHANGED: dict[int | str, dict[str, Any]] = {
    200: {"description": "Nothing would change: the thing as it is, and no task."}
}
Data = Annotated[dict[str, Any], Body()]


class TaskAddress(BaseModel):
    """The task that does it."""

    task: str


class FromTempFile(BaseModel):
    """A temporary file of yours, and the fields beside it."""

    temp_file: UUID
    data: dict[str, Any] = {}


class Instance(BaseModel):
    """One thing, by its kind and its id."""

    resource: Annotated[Plain, Field(max_length=100)]
    id: Annotated[Plain, Field(max_length=600)]


class Instances(BaseModel):
    """Things to delete, in this order."""

    instances: Annotated[list[Instance], Field(min_length=1, max_length=MOST_AT_ONCE)]


def task_address(task_id: UUID) -> TaskAddress:
    return TaskAddress(task=f"/pulp/api/v3/tasks/{task_id}/")


def call(request: Request, session: SessionDep, caller: Caller) -> Call:
    return Call(session, caller, settings_of(request), request.app.state.files)


def make_request(
    function: str, resource_name: str, action: Action, claims: Claims, caller: Caller, **kwargs: Any
) -> TaskRequest:
    """A general task for this person."""
    return dispatcher.make_request(
        function,
        queue="libraries",
        kwargs={**kwargs, **rights_of(caller)},
        exclusive=claims.exclusive,
        shared=claims.shared,
        caller=caller,
        user_task=UserTaskSpec(
            name=f"{action.capitalize()} {resource_name}", task_type=f"general-{action}"
        ),
        repeatable=action is not Action.CREATE,
    )


async def dispatched(session: SessionDep, task: TaskRequest) -> TaskAddress:
    await outbox.send(session, dispatcher.SERVICE, "on_dispatch", task)
    return task_address(task.id)


@router.get("/resources/")
async def list_resources(caller: CallerDep) -> list[dict[str, Any]]:
    """What general tasks can create, change and delete, with the schemas of their data."""
    return [
        {
            "name": kind.name,
            "label": kind.label,
            "actions": sorted(kind.actions - ({Action.UPDATE} if kind.changes is None else set())),
            "from_temp_file": kind.from_file,
            "schema": kind.schema.model_json_schema(),
            "change_schema": kind.changes.model_json_schema() if kind.changes else None,
        }
        for kind in RESOURCES.values()
    ]


@router.post("/resources/delete/", status_code=202)
async def delete_several(
    request: Request, wanted: Instances, caller: CallerDep, session: SessionDep
) -> TaskAddress:
    """Delete things in this order, all or none. What is not there any more is skipped."""
    instances = [(one.id, one.resource) for one in wanted.instances]
    claims = await general.deletion(call(request, session, caller), RESOURCES, instances)
    task = make_request(
        "general_multi_delete", "several", Action.DELETE, claims, caller,
        instances=[list(one) for one in instances],
    )  # fmt: skip
    return await dispatched(session, task)


@router.get("/resources/content/{content_id}/")
async def get_content(content_id: UUID, caller: CallerDep, session: SessionDep) -> dict[str, Any]:
    """One unit of content: a version of a component or a container."""
    return await contents.show(session, content_id, caller=caller)


@router.post("/resources/{name}/", status_code=202)
async def create_resource(
    request: Request, name: str, data: Data, caller: CallerDep, session: SessionDep
) -> TaskAddress:
    """Create one thing. Its description is the task's `result`."""
    kind, values, claims = await _checked(request, name, data, caller, session)
    task = make_request(
        "general_create", name, Action.CREATE, claims, caller, resource=kind.name, data=values
    )
    return await dispatched(session, task)


@router.post("/resources/{name}/from_temp_file/", status_code=202)
async def create_from_temp_file(
    request: Request, name: str, wanted: FromTempFile, caller: CallerDep, session: SessionDep
) -> TaskAddress:
    """Create one thing from a temporary file of yours, which the task then owns and removes."""
    kind, values, claims = await _checked(request, name, wanted.data, caller, session)
    if not kind.from_file:
        raise general.ResourceUnknown(f"{name} are not made from files.")
    task = make_request(
        "general_create_from_temp_file", name, Action.CREATE, claims, caller,
        resource=kind.name, data=values, temp_file=str(wanted.temp_file),
    )  # fmt: skip
    await temp_files.give(session, wanted.temp_file, task.id, user=caller.username)
    return await dispatched(session, task)


async def _checked(
    request: Request, name: str, data: dict[str, Any], caller: Caller, session: SessionDep
) -> tuple[Resource[Any], dict[str, Any], Claims]:
    """Kind, values as JSON, and claims of a creation that this caller may ask for."""
    kind = general.resource_of(RESOURCES, name, Action.CREATE)
    asking = call(request, session, caller)
    values = general.validated(kind.schema, data)
    await kind.permit(asking, Action.CREATE, [values])
    claims = await kind.claims(asking, Action.CREATE, [values])
    return kind, values.model_dump(mode="json"), claims


@router.get("/resources/{name}/{ident}/")
async def get_resource(
    request: Request, name: str, ident: str, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """One registered thing."""
    kind = general.resource_of(RESOURCES, name)
    thing = await general.found(session, kind, ident)
    await kind.permit(call(request, session, caller), None, [thing])
    return await kind.show(session, thing)


@router.put(
    "/resources/{name}/{ident}/",
    response_model=TaskAddress,
    status_code=202,
    responses=UNCHANGED,
)
async def replace_resource(
    request: Request, name: str, ident: str, data: Data, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """Change one thing; fields that are not given get their defaults.

    200 with the thing, and no task, when nothing would change.
    """
    return await _update(request, name, ident, data, caller, session, partial=False)


@router.patch(
    "/resources/{name}/{ident}/",
    response_model=TaskAddress,
    status_code=202,
    responses=UNCHANGED,
)
async def update_resource(
    request: Request, name: str, ident: str, data: Data, caller: CallerDep, session: SessionDep
) -> JSONResponse:
    """Change some fields of one thing. 200, and no task, when nothing would change."""
    return await _update(request, name, ident, data, caller, session, partial=True)


async def _update(
    request: Request, name: str, ident: str, data: dict[str, Any], caller: Caller,
    session: SessionDep, *, partial: bool,
) -> JSONResponse:  # fmt: skip
    kind = general.resource_of(RESOURCES, name, Action.UPDATE)
    thing = await general.found(session, kind, ident)
    asking = call(request, session, caller)
    await kind.permit(asking, Action.UPDATE, [thing])
    values, different = await general.wanted(session, kind, thing, data, partial=partial)
    if not different:
        return JSONResponse(await kind.show(session, thing))
    claims = await kind.claims(asking, Action.UPDATE, [thing])
    given = {
        name: value
        for name, value in values.model_dump(mode="json").items()
        if not partial or name in data
    }
    task = make_request(
        "general_update", name, Action.UPDATE, claims, caller,
        resource=kind.name, instance_id=ident, data=given, partial=partial,
    )  # fmt: skip
    return JSONResponse((await dispatched(session, task)).model_dump(), 202)


@router.delete("/resources/{name}/{ident}/", status_code=202)
async def delete_resource(
    request: Request, name: str, ident: str, caller: CallerDep, session: SessionDep
) -> TaskAddress:
    """Delete one thing. The task's `result` has the counts."""
    kind = general.resource_of(RESOURCES, name, Action.DELETE)
    thing = await general.found(session, kind, ident)
    asking = call(request, session, caller)
    await kind.permit(asking, Action.DELETE, [thing])
    claims = await kind.claims(asking, Action.DELETE, [thing])
    task = make_request(
        "general_delete", name, Action.DELETE, claims, caller,
        resource=kind.name, instance_id=ident,
    )  # fmt: skip
    return await dispatched(session, task)


@router.post("/temp_files/", status_code=201)
async def upload_temp_file(
    request: Request, caller: CallerDep, session: SessionDep
) -> dict[str, Any]:
    """Keep a file for a task: the multipart part `file`, and its `sha256` if you know it."""
    async with request.form() as form:
        upload, sha256 = form.get("file"), form.get("sha256")
        if not isinstance(upload, UploadFile):
            raise BadInput(f"file: {REQUIRED}", fields={"file": [REQUIRED]})
        if sha256 is not None and not isinstance(sha256, str):
            raise BadInput("sha256: Not text.", fields={"sha256": ["Not text."]})
        kept = await temp_files.store(
            session, request.app.state.files, chunks(upload), user=caller.username,
            now=utc_now(), limit=settings_of(request).max_upload_bytes, sha256=sha256 or None,
        )  # fmt: skip
    return {
        "id": str(kept.id),
        "size": kept.size,
        "sha256": kept.sha256,
        "created_at": moment(kept.created_at),
    }
