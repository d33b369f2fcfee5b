"""Libraries over HTTP against Open edX's content core in one process, on the same PostgreSQL.

The phases and what each does exactly are those of contract: content_core §5.3. Ours answers
requests with JSON, checks who asks and tells events; theirs is called directly.
"""

import asyncio
import contextlib
import socket
import statistics
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import orjson
import typer
from httptools import HttpResponseParser

from benchmarks import peers
from benchmarks.peers import openedx_core
from benchmarks.peers.openedx_core import figure, olx
from benchmarks.rounds import Claim, Report, write
from benchmarks.suite import Suite, suite
from shared.callers import make_token
from shared.testing import SECRET

PEER = "openedx-core"
V2 = "/api/libraries/v2"
IDLE_SECONDS = 2.0
SERVICES = ["dispatcher", "user_tasks", "libraries"]
GOALS = {
    "create_components": ">= 5", "publish_all": ">= 10", "bulk_edit": ">= 10",
    "backup": ">= 3", "restore": ">= 10", "create_components, by 8 callers": ">= 5",
}  # fmt: skip
PHASES = (
    "create_components", "publish_all", "edit_one", "list_unpublished_flags", "count_unpublished",
    "publish_one", "create_unit_tree", "publish_tree", "edit_in_tree", "contains_unpublished",
    "publish_one_in_tree", "bulk_edit", "publish_all_edited", "reset_100", "history",
    "collection_add", "backup", "restore",
)  # fmt: skip
# Ours alone can do these another way; the peer's figure is that of the phase itself.
TOGETHER, READ = "create_components, by 8 callers", "contains_unpublished, units of one request"
OTHER_WAYS = {TOGETHER: "create_components", READ: "contains_unpublished"}
CALLERS = 8
STATEMENTS = openedx_core.STATEMENTS.replace("current_database()", "'lyceum_libraries'")


