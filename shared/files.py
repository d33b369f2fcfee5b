"""Files in one object store: a local folder, or S3."""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

from shared.problems import BadInput, NotFound

CHUNK = 256 * 1024
PART = 5 * 1024 * 1024
PAGE = 500


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What was written: its path, its size in bytes, and its BLAKE2b-160 in hex."""

    path: str
    size: int
    blake2b: str


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file as the store lists it."""

    path: str
    size: int
    modified: datetime


class Files:
    """Reads and writes whole files by path. Writing is atomic: others see all or nothing."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store: ObjectStore = _open(url)

    async def put(
        self, path: str, data: bytes | AsyncIterable[bytes], *, limit: int | None = None
    ) -> StoredFile:
        """Store bytes or a stream. Raises TooBig, storing nothing, beyond `limit` bytes."""
        path = _checked(path)
        if isinstance(data, bytes):
            if limit is not None and len(data) > limit:
                raise TooBig(limit)
            await obstore.put_async(self._store, path, data)
            return StoredFile(path, len(data), digest(data))
        return await self._put_stream(path, data, limit)

    async def _put_stream(
        self, path: str, data: AsyncIterable[bytes], limit: int | None
    ) -> StoredFile:
        state = hashlib.blake2b(digest_size=20)
        size = 0
        async with obstore.open_writer_async(self._store, path, buffer_size=PART) as writer:
            async for chunk in data:
                size += len(chunk)
                if limit is not None and size > limit:
                    raise TooBig(limit)
                state.update(chunk)
                await writer.write(chunk)
        return StoredFile(path, size, state.hexdigest())

    async def stream(
        self, path: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`. Raises FileMissing."""
        path = _checked(path)
        try:
            if start or end is not None:
                stop = end if end is not None else await self.size(path)
                for position in range(start, stop, CHUNK):
                    piece = await obstore.get_range_async(
                        self._store, path, start=position, end=min(stop, position + CHUNK)
                    )
                    yield bytes(piece)
                return
            answer = await obstore.get_async(self._store, path)
            async for chunk in answer.stream(min_chunk_size=CHUNK):
                yield bytes(chunk)
        except FileNotFoundError as error:
            raise FileMissing() from error

    async def rename(self, path: str, target: str) -> None:
        """Give a file its final place; what was there is replaced by the same content."""
        await obstore.rename_async(self._store, _checked(path), _checked(target), overwrite=True)

    async def copy(self, path: str, target: str) -> bool:
        """Put the same content at a second place; false if there is none at the first."""
        try:
            await obstore.copy_async(self._store, _checked(path), _checked(target))
        except FileNotFoundError:
            return False
        return True

    async def read(self, path: str) -> bytes:
        """A small file at once."""
        try:
            answer = await obstore.get_async(self._store, _checked(path))
            return bytes(await answer.bytes_async())
        except FileNotFoundError as error:
            raise FileMissing() from error

    async def size(self, path: str) -> int:
        """Bytes. Raises FileMissing."""
        try:
            return int((await obstore.head_async(self._store, _checked(path)))["size"])
        except FileNotFoundError as error:
            raise FileMissing() from error

    async def exists(self, path: str) -> bool:
        try:
            await self.size(path)
        except FileMissing:
            return False
        return True

    async def delete(self, paths: Iterable[str]) -> None:
        """Remove files; those already gone are fine."""
        for path in paths:
            try:
                await obstore.delete_async(self._store, _checked(path))
            except FileNotFoundError:
                continue

    async def list(self, prefix: str) -> AsyncIterator[str]:
        """Paths below a prefix, page by page."""
        async for page in obstore.list(self._store, prefix=_checked(prefix)):
            for entry in page:
                yield str(entry["path"])

    async def pages(self, prefix: str) -> AsyncIterator[Sequence[ListedFile]]:
        """The files below a prefix with what is known of each, page by page."""
        async for page in obstore.list(self._store, prefix=_checked(prefix), chunk_size=PAGE):
            yield [
                ListedFile(str(entry["path"]), int(entry["size"]), entry["last_modified"])
                for entry in page
            ]


class FileMissing(NotFound):
    type = "file-missing"
    title = "The file is not there any more"


class TooBig(BadInput):
    type = "file-too-big"
    title = "File too big"

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(f"File too big: at most {limit} bytes." if limit else None)


def digest(data: bytes) -> str:
    """BLAKE2b-160 in lower-case hex: how content is addressed everywhere."""
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def _open(url: str) -> ObjectStore:
    folder = local_folder(url)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(folder)
    return from_url(url)


def local_folder(url: str) -> Path | None:
    """The folder of a store on this machine's disk."""
    parts = urlsplit(url)
    return Path(parts.netloc + parts.path).resolve() if parts.scheme == "file" else None


def _checked(path: str) -> str:
    """Our own code makes paths; a mistake there must not leave the store's folder."""
    if path.startswith("/") or "\x00" in path or ".." in path.split("/"):
        raise BadInput("Invalid file path")
    return path


async def spool(stream: AsyncIterable[bytes], target: Path, *, limit: int) -> int:
    """Write a stream to a local file without holding it in memory; its size in bytes."""
    size = 0
    with target.open("wb") as file:
        async for chunk in stream:
            size += len(chunk)
            if size > limit:
                raise TooBig(limit)
            await asyncio.to_thread(file.write, chunk)
    return size
