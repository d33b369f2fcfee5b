"""Files in a local folder and in S3 behave the same."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer

from shared.files import FileMissing, Files, TooBig, digest
from shared.problems import BadInput


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    if request.param == "folder":
        return Files(f"file://{tmp_path / 'objects'}")
    endpoint = request.getfixturevalue("s3_endpoint")
    values = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    httpx.put(f"{endpoint}/bucket", trust_env=False)
    return Files("s3://bucket/some/prefix")


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def read(files: Files, path: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in files.stream(path, start=start, end=end)])


async def test_bytes_and_streams_are_stored_whole(files: Files) -> None:
    big = b"0123456789" * 1_200_000

    small = await files.put("a/b.txt", b"hello")
    large = await files.put("a/c.bin", pieces(big[:7_000_000], big[7_000_000:]))

    assert (small.size, small.blake2b) == (5, digest(b"hello"))
    assert (large.size, large.blake2b) == (len(big), digest(big))
    assert await files.read("a/b.txt") == b"hello"
    assert await read(files, "a/c.bin") == big
    assert await read(files, "a/c.bin", 5, 25) == big[5:25]
    assert await files.size("a/c.bin") == len(big)
    assert sorted([path async for path in files.list("a")]) == ["a/b.txt", "a/c.bin"]


async def test_what_is_over_the_limit_leaves_nothing(files: Files) -> None:
    with pytest.raises(TooBig):
        await files.put("x", b"12345", limit=4)
    with pytest.raises(TooBig):
        await files.put("y", pieces(b"123", b"45"), limit=4)

    assert not await files.exists("x")
    assert not await files.exists("y")


async def test_renaming_and_deleting(files: Files) -> None:
    await files.put("from", b"1")
    await files.put("to", b"1")

    await files.rename("from", "to")
    await files.delete(["to", "never-there"])

    assert not await files.exists("from")
    for call in (files.read("to"), files.size("to"), read(files, "to")):
        with pytest.raises(FileMissing):
            await call


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\x00b"])
async def test_no_path_leaves_the_store(files: Files, path: str) -> None:
    with pytest.raises(BadInput):
        await files.put(path, b"x")
