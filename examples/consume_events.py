"""Follow what libraries tell: print one line for each event, and remember how far it got.

Needs nothing but redis-py. Put what your program does in `take`; docs/events.md says what an
event promises. Start it again, or on another machine, and it goes on where it stopped.
"""

import argparse
import asyncio
import json
import os
import socket
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Away
from redis.exceptions import ResponseError

STREAM = "lyceum:events:libraries"
MOST = 100
# A consumer that has not acknowledged an event for so long has died: another takes it over.
ABANDONED_MS = 60_000
REST_SECONDS = 2.0

Entry = tuple[bytes, dict[bytes, bytes]]


async def take(event: dict[str, Any]) -> None:
    """Read again what the event is about. An error here leaves it for the next round."""
    print(event["time"], event["subject"], event["type"], json.dumps(event["data"]), flush=True)


def parsed(fields: dict[bytes, bytes]) -> dict[str, Any]:
    event: dict[str, Any] = {name.decode(): value.decode() for name, value in fields.items()}
    event["data"] = json.loads(event["data"])
    return event


async def join(redis: Redis, stream: str, group: str) -> None:
    """Be in the group. One that is new begins with the oldest event that is kept."""
    try:
        await redis.xgroup_create(stream, group, id="0", mkstream=True)
        print(f"# The group {group} is new: read everything once, then follow.", flush=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


async def one_round(
    redis: Redis, stream: str, group: str, name: str, *, wait_ms: int | None
) -> int:
    """Take what nobody finished, then what is new. Returns how many events it was."""
    _, abandoned, _ = await redis.xautoclaim(
        stream, group, name, ABANDONED_MS, start_id="0", count=MOST
    )
    taken = await finish(redis, stream, group, abandoned)
    # `0` is what this consumer was given before and did not finish, `>` what nobody was given.
    for position, block in (("0", None), (">", wait_ms)):
        answer = await redis.xreadgroup(group, name, {stream: position}, count=MOST, block=block)
        entries: list[Entry] = answer[0][1] if answer else []
        taken += await finish(redis, stream, group, entries)
    return taken


async def finish(redis: Redis, stream: str, group: str, entries: list[Entry]) -> int:
    """Acknowledge each event after it was taken: whatever dies meanwhile, none is left out."""
    for ident, fields in entries:
        if fields:  # An empty one was trimmed before it could be taken.
            await take(parsed(fields))
        await redis.xack(stream, group, ident)
    return len(entries)


async def follow(redis: Redis, stream: str, group: str, name: str, *, once: bool) -> None:
    await join(redis, stream, group)
    while True:
        try:
            taken = await one_round(redis, stream, group, name, wait_ms=None if once else 5000)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            # Redis came back without its data, and some events may never arrive.
            await join(redis, stream, group)
            continue
        except Away:
            if once:
                raise
            await asyncio.sleep(REST_SECONDS)
            continue
        if once and not taken:
            return


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--redis",
        default=os.environ.get("LYCEUM_REDIS_URL"),
        metavar="URL",
        help="where Redis is (LYCEUM_REDIS_URL, else redis://127.0.0.1:6379/0)",
    )
    parser.add_argument("--stream", default=STREAM, help=f"default {STREAM}")
    parser.add_argument("--group", default="example", help="who reads: each group gets all events")
    parser.add_argument(
        "--name",
        default=socket.gethostname(),
        help="this consumer in its group (default: this machine's name)",
    )
    parser.add_argument("--once", action="store_true", help="stop when nothing is left")
    return parser.parse_args()  # fmt: skip


async def main() -> None:
    chosen = arguments()
    redis = Redis.from_url(chosen.redis or "redis://127.0.0.1:6379/0")
    try:
        await follow(redis, chosen.stream, chosen.group, chosen.name, once=chosen.once)
    finally:
        await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main())
