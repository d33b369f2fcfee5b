"""Kept connections between services, against a server that answers what it is told to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest

from shared import lines
from shared.lines import Lines

QUICK = {"timeout": {"connect": 1.0, "read": 0.2, "pool": 0.2, "write": 1.0}}


@dataclass
class Server:
    """Gives each request the next of its answers; None: says nothing, b"": hangs up."""

    answers: list[bytes | None] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    connections: int = 0
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.heard.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0)
                if answer == b"":
                    break
                for piece in (answer or b"").split(b"|"):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.005)
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield server
    listening.close()


@pytest.fixture
async def way() -> AsyncIterator[Lines]:
    way = Lines()
    yield way
    await way.aclose()


def answer(text: str, *, more: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n{more}\r\n{text}".encode()


async def get(way: Lines, server: Server, **headers: str) -> str:
    request = httpx.Request("GET", server.url + "/a%20b?c=d", headers=headers, extensions=QUICK)
    return (await way.handle_async_request(request)).text


async def test_requests_follow_each_other_on_one_connection(server: Server, way: Lines) -> None:
    server.answers = [answer("one"), answer("two")]

    assert [await get(way, server), await get(way, server)] == ["one", "two"]
    assert server.connections == 1
    assert server.heard[0].startswith(b"GET /a%20b?c=d HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_an_answer_may_come_in_pieces_in_chunks_and_after_a_first_word(
    server: Server, way: Lines
) -> None:
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\non|e\r\n0\r\n\r\n"
    server.answers = [b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n|" + answer("o|ne")[:-1], chunks]
    server.answers[0] = server.answers[0].replace(b"Length: 4", b"Length: 3") + b"e"

    assert [await get(way, server), await get(way, server)] == ["one", "one"]


async def test_a_connection_that_the_server_ends_is_not_used_again(
    server: Server, way: Lines
) -> None:
    server.answers = [answer("one", more="Connection: close\r\n"), answer("two")]

    assert [await get(way, server), await get(way, server)] == ["one", "two"]
    assert server.connections == 2


async def test_a_connection_that_was_idle_for_long_is_not_used_again(
    server: Server, way: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [answer("one"), answer("two")]
    await get(way, server)

    monkeypatch.setattr(lines, "IDLE_SECONDS", 0.0)

    assert await get(way, server) == "two"
    assert server.connections == 2


@pytest.mark.parametrize(
    ("given", "error"),
    [(b"", httpx.RemoteProtocolError), (b"what?\r\n\r\n", httpx.RemoteProtocolError),
     (None, httpx.ReadTimeout), (answer("half")[:-2], httpx.ReadTimeout)],
)  # fmt: skip
async def test_what_is_not_an_answer_is_an_error_and_the_next_request_gets_its_own(
    server: Server, way: Lines, given: bytes | None, error: type[httpx.HTTPError]
) -> None:
    server.answers = [given, answer("two")]

    with pytest.raises(error):
        await get(way, server)

    assert await get(way, server) == "two"


async def test_nobody_gets_the_answer_to_a_request_that_was_given_up(
    server: Server, way: Lines
) -> None:
    server.answers = [b"|||||" + answer("late"), answer("two")]
    asked = asyncio.create_task(get(way, server))
    while not server.heard:
        await asyncio.sleep(0)
    asked.cancel()

    assert await get(way, server) == "two"
    assert asked.cancelled()


async def test_callers_wait_for_a_connection_when_all_are_in_use(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MOST", 1)
    way = Lines()
    server.answers = [b"||||" + answer("one"), answer("two"), None]

    assert await asyncio.gather(get(way, server), get(way, server)) == ["one", "two"]
    assert server.connections == 1

    monkeypatch.setitem(QUICK["timeout"], "pool", 0.05)
    ends = await asyncio.gather(get(way, server), get(way, server), return_exceptions=True)
    assert [type(end) for end in ends] == [httpx.ReadTimeout, httpx.PoolTimeout]
    await way.aclose()


async def test_closing_ends_also_what_is_still_asked(server: Server, way: Lines) -> None:
    server.answers = [None]
    asked = asyncio.create_task(get(way, server))
    while not server.heard:
        await asyncio.sleep(0)

    await way.aclose()

    with pytest.raises(httpx.RemoteProtocolError):
        await asked


async def test_nobody_listens(way: Lines) -> None:
    request = httpx.Request("GET", "http://127.0.0.1:1/", extensions=QUICK)

    with pytest.raises(httpx.ConnectError):
        await way.handle_async_request(request)


async def test_a_header_cannot_smuggle_in_another_line(server: Server, way: Lines) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        await get(way, server, other="a\r\nX-Evil: b")

    assert server.heard == []
