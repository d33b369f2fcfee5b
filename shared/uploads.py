"""Files that come as parts of a form."""

from collections.abc import AsyncIterator

from starlette.datastructures import UploadFile

from shared.files import CHUNK


async def chunks(upload: UploadFile) -> AsyncIterator[bytes]:
    """What was uploaded, piece by piece, as it is stored."""
    while chunk := await upload.read(CHUNK):
        yield chunk
