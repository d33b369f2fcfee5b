"""The page for people at /tasks/: one HTML, one style sheet, one script, no build step."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from shared.problems import NotFound

router = APIRouter(prefix="/tasks", include_in_schema=False)
FOLDER = Path(__file__).parent
TYPES = {
    "tasks.html": "text/html; charset=utf-8",
    "tasks.css": "text/css; charset=utf-8",
    "tasks.js": "text/javascript; charset=utf-8",
}
# Everything comes from here, and nothing is written into the page but as text.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _file(name: str) -> FileResponse:
    return FileResponse(FOLDER / name, media_type=TYPES[name], headers=HEADERS)


@router.get("/")
async def page() -> FileResponse:
    """My tasks."""
    return _file("tasks.html")


@router.get("/{name}")
async def part(name: str) -> FileResponse:
    """Its style sheet and script."""
    if name not in TYPES:
        raise NotFound
    return _file(name)
