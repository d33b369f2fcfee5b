"""`make demo`: the main job on real content, told on the terminal. Every line is what happened."""

import asyncio
import io
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy import embedded
from services.libraries.archive import ByteStream
from services.libraries.archive_reading import read_archive
from services.libraries.entries import Folder, Tree, read
from services.libraries.olx_trees import OlxTree
from services.libraries.unpacking import unpack
from shared.callers import make_token

SAMPLE = Path(__file__).parents[1] / "samples" / "coast-and-sky"
LIBRARIES, TASKS, PULP = "/api/libraries/v2", "/api/tasks", "/pulp/api/v3/tasks"
FINAL = {"Succeeded", "Failed", "Canceled"}
POLL = 0.1
LIMIT = 120.0
# Enough components that a backup can be caught in its middle.
MANY = 3000
console = Console(highlight=False)


class DemoFailed(RuntimeError):
    """Something did not come out as told; the text says what."""


@dataclass
class Service:
    """The suite over HTTP, as one staff person sees it."""

    http: httpx.Client

    def call(self, method: str, path: str, *, ok: int = 200, **kwargs: Any) -> Any:
        answer = self.http.request(method, path, **kwargs)
        if answer.status_code != ok:
            raise DemoFailed(f"{method} {path} answered {answer.status_code}: {answer.text[:300]}")
        return answer.json() if answer.content else None

    def create_library(self, slug: str, title: str) -> str:
        body = {"org": "Demo", "slug": slug, "title": title, "description": ""}
        key: str = self.call("POST", f"{LIBRARIES}/", json=body)["id"]
        return key

    def start_import(self, library: str, archive: bytes) -> str:
        files = {"file": ("content.tar.gz", archive, "application/gzip")}
        task: str = self.call("POST", f"{LIBRARIES}/{library}/import/", files=files)["task_id"]
        return task

    def start_backup(self, library: str) -> str:
        task: str = self.call("POST", f"{LIBRARIES}/{library}/backup/")["task_id"]
        return task

    def publish(self, library: str) -> None:
        self.call("POST", f"{LIBRARIES}/{library}/commit/")

    def start_publish(self, library: str) -> str:
        path = f"{LIBRARIES}/{library}/commit/?wait=false"
        task: str = self.call("POST", path, ok=202)["task_id"]
        return task

    def status(self, task: str) -> dict[str, Any] | None:
        """The user task, or None while the news of it is still on its way."""
        answer = self.http.get(f"{TASKS}/v1/tasks/{task}/")
        if answer.status_code == 404:
            return None
        found: dict[str, Any] = answer.json()
        return found

    def dispatched(self, task: str) -> dict[str, Any]:
        """The dispatcher's side of the same task."""
        found: dict[str, Any] = self.call("GET", f"{PULP}/{task}/")
        return found

    def wait(
        self, task: str, until: Callable[[dict[str, Any]], bool], what: str, limit: float = LIMIT
    ) -> dict[str, Any]:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            status = self.status(task)
            if status is not None and until(status):
                return status
            time.sleep(POLL / 5)
        raise DemoFailed(f"{what}: not within {limit:.0f} s")

    def follow(self, task: str, title: str) -> dict[str, Any]:
        """Wait for a task's end behind a live progress bar."""
        with bar() as progress:
            row = progress.add_task(title, total=None, stage="")
            end = time.monotonic() + LIMIT
            while time.monotonic() < end:
                status = self.status(task)
                if status is not None:
                    progress.update(
                        row,
                        total=status["total_steps"] or None,
                        completed=status["completed_steps"],
                        stage=status["state"],
                    )
                    if status["base_state"] in FINAL:
                        return status
                time.sleep(POLL)
        raise DemoFailed(f"{title}: no end within {LIMIT:.0f} s")