class Caller:
    """One connection of one person; an answer is read and its JSON parsed before the next.

    As thin as a client can be, so that what is measured is the service.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._token = make_token(SECRET, "ada", user_id=7, staff=True)
        self._line: socket.socket | None = None
        self._used = time.monotonic()

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else orjson.dumps(body)
        return self.send(method, path, data, "application/json")

    def upload(self, method: str, path: str, name: str, content: bytes) -> Any:
        """A multipart body of one file."""
        mark = uuid.uuid4().hex
        head = (
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
            "Content-Type: application/zip\r\n\r\n"
        )
        data = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
        return self.send(method, path, data, f"multipart/form-data; boundary={mark}")

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def send(self, method: str, path: str, data: bytes | None, kind: str) -> Any:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
            f"Authorization: Bearer {self._token}\r\n"
        )
        if data is not None:
            head += f"Content-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        line = self._open()
        line.sendall(head.encode() + b"\r\n" + (data or b""))
        answer = Answer()
        while not answer.ended:
            received = line.recv(1 << 16)
            if not received:
                raise SystemExit(f"{method} {path}: the connection was closed")
            answer.parser.feed_data(received)
        self._used = time.monotonic()
        content, status = b"".join(answer.parts), answer.parser.get_status_code()
        if status not in (200, 204):
            raise SystemExit(f"{method} {path}: {status} {content[:800]!r}")
        return orjson.loads(content) if content else None

    def _open(self) -> socket.socket:
        if time.monotonic() - self._used > IDLE_SECONDS:
            self.close()  # before the server does
        if self._line is None:
            self._line = socket.create_connection(("127.0.0.1", self._port), timeout=600)
            self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._line


class Answer:
    """One HTTP response as it comes in."""

    def __init__(self) -> None:
        self.parser = HttpResponseParser(self)
        self.parts: list[bytes] = []
        self.ended = False

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.ended = True


@dataclass
class Meter:
    """Seconds and statements of each phase, as a peer tells them."""

    suite: Suite
    found: dict[str, float] = field(default_factory=dict)

    def phase(self, name: str, work: Callable[[], Any], times: int = 1) -> Any:
        before = self.statements()
        began = time.perf_counter()
        outcome = work()
        self.found[name] = (time.perf_counter() - began) / times
        self.found[f"{name} statements"] = (self.statements() - before) / times
        return outcome

    def statements(self) -> int:
        return int(query(self.suite.stores.database_url, STATEMENTS)[0][0])


def query(url: str, statement: str, *arguments: Any) -> list[Any]:
    async def run() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    return asyncio.run(run())


class Author:
    """One library of its own and the work on it."""

    def __init__(self, found: Suite) -> None:
        self.suite, self.call = found, Caller(found.ports["libraries"])
        self.key = self.make_library()
        self.org, self.slug = self.key.split(":")[1:]

    def make_library(self, **more: Any) -> str:
        body = {"org": "Bench", "slug": uuid.uuid4().hex[:12], "title": "L", "description": ""}
        return str(self.call("POST", f"{V2}/", body | more)["id"])

    def block(self, number: int) -> str:
        return f"lb:{self.org}:{self.slug}:problem:problem-{number}"

    def create(self, number: int) -> None:
        body = {"block_type": "problem", "definition_id": f"problem-{number}", "olx": olx(number)}
        self.call("POST", f"{V2}/{self.key}/blocks/", body)
        if number % 10 == 0:
            path = f"{V2}/blocks/{self.block(number)}/assets/static/figure.png"
            self.call.upload("PUT", path, "content", figure(number))

    def edit(self, number: int, edit: int) -> None:
        body = {"olx": olx(number, edit)}
        self.call("POST", f"{V2}/blocks/{self.block(number)}/olx/", body)

    def edit_many(self, numbers: Iterable[int], edit: int) -> None:
        blocks = [{"usage_key": self.block(each), "olx": olx(each, edit)} for each in numbers]
        for first in range(0, len(blocks), 1000):
            some = blocks[first : first + 1000]
            self.call("POST", f"{V2}/{self.key}/blocks/bulk_edit/", {"blocks": some})

    def publish(self, number: int) -> None:
        self.call("POST", f"{V2}/blocks/{self.block(number)}/publish/")

    def publish_all(self) -> None:
        self.call("POST", f"{V2}/{self.key}/commit/")

    def flags(self) -> int:
        """Every component with its flag, page by page."""
        changed, page = 0, 1
        while True:
            found = self.call("GET", f"{V2}/{self.key}/blocks/?page={page}&page_size=100")
            changed += sum(one["has_unpublished_changes"] for one in found["results"])
            if found["next"] is None:
                return changed
            page += 1

    def container(self, kind: str, name: str, children: Sequence[str]) -> str:
        body = {"container_type_code": kind, "display_name": name, "slug": name}
        made = self.call("POST", f"{V2}/{self.key}/containers/", body)["id"]
        path = f"{V2}/containers/{made}/children/"
        self.call("POST", path, {"usage_keys": list(children)})
        return str(made)

    def tree(self, count: int) -> tuple[list[str], str]:
        """Units of 20 components, subsections of 10 units, one section."""
        blocks = [self.block(number) for number in range(count)]
        units = [
            self.container("unit", f"unit-{first}", blocks[first : first + 20])
            for first in range(0, count, 20)
        ]
        subsections = [
            self.container("subsection", f"subsection-{first}", units[first : first + 10])
            for first in range(0, len(units), 10)
        ]
        return units, self.container("section", "section", subsections)

    def create_together(self, count: int) -> None:
        """Each in a request of its own, CALLERS of them at a time."""

        def some(first: int) -> None:
            own = copy(self)
            own.call = Caller(self.suite.ports["libraries"])
            with closing(own.call):
                for number in range(first, count, CALLERS):
                    own.create(number)

        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(some, range(CALLERS)))

    def contain(self, units: Sequence[str]) -> list[bool]:
        """Of many units at once."""
        found = self.call("POST", f"{V2}/{self.key}/read/", {"keys": list(units)})
        return [item["has_unpublished_changes"] for item in found["items"]]

    def contains(self, unit: str) -> bool:
        return bool(self.call("GET", f"{V2}/containers/{unit}/")["has_unpublished_changes"])

    def history(self, number: int) -> None:
        self.call("GET", f"{V2}/blocks/{self.block(number)}/draft_history/")
        self.call("GET", f"{V2}/blocks/{self.block(number)}/publish_history/")

    def collect(self, count: int) -> None:
        keys = [self.block(number) for number in range(count)]
        path = f"{V2}/{self.key}/collections/all/items/"
        self.call("PATCH", path, {"usage_keys": keys})

    def backup(self) -> str:
        task = self.call("POST", f"{V2}/{self.key}/backup/")["task_id"]
        found = self._ended(f"{V2}/{self.key}/backup/?task_id={task}")
        return str(found["url"])

    def restore(self, archive: bytes) -> str:
        task = self.call.upload("POST", f"{V2}/restore/", "file", archive)["task_id"]
        found = self._ended(f"{V2}/restore/?task_id={task}")
        return self.make_library(learning_package=found["result"]["learning_package_id"])

    def _ended(self, path: str) -> Any:
        while True:
            found = self.call("GET", path)
            if found["state"] == "Succeeded":
                return found
            if found["state"] in ("Failed", "Canceled"):
                raise SystemExit(f"{path}: {found}")
            time.sleep(0.01)


def run_phases(found: Suite, count: int, samples: int) -> dict[str, float]:
    """All phases, one after the other, on a library of its own."""
    author, other = Author(found), Author(found)
    with closing(author.call), closing(other.call):
        return _run_phases(Meter(found), author, other, count, samples)


def _run_phases(
    meter: Meter, author: Author, other: Author, count: int, samples: int
) -> dict[str, float]:
    phase, some = meter.phase, range(samples)

    def each(work: Callable[[int], Any]) -> Callable[[], Any]:
        return lambda: [work(number) for number in some]

    phase("create_components", lambda: [author.create(number) for number in range(count)])
    phase("publish_all", author.publish_all)
    phase("edit_one", each(lambda number: author.edit(number, 1)), samples)
    assert phase("list_unpublished_flags", author.flags) == samples
    unpublished = f"{V2}/{author.key}/unpublished/"
    counted = phase("count_unpublished", lambda: author.call("GET", unpublished))
    assert counted == {"changes": samples, "deletes": 0}
    phase("publish_one", each(author.publish), samples)
    units, section = phase("create_unit_tree", lambda: author.tree(count))
    publish_tree = f"{V2}/containers/{section}/publish/"
    phase("publish_tree", lambda: author.call("POST", publish_tree))
    phase("edit_in_tree", each(lambda number: author.edit(number, 2)), samples)
    contained = phase(
        "contains_unpublished", each(lambda place: author.contains(units[place % len(units)])),
        samples,
    )  # fmt: skip
    assert contained[0]
    assert phase(READ, lambda: author.contain(units), len(units))[0]
    phase("publish_one_in_tree", each(author.publish), samples)
    phase("bulk_edit", lambda: author.edit_many(range(count), 3))
    phase("publish_all_edited", author.publish_all)
    author.edit_many(range(min(100, count)), 4)
    phase("reset_100", lambda: author.call("DELETE", f"{V2}/{author.key}/commit/"))
    phase("history", each(author.history), samples)
    author.call("POST", f"{V2}/{author.key}/collections/", {"title": "all", "description": ""})
    phase("collection_add", lambda: author.collect(count))
    phase("backup", author.backup)
    restored = phase("restore", lambda: author.restore(archive_of(meter.suite)))
    assert author.call("GET", f"{V2}/{restored}/blocks/")["count"] == count
    phase(TOGETHER, lambda: other.create_together(count))
    return meter.found


def archive_of(found: Suite) -> bytes:
    """The newest archive in the object store."""
    archives = (found.stores.folder / "objects").rglob("*.zip")
    return max(archives, key=lambda path: path.stat().st_mtime).read_bytes()


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    components: int = 1000
    samples: int = 50
    rounds: int = 3
    large: int = 100_000
    alone: bool = False


def compare_phases(report: Report, found: Suite, sizes: Sizes, python: str) -> None:
    """Every phase in turn, ours and theirs; a round is one whole life of a library."""
    claims = {name: _claim(report, name, sizes) for name in (*PHASES, *OTHER_WAYS)}
    place = _peer(report, found, sizes, python)

    def own() -> dict[str, float]:
        return run_phases(found, sizes.components, sizes.samples)

    def theirs() -> dict[str, float]:
        seen = peers.ask("openedx_core", "all", sizes.components, place, python=python)
        for other, phase in OTHER_WAYS.items():
            seen |= {other: seen[phase], f"{other} statements": seen[f"{phase} statements"]}
        return seen

    entrants: dict[str, Callable[[], dict[str, float]]] = {"lyceum": own}
    if place:
        entrants[PEER] = theirs
    for number in range(sizes.rounds):
        for who in entrants if number % 2 == 0 else reversed(entrants):
            measured = entrants[who]()
            for name, claim in claims.items():
                claim.add(who, measured[name] * 1000)
                claim.add_count(who, measured[f"{name} statements"])


def _claim(report: Report, name: str, sizes: Sizes) -> Claim:
    return report.claim(name, "ms", PEER, GOALS.get(name, "> 1"), better="less")


def _peer(report: Report, found: Suite, sizes: Sizes, python: str) -> dict[str, str]:
    why = openedx_core.usable(python) if python else openedx_core.available()
    if sizes.alone:
        why = "not asked for"
    if why is not None:
        report.skipped[PEER] = why
        return {}
    url = found.database_url("peer_core")
    query(url, "create extension if not exists pg_stat_statements")
    return {"BENCH_DATABASE_URL": url, "BENCH_SAMPLES": str(sizes.samples)}


# Components with one version each, published, copied out of one that is there already.
FILL = """
with source as (
  select entity.id, entity.library_id, entity.type, draft.version_id, version_media.media_id
  from entity join draft on draft.entity_id = entity.id
  join version_media on version_media.version_id = draft.version_id and path = 'block.xml'
  where entity_ref = 'xblock.v1:problem:problem-1' and entity.library_id = $1
), made as (
  insert into entity (uuid, library_id, entity_ref, kind, type, code, can_stand_alone, created)
  select gen_random_uuid(), library_id, 'xblock.v1:problem:copy-' || number, 'component', type,
         'copy-' || number, true, now()
  from source, generate_series($2::int, $3::int) as number
  returning id
), versions as (
  insert into version (uuid, entity_id, version_num, title, created, created_by)
  select gen_random_uuid(), made.id, 1, 'Copy ' || made.id, now(), 'ada' from made
  returning id, entity_id
), files as (
  insert into version_media (version_id, path, media_id)
  select versions.id, 'block.xml', source.media_id from versions, source
)
select array_agg(entity_id), array_agg(id) from versions
"""


def fill(found: Suite, author: Author, count: int) -> None:
    """So many published components, by statements over sets."""

    async def run() -> None:
        connection = await asyncpg.connect(found.urls["libraries"])
        try:
            (library,) = await connection.fetchrow(
                "select id from library where key = $1", author.key
            )
            for first in range(0, count, 5000):
                last = min(count, first + 5000) - 1
                entities, versions = await connection.fetchrow(FILL, library, first, last)
                await connection.execute(
                    "select move_drafts($1, $2, $3, now(), 'ada')", library, entities, versions
                )
            await connection.execute("vacuum analyze")
        finally:
            await connection.close()

    asyncio.run(run())
    author.publish_all()


OPERATIONS = ("a page of its list", "get", "edit", "publish one", "the library itself")


def compare_large(report: Report, found: Suite, sizes: Sizes) -> None:
    """The same single operations in a library of many and in one of few."""
    few = f"{sizes.components:,} components"
    authors = {few: Author(found), f"{sizes.large:,} components": Author(found)}
    with contextlib.ExitStack() as stack:
        for author in authors.values():
            stack.callback(author.call.close)
        _compare_large(report, found, sizes, authors)


def _compare_large(report: Report, found: Suite, sizes: Sizes, authors: dict[str, Author]) -> None:
    few = next(iter(authors))
    for author, count in zip(authors.values(), (sizes.components, sizes.large), strict=True):
        for number in range(sizes.samples):
            author.create(number)
        fill(found, author, count - sizes.samples)
    claims = {
        name: report.claim(f"{name}, large", "ms", few, "> 0.5", better="less")
        for name in OPERATIONS
    }
    for number in range(sizes.rounds + 1):
        for who in authors if number % 2 == 0 else reversed(authors):
            for name, value in single_operations(authors[who], sizes.samples, number).items():
                if number:  # the first round warms up
                    claims[name].add(who, value)


def single_operations(author: Author, samples: int, edit: int) -> dict[str, float]:
    """The median of each, in milliseconds."""

    def median(work: Callable[[int], Any]) -> float:
        seen = []
        for number in range(samples):
            began = time.perf_counter()
            work(number)
            seen.append(time.perf_counter() - began)
        return statistics.median(seen) * 1000

    return {
        "a page of its list": median(lambda _: author.call("GET", f"{V2}/{author.key}/blocks/")),
        "get": median(lambda one: author.call("GET", f"{V2}/blocks/{author.block(one)}/")),
        "edit": median(lambda one: author.edit(one, edit)),
        "publish one": median(author.publish),
        "the library itself": median(lambda _: author.call("GET", f"{V2}/{author.key}/")),
    }


PARTS = ("phases", "large")


def measure(sizes: Sizes, parts: Sequence[str], python: str = "") -> Report:
    """All parts asked for, in one run."""
    own = {"LIBRARIES_WAIT_SECONDS": "300"}
    with suite(SERVICES, worker="services.libraries.worker", own=own, counted=True) as found:
        return measure_on(found, sizes, parts, python)


def measure_on(found: Suite, sizes: Sizes, parts: Sequence[str], python: str = "") -> Report:
    """The same on processes that run already."""
    report = Report("libraries", dict(vars(sizes)))
    run_phases(found, 20, 4)  # warm-up
    if "phases" in parts:
        compare_phases(report, found, sizes, python)
    if "large" in parts:
        compare_large(report, found, sizes)
    return report


def run(
    components: Annotated[int, typer.Option(help="components of a library")] = Sizes.components,
    samples: Annotated[int, typer.Option(help="how often single operations")] = Sizes.samples,
    rounds: Annotated[int, typer.Option(help="how often everyone is measured")] = Sizes.rounds,
    large: Annotated[int, typer.Option(help="components of the large library")] = Sizes.large,
    alone: Annotated[bool, typer.Option(help="no peers")] = Sizes.alone,
    part: Annotated[list[str] | None, typer.Option(help=f"only {', '.join(PARTS)}")] = None,
    core_python: Annotated[str, typer.Option(help="python of a venv with openedx-core")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="write JSON there")] = None,
) -> None:
    """Measure libraries."""
    sizes = Sizes(components, samples, rounds, large, alone)
    write([measure(sizes, part or PARTS, core_python)], json_file)


if __name__ == "__main__":
    typer.run(run)
