"""The demo's content: read independently of the service, packed, and copied."""

import asyncio
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.libraries.archive_contents import ByteStream
from services.libraries.entries import Folder, Tree, read
from services.libraries.olx_trees import OlxTree
from services.libraries.unpacking import unpack

# By ref: the OLX of a component and its files.
Content = dict[str, tuple[str, dict[str, bytes]]]


def expected(tree: OlxTree) -> Content:
    """What the content holds, read independently of the service: by ref, OLX and files."""
    found = {}
    for one in tree.components:
        loaded = tree.load(one)
        files = {path: read(tree.tree, name) for path, name in loaded.assets.items()}
        found[f"xblock.v1:{one.block_type}:{one.code}"] = (loaded.block.olx, files)
    return found


def pack(files: Iterator[tuple[str, bytes]]) -> bytes:
    """A .tar.gz in memory; the demo's content is small."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def as_is(tree: Tree) -> Iterator[tuple[str, bytes]]:
    for name in tree.names():
        yield f"content/{name}", read(tree, name)


def copies(content: Content, numbers: range) -> Iterator[tuple[str, bytes]]:
    """The same components again and again under other codes, with their files."""
    statics: dict[str, bytes] = {}
    for number in numbers:
        for ref, (olx, files) in content.items():
            _, block_type, code = ref.split(":")
            yield f"{block_type}/{code}-{number:04}.xml", olx.encode()
            statics |= files
    yield from statics.items()


@contextmanager
def opened(content: Path) -> Iterator[Tree]:
    """A folder, or an archive, as a tree of files."""
    if content.is_dir():
        yield Folder(content)
        return
    unpacked = unpack(content)
    try:
        yield unpacked
    finally:
        unpacked.close()


def whole(data: bytes | ByteStream) -> bytes:
    """All of a file in an archive."""
    if isinstance(data, bytes):
        return data
    stream = data

    async def collect() -> bytes:
        return b"".join([piece async for piece in stream()])

    return asyncio.run(collect())
