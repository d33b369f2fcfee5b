"""Own routes for administrators: people, groups and roles. Errors are RFC 9457."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from services.libraries import directory, roles
from services.libraries.models import Person
from services.libraries.team_schemas import (
    Assignment,
    AssignmentView,
    GroupView,
    Name,
    PersonChanges,
    PersonView,
    Scope,
)
from shared.callers import Caller, CallerDep
from shared.database import SessionDep, utc_now
from shared.paging import KeysetPage, make_cursor, read_cursor
from shared.problems import BadInput, Forbidden

router = APIRouter(prefix="/api/libraries-admin/v1", tags=["people, groups and roles"])


async def administrator(caller: CallerDep) -> Caller:
    if not caller.administrator:
        raise Forbidden
    return caller


STAFF = [Depends(administrator)]
Ident = Annotated[int, Path(ge=0, lt=2**63)]
Limit = Annotated[int, Query(ge=1, le=500)]
Search = Annotated[Name | None, Query()]
After = Annotated[str | None, Query(max_length=2000)]


def _after(cursor: str | None, kind: type[Any], default: Any) -> Any:
    if cursor is None:
        return default
    [value] = read_cursor(cursor, 1)
    valid = isinstance(value, kind) and not isinstance(value, bool)
    if not valid or (isinstance(value, str) and not directory.storable(value)):
        raise BadInput("This cursor is not valid.", fields={"after": ["Invalid cursor."]})
    if isinstance(value, int) and not 0 <= value < 2**63:
        raise BadInput("This cursor is not valid.", fields={"after": ["Invalid cursor."]})
    return value


@router.get("/people/", dependencies=STAFF)
async def list_people(
    session: SessionDep, search: Search = None, after: After = None, limit: Limit = 50
) -> KeysetPage[PersonView]:
    """People by name; `search` looks for a part of the name or of the e-mail."""
    found = await directory.list_people(
        session, search=search or "", after=_after(after, str, ""), size=limit + 1
    )
    more = make_cursor(found[limit - 1].username) if len(found) > limit else None
    results = [PersonView(**person.model_dump()) for person in found[:limit]]
    return KeysetPage(results=results, next=more)


@router.get("/people/{username}/", dependencies=STAFF, response_model=PersonView)
async def get_person(session: SessionDep, username: str) -> Person:
    """One person."""
    return await directory.get_person(session, username)


@router.put("/people/{username}/", dependencies=STAFF, response_model=PersonView)
async def put_person(session: SessionDep, username: str, body: PersonChanges) -> Person:
    """Make somebody known before they call, or change them.

    Inactive people may do nothing but learn from what is public. `creator` marks who may create
    libraries where that is not for everybody, and who sees libraries with public reading.
    """
    changes = body.model_dump(exclude_none=True)
    return await directory.put_person(session, username, changes, now=utc_now())


@router.get("/groups/", dependencies=STAFF)
async def list_groups(
    session: SessionDep, search: Search = None, after: After = None, limit: Limit = 50
) -> KeysetPage[GroupView]:
    """Groups by name, with how many people were put into each here."""
    found = await directory.list_groups(
        session, search=search or "", after=_after(after, str, ""), size=limit + 1
    )
    more = make_cursor(found[limit - 1].name) if len(found) > limit else None
    results = [
        GroupView(name=row.name, created=row.created, members=row.members) for row in found[:limit]
    ]
    return KeysetPage(results=results, next=more)


@router.put("/groups/{name}/", dependencies=STAFF)
async def make_group(session: SessionDep, name: str) -> dict[str, Any]:
    """Make a group known, so that grants and roles may name it."""
    group = await directory.make_group(session, name, now=utc_now())
    return {"name": group.name, "members": await directory.members_of(session, name)}


@router.get("/groups/{name}/", dependencies=STAFF)
async def get_group(session: SessionDep, name: str) -> dict[str, Any]:
    """A group and who was put into it here; tokens may say of more people that they are in it."""
    return {"name": name, "members": await directory.members_of(session, name)}


@router.delete("/groups/{name}/", dependencies=STAFF, status_code=204)
async def delete_group(session: SessionDep, name: str) -> Response:
    """Remove a group that no grant and no role names."""
    await directory.delete_group(session, name)
    return Response(status_code=204)


@router.put("/groups/{name}/members/{username}/", dependencies=STAFF, status_code=204)
async def add_member(session: SessionDep, name: str, username: str) -> Response:
    """Put somebody into a group."""
    await directory.add_member(session, name, username)
    return Response(status_code=204)


@router.delete("/groups/{name}/members/{username}/", dependencies=STAFF, status_code=204)
async def remove_member(session: SessionDep, name: str, username: str) -> Response:
    """Take somebody out of a group."""
    await directory.remove_member(session, name, username)
    return Response(status_code=204)


@router.get("/roles/")
async def list_roles(
    session: SessionDep,
    caller: CallerDep,
    scope: Annotated[Scope | None, Query()] = None,
    username: Annotated[Name | None, Query()] = None,
    group: Annotated[Name | None, Query()] = None,
    after: After = None,
    limit: Limit = 50,
) -> KeysetPage[AssignmentView]:
    """Who has which role: your own, those over a `scope` whose team you may view, all for staff."""
    found = await roles.page(
        session, caller=caller, scope=scope, username=username, group=group,
        after=_after(after, int, 0), size=limit + 1,
    )  # fmt: skip
    more = make_cursor(found[limit - 1].id) if len(found) > limit else None
    return KeysetPage(results=[AssignmentView.of(row) for row in found[:limit]], next=more)


@router.post("/roles/")
async def assign_role(session: SessionDep, caller: CallerDep, body: Assignment) -> AssignmentView:
    """Give a role to a person or a group. What is given already stays as it is.

    For who manages the team over that scope. Only staff makes people creators, and denies: over
    its scope a denial takes everything that the role gives and all that needs it, whatever
    grants, other roles or the library itself allow.
    """
    assignment = await roles.assign(session, caller=caller, **body.model_dump(), now=utc_now())
    return AssignmentView.of(assignment)


@router.delete("/roles/{assignment_id}/", status_code=204)
async def remove_role(session: SessionDep, caller: CallerDep, assignment_id: Ident) -> Response:
    """Take a role, or a denial, away. For who may assign it."""
    await roles.remove(session, assignment_id, caller=caller)
    return Response(status_code=204)
