"""Asking for new library versions. contract: dispatcher §6.7, §6.11"""

import re
from datetime import datetime
from typing import Annotated, Any, NoReturn
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, model_validator
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from services.dispatcher import client as dispatcher
from services.dispatcher.general import rights_of
from services.dispatcher.schemas import TaskRequest, UserTaskSpec
from services.libraries import library_versions
from services.libraries.library_versions import EVERYTHING, LARGEST
from services.libraries.models import Library
from services.libraries.resources import resource_href
from shared.callers import Caller
from shared.problems import BadInput

MOST_UNITS = 10_000
_CONTENT = re.compile(
    rf"(?:{re.escape(resource_href('content', ''))[:-1]}([0-9a-fA-F-]{{36}})/"
    r"|prn:libraries\.content:([0-9a-fA-F-]{36}))"
)


def unit_of(address: str) -> str:
    """The id in the href or PRN of content. Raises ValueError."""
    named = _CONTENT.fullmatch(address)
    try:
        return str(UUID((named[1] or named[2]) if named else ""))
    except ValueError:
        raise ValueError(f"{address[:200]!r} is not the address of content.") from None


def unit_or_all(address: str) -> str:
    return address if address == EVERYTHING else unit_of(address)


class Modification(BaseModel):
    """What is different in the next version, relative to the newest or to `base_version`."""

    add_content_units: Annotated[
        list[Annotated[str, AfterValidator(unit_of)]], Field(max_length=MOST_UNITS)
    ] = []
    remove_content_units: Annotated[
        list[Annotated[str, AfterValidator(unit_or_all)]], Field(max_length=MOST_UNITS)
    ] = []
    base_version: Annotated[int | None, Field(ge=0, le=LARGEST)] = None
    overwrite: bool = True

    @model_validator(mode="after")
    def all_alone(self) -> "Modification":
        if EVERYTHING in self.remove_content_units and len(self.remove_content_units) > 1:
            raise ValueError('"*" must be alone in remove_content_units.')
        return self


def request_snapshot(library: Library, *, caller: Caller) -> TaskRequest:
    """A task that makes a version of what is published."""
    return _request("make_library_version", library, caller)


async def request(
    session: AsyncSession,
    library: Library,
    wanted: Modification,
    *,
    caller: Caller,
    now: datetime,
) -> TaskRequest:
    """A task that makes a version from another. Raises BadInput for units and a base unknown.

    Units are used from now on, so that no clean-up takes them until the task runs.
    """
    base = wanted.base_version
    if base is not None and await library_versions.find(session, library, base) is None:
        _refuse("base_version", f"There is no version {base}.")
    for field in ("add_content_units", "remove_content_units"):
        units = [unit for unit in getattr(wanted, field) if unit != EVERYTHING]
        await _require_known(session, library, field, units)
    added = [UUID(unit) for unit in wanted.add_content_units]
    await library_versions.touch(session, library, added, now=now)
    return _request("add_and_remove", library, caller, **wanted.model_dump(mode="json"))


async def _require_known(
    session: AsyncSession, library: Library, field: str, units: list[str]
) -> None:
    if not units:
        return
    connection = await session.connection()
    known = await connection.execute(
        text("""
            select version.uuid from version join entity on entity.id = version.entity_id
            where version.uuid = any(cast(:units as uuid[])) and version.pruned_at is null
              and entity.library_id = :library_id
        """),
        {"units": [UUID(unit) for unit in units], "library_id": library.id},
    )
    unknown = {UUID(unit) for unit in units} - set(known.scalars())
    if unknown:
        _refuse(field, f"There is no content {min(unknown)} in this library.")


def _refuse(field: str, message: str) -> NoReturn:
    raise BadInput(f"{field}: {message}", fields={field: [message]})


def _request(function: str, library: Library, caller: Caller, **arguments: Any) -> TaskRequest:
    return dispatcher.make_request(
        function,
        queue="libraries",
        kwargs={"library_key": library.key, **arguments, **rights_of(caller)},
        exclusive=[library.key],
        caller=caller,
        user_task=UserTaskSpec(
            name=f"New version of {library.key}"[:255], task_type="library-version"
        ),
        repeatable=True,
    )
