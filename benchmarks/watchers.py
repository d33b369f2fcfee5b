"""Many followers of the live stream in a process of its own, until they saw everything end."""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.load import request_bytes

LIMIT_SECONDS = 120.0
PATH = "/api/tasks/v1/events/"
# The last event of a task; how many come before depends on which news came together.
MARK = b"\nevent: task.finished"


class Watcher(asyncio.Protocol):
    """One connection that waits for the ends of a number of tasks."""

    def __init__(self, token: str, expected: int) -> None:
        loop = asyncio.get_running_loop()
        self._token, self._expected = token, expected
        self._rest, self._seen = b"", 0
        self.open: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[float] = loop.create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(request_bytes("GET", PATH, None, self._token))

    def data_received(self, data: bytes) -> None:
        if not self.open.done():
            if b" 200 " not in data[:20]:
                self.open.set_exception(RuntimeError(data.decode(errors="replace")[:500]))
            else:
                self.open.set_result(None)
        data = self._rest + data
        self._seen += data.count(MARK)
        # A mark may lie across two pieces, but must not be counted twice.
        self._rest = data[max(0, len(data) - len(MARK) + 1) :]
        if self._seen >= self._expected and not self.done.done():
            self.done.set_result(time.time())

    def connection_lost(self, exc: Exception | None) -> None:
        for awaited in (self.open, self.done):
            if not awaited.done():
                awaited.set_exception(RuntimeError("the stream ended before the tasks did"))


async def watch(port: int, token: str, watchers: int, expected: int) -> None:
    loop = asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(lambda: Watcher(token, expected), "127.0.0.1", port)
        for _ in range(watchers)
    ]
    await asyncio.gather(*(watcher.open for _, watcher in pairs))
    print("ready", flush=True)
    async with asyncio.timeout(LIMIT_SECONDS):
        ends = await asyncio.gather(*(watcher.done for _, watcher in pairs))
    for transport, _ in pairs:
        transport.close()
    print(json.dumps({"last": max(ends)}), flush=True)


@dataclass
class Watching:
    """Followers that are connected and wait."""

    process: subprocess.Popen[str]

    def last(self) -> float:
        """The moment at which the slowest had everything."""
        out, _ = self.process.communicate(timeout=LIMIT_SECONDS)
        if self.process.returncode != 0:
            raise SystemExit("the watchers did not see every end")
        return float(json.loads(out.strip().splitlines()[-1])["last"])


def watching(port: int, token: str, watchers: int, expected: int) -> Watching:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.watchers", str(port), token, str(watchers),
         str(expected)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        process.kill()
        raise SystemExit("the watchers could not connect")
    return Watching(process)


if __name__ == "__main__":
    uvloop.run(watch(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
