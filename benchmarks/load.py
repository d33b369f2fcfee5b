"""A load generator in a process of its own: N callers, each sends its next request when it has its
answer. Requests are made before the clock starts; answers are only measured, not parsed.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.rounds import percentile

LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Loaded:
    """What the callers saw."""

    requests: int
    began: float  # by the clock on the wall, when the first request was sent
    seconds: float
    median: float
    p95: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def load(
    port: int, method: str, paths: Sequence[str], *, bodies: Sequence[Any] = (), token: str = "",
    callers: int = 32, count: int = 0, expect: int = 200,
) -> Loaded:  # fmt: skip
    """Send `count` requests (default: one for each body or path), in turn over paths and bodies."""
    plan = {
        "port": port, "method": method, "paths": list(paths), "bodies": list(bodies),
        "token": token, "callers": callers, "expect": expect,
        "count": count or max(len(paths), len(bodies)),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(plan, default=str), capture_output=True, text=True, check=False,
        timeout=LIMIT_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"the load generator failed: {done.stderr.strip()[-2000:]}")
    return Loaded(**json.loads(done.stdout))


def request_bytes(method: str, path: str, body: Any, token: str) -> bytes:
    payload = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
    if token:
        head += f"Authorization: Bearer {token}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    return head.encode() + b"\r\n" + payload


class Caller(asyncio.Protocol):
    """One connection. Understands answers with a Content-Length, which is all of ours."""

    def __init__(self, requests: Iterator[bytes], seen: list[float], expect: int) -> None:
        self._requests, self._seen = requests, seen
        self._expect = f"HTTP/1.1 {expect} ".encode()
        self._buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send_next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        if not head.startswith(self._expect):
            self._fail(head + body)
            return
        self._seen.append(time.perf_counter() - self._sent)
        self._buffer = b""
        self.send_next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the connection was closed"))

    def _fail(self, answer: bytes) -> None:
        self._transport.close()
        if not self.done.done():
            self.done.set_exception(RuntimeError(answer.decode(errors="replace")[:1500]))


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise RuntimeError("an answer without Content-Length")


async def generate(plan: dict[str, Any]) -> Loaded:
    count = plan["count"]
    paths, bodies = itertools.cycle(plan["paths"]), itertools.cycle(plan["bodies"] or [None])
    requests = iter(
        [
            request_bytes(plan["method"], next(paths), next(bodies), plan["token"])
            for _ in range(count)
        ]
    )
    seen: list[float] = []
    loop = asyncio.get_running_loop()
    callers = [
        (
            await loop.create_connection(
                lambda: Caller(requests, seen, plan["expect"]), "127.0.0.1", plan["port"]
            )
        )[1]
        for _ in range(min(plan["callers"], count))
    ]
    wall, began = time.time(), time.perf_counter()
    for caller in callers:
        caller.send_next()
    await asyncio.gather(*(caller.done for caller in callers))
    seconds = time.perf_counter() - began
    return Loaded(count, wall, seconds, percentile(seen, 0.5), percentile(seen, 0.95))


def main() -> None:
    print(json.dumps(vars(uvloop.run(generate(json.load(sys.stdin))))))


if __name__ == "__main__":
    main()