@dataclass
class Story:
    """What happened so far, for the table at the end."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    archive: Path | None = None

    def chapter(self, text: str) -> None:
        console.print(f"\n[bold]{text}[/bold]")

    def say(self, text: str) -> None:
        console.print(f"  {text}")

    def keep(self, what: str, how: str) -> None:
        self.rows.append((what, how))


def bar() -> Progress:
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.completed:>5.0f}/{task.total}"),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
        console=console,
    )


def expected(tree: OlxTree) -> dict[str, tuple[str, dict[str, bytes]]]:
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


def copies(
    content: dict[str, tuple[str, dict[str, bytes]]], numbers: range
) -> Iterator[tuple[str, bytes]]:
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


def tell(suite: embedded.Suite, service: Service, story: Story, content: Path) -> None:
    """The whole story."""
    mark = time.strftime("%m%d-%H%M%S")
    with opened(content) as tree:
        olx = OlxTree(tree)
        wanted = expected(olx)
        story.chapter(f"1. Import {olx.title or content.name}: {len(wanted)} components")
        small = service.create_library(f"small-{mark}", olx.title or content.name)
        imported(service, story, small, pack(as_is(tree)), f"import into {small}")
    story.chapter("2. Publish it")
    publish(service, story, small)
    story.chapter("3. A larger library, so that a backup takes a while")
    large = service.create_library(f"large-{mark}", "The same, many times")
    size = fill(service, story, large, wanted, start=0)
    publish(service, story, large)
    caught(service, story, large, wanted, size, conflicting_publish)
    caught(service, story, large, wanted, size, canceled_backup)
    caught(
        service, story, large, wanted, size,
        lambda *args: killed_worker(suite, *args),
    )  # fmt: skip
    story.chapter("7. Download the archive and compare it with what was imported")
    verify(suite, service, story, small, wanted)


def imported(service: Service, story: Story, library: str, archive: bytes, title: str) -> None:
    started = time.monotonic()
    status = service.follow(service.start_import(library, archive), title)
    if status["base_state"] != "Succeeded":
        raise DemoFailed(f"The import ended {status['state']}: {status['error']}")
    seconds = time.monotonic() - started
    count = service.call("GET", f"{LIBRARIES}/{library}/")["num_blocks"]
    story.say(f"{library} now has {count} components ({seconds:.1f} s)")
    story.keep(f"import into {library}", f"{count} components in {seconds:.1f} s")


def fill(
    service: Service,
    story: Story,
    library: str,
    content: dict[str, tuple[str, dict[str, bytes]]],
    start: int,
) -> int:
    """Import so many copies that there are MANY more components; the next free copy number."""
    number = max(1, MANY // len(content))
    numbers = range(start, start + number)
    story.say(f"the content is imported {number} times over, under codes that end in a number")
    archive = pack(copies(content, numbers))
    imported(service, story, library, archive, f"import into {library}")
    return start + number


def publish(service: Service, story: Story, library: str) -> None:
    started = time.monotonic()
    service.publish(library)
    found = service.call("GET", f"{LIBRARIES}/{library}/")
    if found["has_unpublished_changes"]:
        raise DemoFailed(f"{library} still has unpublished changes.")
    story.say(f"{library}: everything is published ({time.monotonic() - started:.1f} s)")


Scene = Callable[[Service, Story, str], bool]


def caught(
    service: Service,
    story: Story,
    library: str,
    content: dict[str, tuple[str, dict[str, bytes]]],
    size: int,
    scene: Scene,
) -> None:
    """Play a scene in the middle of a backup; on a machine too fast for it, with more content."""
    for _ in range(4):
        if scene(service, story, library):
            return
        story.say("the backup was over before that; once more with a larger library")
        size = fill(service, story, library, content, size)
        publish(service, story, library)
    raise DemoFailed("No backup could be caught in its middle.")


def in_the_middle(service: Service, library: str) -> str | None:
    """A backup that has written some, and not all, of its entries; None when it was too fast."""
    task = service.start_backup(library)
    status = service.wait(
        task,
        lambda found: found["completed_steps"] > 0 or found["base_state"] in FINAL,
        "the backup's first progress",
    )
    return task if status["base_state"] not in FINAL else None


def conflicting_publish(service: Service, story: Story, library: str) -> bool:
    story.chapter("4. While a backup runs, ask for a conflicting `publish all`")
    edit_something(service, library)
    backup = in_the_middle(service, library)
    if backup is None:
        return False
    publishing = service.start_publish(library)
    waited = False
    with bar() as progress:
        first = progress.add_task("backup", total=None, stage="")
        second = progress.add_task("publish", total=1, stage="")
        while True:
            one, two = service.status(backup), service.status(publishing)
            for row, status in ((first, one), (second, two)):
                if status is not None:
                    total, done = status["total_steps"] or None, status["completed_steps"]
                    progress.update(row, total=total, completed=done, stage=status["state"])
            if one and two and one["base_state"] == "In Progress":
                waited = waited or two["base_state"] == "Pending"
            if one and two and {one["base_state"], two["base_state"]} <= FINAL:
                break
            time.sleep(POLL)
    ended = moment(service.dispatched(backup)["finished_at"])
    began = moment(service.dispatched(publishing)["started_at"])
    if not waited or one["base_state"] != "Succeeded" or two["base_state"] != "Succeeded":
        return False
    if began < ended:
        raise DemoFailed("The publish began before the backup had ended.")
    gap = (began - ended).total_seconds() * 1000
    story.say(f"the publish waited for the lock and began {gap:.0f} ms after the backup's end")
    story.keep("publish all during a backup", f"waited, began {gap:.0f} ms after its end")
    return True


def edit_something(service: Service, library: str) -> None:
    """Leave an unpublished change, so that there is something to publish."""
    block = service.call("GET", f"{LIBRARIES}/{library}/blocks/", params={"page_size": 1})
    key = block["results"][0]["id"]
    olx = service.call("GET", f"{LIBRARIES}/blocks/{key}/olx/")["olx"]
    service.call("POST", f"{LIBRARIES}/blocks/{key}/olx/", json={"olx": olx})


def canceled_backup(service: Service, story: Story, library: str) -> bool:
    story.chapter("5. Cancel another backup in its middle")
    backup = in_the_middle(service, library)
    if backup is None:
        return False
    status = service.status(backup) or {}
    asked = time.monotonic()
    answer = service.call("POST", f"{TASKS}/v0/tasks/{backup}/cancel/")
    if answer["state"] != "Canceled":
        return False
    while service.dispatched(backup)["state"] not in ("canceled", "completed", "failed"):
        if time.monotonic() - asked > LIMIT:
            raise DemoFailed("The canceled backup did not stop.")
        time.sleep(POLL / 5)
    if service.dispatched(backup)["state"] != "canceled":
        return False
    seconds = time.monotonic() - asked
    at = f"{status.get('completed_steps')} of {status.get('total_steps')}"
    story.say(f"canceled at {at}; its worker had stopped {seconds * 1000:.0f} ms later")
    story.keep("backup canceled in its middle", f"stopped within {seconds * 1000:.0f} ms")
    return True


def killed_worker(suite: embedded.Suite, service: Service, story: Story, library: str) -> bool:
    story.chapter("6. Kill the worker in the middle of a third backup")
    backup = in_the_middle(service, library)
    process = suite.child("libraries-worker").process()
    if backup is None or process is None:
        return False
    process.kill()
    process.wait(10)
    killed = time.monotonic()
    status = service.status(backup) or {}
    if status.get("base_state") in FINAL:
        embedded.up(suite, lambda _: None)
        return False
    story.say(f"kill -9 {process.pid}, the worker of libraries, at "
              f"{status.get('completed_steps')} of {status.get('total_steps')}")  # fmt: skip
    embedded.up(suite, lambda line: story.say(line))
    with console.status("  the dispatcher waits for the worker's next sign of life ..."):
        ended = service.wait(
            backup, lambda found: found["base_state"] in FINAL, "the end of the backup"
        )
    seconds = time.monotonic() - killed
    if ended["base_state"] != "Failed":
        raise DemoFailed(f"The backup of a killed worker ended {ended['base_state']}.")
    reason = ended["error"]["message"]
    story.say(f"after {seconds:.0f} s it ended Failed: {reason}")
    again = service.follow(service.start_backup(library), "the same backup again")
    if again["base_state"] != "Succeeded":
        raise DemoFailed(f"The repeated backup ended {again['base_state']}.")
    story.keep("worker killed in a backup", f"Failed after {seconds:.0f} s, lock free, repeat fine")
    return True


def verify(
    suite: embedded.Suite,
    service: Service,
    story: Story,
    library: str,
    wanted: dict[str, tuple[str, dict[str, bytes]]],
) -> None:
    status = service.follow(service.start_backup(library), f"backup of {library}")
    artifact = next(found for found in status["artifacts"] if found["name"] == "Output")
    folder = suite.folder / "demo"
    folder.mkdir(exist_ok=True)
    target = folder / artifact["file_name"]
    with service.http.stream("GET", artifact["file"]) as answer, target.open("wb") as file:
        for piece in answer.iter_bytes():
            file.write(piece)
    if target.stat().st_size != artifact["size"]:
        raise DemoFailed("The download has another size than the archive.")
    with read_archive(target) as contents:
        found = {
            entity.key: {
                media.path: whole(media.data)
                for version in entity.versions
                if version.version_num == entity.published_num
                for media in version.media
            }
            for entity in contents.entities
        }
    different = [
        ref
        for ref, (olx, files) in wanted.items()
        if found.get(ref) != {"block.xml": olx.encode(), **files}
    ]
    if different or len(found) != len(wanted):
        raise DemoFailed(f"{len(different)} components differ, the first one: {different[:1]}")
    count = sum(len(files) for _, files in wanted.values())
    story.say(f"{len(found)} components and {count} files are byte for byte what was imported")
    story.keep("archive compared", f"{len(found)} components, {count} files equal")
    story.archive = target


def whole(data: bytes | ByteStream) -> bytes:
    """All of a file in an archive."""
    if isinstance(data, bytes):
        return data
    stream = data

    async def collect() -> bytes:
        return b"".join([piece async for piece in stream()])

    return asyncio.run(collect())


def moment(text: str | None) -> datetime:
    if text is None:
        raise DemoFailed("A task that has ended lacks its times.")
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def summary(suite: embedded.Suite, story: Story, seconds: float) -> None:
    table = Table(title="What happened", title_justify="left", box=None, pad_edge=False)
    table.add_column("", style="bold")
    table.add_column("")
    for row in story.rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print(f"\nThe archive: {story.archive}", soft_wrap=True)
    console.print(
        f"The whole story took {seconds:.0f} s. To look around: [bold]make up[/bold], then "
        f"{suite.origin}/ and [bold]make token user=ada staff=1[/bold]."
    )


def run(content: Path) -> None:
    """Start what is not running, tell the story, and stop what was started."""
    started = time.monotonic()
    suite = embedded.Suite.of_environment()
    story = Story()
    story.chapter("0. Start everything")
    was_running = suite.child("web").process() is not None
    embedded.up(suite, story.say)
    try:
        token = make_token(suite.secrets["token_secret"], "ada", staff=True)
        headers = {"Authorization": f"JWT {token}"}
        with httpx.Client(
            base_url=suite.origin, headers=headers, timeout=120, trust_env=False
        ) as http:
            tell(suite, Service(http), story, content)
    finally:
        if not was_running:
            embedded.down(suite, lambda _: None)
    summary(suite, story, time.monotonic() - started)


def main(
    content: Annotated[
        Path, typer.Option(help="an OLX folder, or a .tar.gz or .zip of one")
    ] = SAMPLE,
) -> None:
    """Import, publish, back up, cancel, kill, repeat, verify: on the sample or your content."""
    if not content.exists():
        typer.echo(f"lyceum: there is no {content}", err=True)
        raise typer.Exit(1)
    try:
        run(content)
    except (embedded.CannotStart, DemoFailed, httpx.HTTPError) as error:
        typer.echo(f"lyceum: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
