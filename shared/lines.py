"""Kept HTTP/1.1 connections between our own services, each for one request at a time.

httpx's own connections take about four times as long per request, which is what counts between a
worker and the dispatcher. Addresses with TLS are left to them.
"""

import asyncio
from typing import Any

import httptools
import httpx

MOST = 50
MOST_IDLE = 20
# Less than a server keeps a connection on which nothing happens.
IDLE_SECONDS = 4.0

Address = tuple[str, int]


class Lines(httpx.AsyncBaseTransport):
    """Sends requests whose bodies are known, and answers with whole bodies.

    An answer must tell its length or come in chunks, as those of every server of ours do.
    """

    def __init__(self) -> None:
        self._idle: dict[Address, list[Line]] = {}
        self._open: set[Line] = set()
        self._free = asyncio.Semaphore(MOST)
        self._secure = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=MOST, max_keepalive_connections=MOST_IDLE),
            trust_env=False,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx's exceptions, as its own transports do."""
        if request.url.scheme != "http":
            return await self._secure.handle_async_request(request)
        limits, sent = request.extensions["timeout"], _as_bytes(request)
        try:
            async with asyncio.timeout(limits["pool"]):
                await self._free.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("all connections are in use", request=request) from None
        try:
            return await self._exchange(request, sent, limits)
        finally:
            self._free.release()

    async def _exchange(
        self, request: httpx.Request, sent: bytes, limits: dict[str, float]
    ) -> httpx.Response:
        address = (request.url.host, request.url.port or 80)
        line = self._kept(address) or await self._connected(address, limits["connect"], request)
        try:
            response = await line.ask(request, sent, limits["read"])
        except BaseException:  # What comes on it later would answer another request.
            line.close()
            raise
        self._keep(address, line)
        return response

    def _kept(self, address: Address) -> "Line | None":
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        idle = self._idle.get(address, [])
        while idle:
            line = idle.pop()
            if line.usable and line.since > oldest:
                return line
            line.close()
        return None

    def _keep(self, address: Address, line: "Line") -> None:
        idle = self._idle.setdefault(address, [])
        if line.usable and len(idle) < MOST_IDLE:
            idle.append(line)
        else:
            line.close()

    async def _connected(self, address: Address, seconds: float, request: httpx.Request) -> "Line":
        try:
            async with asyncio.timeout(seconds):
                _, line = await asyncio.get_running_loop().create_connection(Line, *address)
        except TimeoutError:
            raise httpx.ConnectTimeout("no connection in time", request=request) from None
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        self._open.add(line)
        line.lost.add_done_callback(lambda _: self._open.discard(line))
        return line

    async def aclose(self) -> None:
        """Those who still wait for an answer get an error."""
        lines = list(self._open)
        for line in lines:
            line.close()
        await asyncio.gather(*(line.lost for line in lines), self._secure.aclose())


def _as_bytes(request: httpx.Request) -> bytes:
    parts = [request.method.encode(), b" ", request.url.raw_path, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        if b"\r" in value or b"\n" in value:
            raise httpx.LocalProtocolError("a header has more than one line", request=request)
        parts += (name, b": ", value, b"\r\n")
    return b"".join([*parts, b"\r\n", request.content])


class Line(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.usable, self.since = False, loop.time()
        self._answer: asyncio.Future[None] | None = None
        self._silence: asyncio.Timeout | None = None

    async def ask(self, request: httpx.Request, sent: bytes, seconds: float) -> httpx.Response:
        """The answer to a request; no silence in it is longer than `seconds`."""
        loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._seconds, self._answer = seconds, loop.create_future()
        if self.lost.done():
            raise httpx.WriteError("the connection was closed", request=request)
        self._transport.write(sent)
        try:
            async with asyncio.timeout(seconds) as self._silence:
                await self._answer
        except TimeoutError:
            raise httpx.ReadTimeout("no answer in time", request=request) from None
        finally:
            self._answer = self._silence = None
        self.since = loop.time()
        return httpx.Response(
            self._parser.get_status_code(),
            headers=self._headers,
            content=b"".join(self._body),
            request=request,
        )

    def close(self) -> None:
        self.usable = False
        self._transport.close()

    # Called by the event loop.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():  # Nobody asked.
            self.close()
            return
        if self._silence is not None and not self._silence.expired():
            self._silence.reschedule(asyncio.get_running_loop().time() + self._seconds)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.usable = False
            self._fail(httpx.RemoteProtocolError(f"not an answer: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        self.lost.set_result(None)
        self._fail(httpx.RemoteProtocolError("the connection was closed without an answer"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_body(self, piece: bytes) -> None:
        self._body.append(piece)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:  # The answer proper is yet to come.
            self._headers.clear()
            return
        self.usable = self._parser.should_keep_alive() and not self.lost.done()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)
