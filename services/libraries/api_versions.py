"""Routes of library versions: making, reading, comparing, publishing and exporting them.

contract: dispatcher §6.7 to §6.9
"""

from typing import Annotated, Any, NoReturn
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, model_validator

from services.dispatcher.general import Action, Claims
from services.libraries import (
    contents,
    exports,
    library_version_contents,
    library_versions,
    modifications,
)
from services.libraries.access import EditLibrary, PublishLibrary, ViewLibrary
from services.libraries.api_resources import (
    TaskAddress,
    call,
    dispatched,
    make_request,
    task_address,
)
from services.libraries.errors import BlockUnknown
from services.libraries.keys import parse_container_key, parse_usage_key
from services.libraries.models import Export, Library, LibraryVersion
from services.libraries.resources import moment
from services.libraries.states import Kind, component_ref
from services.libraries.version_resources import (
    EXPORTERS,
    PUBLICATIONS,
    VERSIONS,
    export_href,
    version_href,
)
from shared.callers import CallerDep
from shared.database import ReadDep, SessionDep, utc_now
from shared.downloads import download
from shared.paging import KeysetPage, make_cursor, read_cursor
from shared.problems import BadInput

router = APIRouter(prefix="/api/libraries/v2", tags=["library versions"])
Number = Annotated[int, Path(ge=0, le=library_versions.LARGEST)]
Size = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=500)]
Page = KeysetPage[dict[str, Any]]
LARGEST_ID = 2**63 - 1


def number_after(cursor: str | None, start: int) -> int:
    """Raises BadInput for a cursor that is not one of ours."""
    if cursor is None:
        return start
    [value] = read_cursor(cursor, 1)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_ID:
        raise BadInput("This cursor is not valid.", fields={"after": ["Invalid cursor."]})
    return value


def page_of(rows: list[dict[str, Any]], size: int, last: Any) -> Page:
    """A page, and where the next begins when this one is full."""
    return Page(results=rows, next=make_cursor(last) if rows and len(rows) == size else None)


@router.get("/{lib_key}/versions/")
async def list_versions(
    library: ViewLibrary, session: ReadDep, size: Size = 100, after: After = None
) -> Page:
    """The versions of a library, newest first."""
    before = min(number_after(after, library_versions.LARGEST), library_versions.LARGEST)
    rows = await library_versions.page(session, library, before=before, size=size)
    published = await library_versions.publications(session, [row.id for row in rows])
    views = [VERSIONS.view(library, row, published.get(row.id)) for row in rows]
    return page_of(views, size, rows[-1].number if rows else None)


@router.post("/{lib_key}/versions/", status_code=202)
async def make_version(
    library: PublishLibrary, caller: CallerDep, session: SessionDep
) -> TaskAddress:
    """Make the next version of what is published now. Nothing is made when nothing differs."""
    task = modifications.request_snapshot(library, caller=caller)
    return await dispatched(session, task)


@router.post("/{lib_key}/modify/", status_code=202)
async def modify_library(
    library: PublishLibrary,
    wanted: modifications.Modification,
    caller: CallerDep,
    session: SessionDep,
) -> TaskAddress:
    """Make the next version from another one, without some units and with others.

    Units are named by the addresses of content. A unit replaces the one of the same component
    or container, unless `overwrite` is false: then that is an error of the task.
    """
    task = await modifications.request(session, library, wanted, caller=caller, now=utc_now())
    return await dispatched(session, task)


async def _version(session: SessionDep, library: Library, number: int) -> LibraryVersion:
    return await library_versions.get(session, library, number)


@router.get("/{lib_key}/versions/{number}/")
async def get_version(library: ViewLibrary, number: Number, session: ReadDep) -> dict[str, Any]:
    """One version, with what it holds and how many units differ from the one before."""
    version = await _version(session, library, number)
    return await VERSIONS.show(session, (library, version))


@router.delete("/{lib_key}/versions/{number}/", status_code=202)
async def delete_version(
    request: Request,
    library: PublishLibrary,
    number: Number,
    caller: CallerDep,
    session: SessionDep,
) -> TaskAddress:
    """Delete one version. One that is published, or the last one, stays: the task fails."""
    thing = (library, await _version(session, library, number))
    claims = await VERSIONS.claims(call(request, session, caller), Action.DELETE, [thing])
    task = make_request(
        "general_delete", VERSIONS.name, Action.DELETE, claims, caller,
        resource=VERSIONS.name, instance_id=VERSIONS.ident(thing),
    )  # fmt: skip
    return await dispatched(session, task)


@router.post("/{lib_key}/versions/{number}/publish/", status_code=202)
async def publish_version(
    library: PublishLibrary, number: Number, caller: CallerDep, session: SessionDep
) -> TaskAddress:
    """Publish a version: it is kept for good, with what the library says of itself now."""
    await _version(session, library, number)
    task = make_request(
        "general_create", PUBLICATIONS.name, Action.CREATE, Claims([library.key]), caller,
        resource=PUBLICATIONS.name, data={"library": library.key, "number": number},
    )  # fmt: skip
    return await dispatched(session, task)


@router.get("/{lib_key}/versions/{number}/content/")
async def list_content(
    library: ViewLibrary,
    number: Number,
    session: ReadDep,
    kind: Kind | None = None,
    size: Size = 100,
    after: After = None,
) -> Page:
    """The units of a version: one version of each component and container."""
    await _version(session, library, number)
    rows = await library_version_contents.content(
        session, library, number, after=number_after(after, 0), size=size, kind=kind
    )
    views = [contents.view(library, row) for row in rows]
    return page_of(views, size, rows[-1].entity_id if rows else None)


@router.get("/{lib_key}/versions/{number}/diff/{other}/")
async def compare_versions(
    library: ViewLibrary,
    number: Number,
    other: Number,
    session: ReadDep,
    size: Size = 100,
    after: After = None,
) -> Page:
    """What is different in `other`, compared with `number`."""
    await _version(session, library, number)
    await _version(session, library, other)
    rows = await library_version_contents.difference(
        session, library, number, other, after=number_after(after, 0), size=size
    )
    views = [contents.difference(library, row) for row in rows]
    return page_of(views, size, rows[-1].entity_id if rows else None)


@router.get("/{lib_key}/versions/{number}/blocks/{usage_key}/")
async def get_block_as_of(
    library: ViewLibrary, number: Number, usage_key: str, session: ReadDep
) -> dict[str, Any]:
    """A component as a version of its library has it, with its OLX and the list of its files.

    The files themselves are at `/library_assets/component_versions/{uuid}/{path}`.
    """
    key = parse_usage_key(usage_key)
    if str(key.lib_key) != library.key:
        raise BlockUnknown
    await _version(session, library, number)
    ref = component_ref(key.block_type, key.usage_id)
    return await contents.as_of(session, library, number, ref, key.block_type)


@router.get("/{lib_key}/versions/{number}/containers/{container_key}/")
async def get_container_as_of(
    library: ViewLibrary, number: Number, container_key: str, session: ReadDep
) -> dict[str, Any]:
    """A container as a version of its library has it, with its children as of that version."""
    key = parse_container_key(container_key)
    if str(key.lib_key) != library.key:
        raise BlockUnknown
    await _version(session, library, number)
    return await contents.as_of(session, library, number, key.container_id, key.container_type)


# Exports


class ExportWanted(BaseModel):
    """What to export: a publication, or a version by its number; and from which version on."""

    exporter: UUID
    publication: UUID | None = None
    version: Annotated[int | None, Field(ge=0, le=library_versions.LARGEST)] = None
    start_version: Annotated[int | None, Field(ge=0, le=library_versions.LARGEST)] = None

    @model_validator(mode="after")
    def one_of_both(self) -> "ExportWanted":
        if (self.publication is None) == (self.version is None):
            raise ValueError("Give exactly one of publication and version.")
        return self


@router.post("/{lib_key}/exports/", status_code=202)
async def start_export(
    library: EditLibrary, wanted: ExportWanted, caller: CallerDep, session: SessionDep
) -> TaskAddress:
    """Write a version or a publication into the object store, where its exporter says.

    With `start_version` only files that are not in that version. Nothing is overwritten.
    """
    exporter = await EXPORTERS.find(session, str(wanted.exporter))
    if exporter is None or exporter.library_id != library.id:
        _refuse("exporter", "There is no such exporter of this library.")
    publication = None
    if wanted.publication is not None:
        publication = await PUBLICATIONS.find(session, str(wanted.publication))
        if publication is None or publication.library_id != library.id:
            _refuse("publication", "There is no such publication of this library.")
    task_id = await exports.start(
        session, library, exporter, publication=publication, number=wanted.version,
        start_number=wanted.start_version, caller=caller,
    )  # fmt: skip
    return task_address(task_id)


def _refuse(field: str, message: str) -> NoReturn:
    raise BadInput(f"{field}: {message}", fields={field: [message]})


@router.get("/{lib_key}/exports/")
async def list_exports(
    library: ViewLibrary, session: ReadDep, size: Size = 100, after: After = None
) -> Page:
    """Exports of a library, newest first, failed ones too: they have no `finished`."""
    before = None
    if after is not None:
        [text] = read_cursor(after, 1)
        try:
            before = UUID(text)
        except (ValueError, AttributeError, TypeError):
            _refuse("after", "Invalid cursor.")
    rows = await exports.page(session, library, before=before, size=size)
    views = [_export(library, row) for row in rows]
    return page_of(views, size, str(rows[-1].id) if rows else None)


@router.get("/{lib_key}/exports/{export_id}/")
async def get_export(library: ViewLibrary, export_id: UUID, session: ReadDep) -> dict[str, Any]:
    """One export."""
    return _export(library, await exports.get(session, library, export_id))


@router.delete("/{lib_key}/exports/{export_id}/", status_code=204)
async def delete_export(
    request: Request, library: EditLibrary, export_id: UUID, session: SessionDep
) -> None:
    """Remove an export that has ended, with its files. 409 while it is written."""
    export = await exports.get(session, library, export_id)
    await exports.remove(session, request.app.state.files, export.id)


@router.get("/{lib_key}/exports/{export_id}/files/{path:path}")
async def download_export(
    request: Request, library: ViewLibrary, export_id: UUID, path: str, session: ReadDep
) -> Response:
    """A file of a finished export: `archive.zip`, or any file of a folder tree."""
    export = await exports.get(session, library, export_id)
    where = exports.file_of(export, path)
    return await download(
        request, request.app.state.files, where, file_name=path.rpartition("/")[2]
    )


def _export(library: Library, row: Export) -> dict[str, Any]:
    start, publication = row.start_number, row.publication_id
    version = version_href(library.key, row.number)
    exported = PUBLICATIONS.href(str(publication)) if publication else version
    return {
        "pulp_href": export_href(library.key, row.id),
        "prn": f"prn:libraries.export:{row.id}",
        "pulp_created": moment(row.created),
        "exporter": EXPORTERS.href(str(row.exporter_id)),
        "task": task_address(row.task_id).task,
        "exported_resources": [exported],
        "params": {
            "publication" if publication else "repository_version": exported,
            "start_repository_version": None if start is None else version_href(library.key, start),
        },
        "path": row.path,
        "files": row.files,
        "size": row.size,
        "finished": moment(row.finished),
    }
