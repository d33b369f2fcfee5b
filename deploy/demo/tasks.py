"""Chapters about tasks: a conflict, a cancel, a killed worker, each in the middle of a backup."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from deploy import embedded
from deploy.demo.content import Content, copies, pack
from deploy.demo.service import (
    FINAL,
    LIBRARIES,
    LIMIT,
    POLL,
    TASKS,
    DemoFailed,
    Service,
    moment,
)
from deploy.demo.terminal import Story, bar, console

# Enough components that a backup can be caught in its middle.
MANY = 3000


def imported(service: Service, story: Story, library: str, archive: bytes, title: str) -> None:
    started = time.monotonic()
    status = service.follow(service.start_import(library, archive), title)
    if status["base_state"] != "Succeeded":
        raise DemoFailed(f"The import ended {status['state']}: {status['error']}")
    seconds = time.monotonic() - started
    count = service.call("GET", f"{LIBRARIES}/{library}/")["num_blocks"]
    story.say(f"{library} now has {count} components ({seconds:.1f} s)")
    story.keep(f"import into {library}", f"{count} components in {seconds:.1f} s")


def publish(service: Service, story: Story, library: str) -> None:
    started = time.monotonic()
    service.publish(library)
    found = service.call("GET", f"{LIBRARIES}/{library}/")
    if found["has_unpublished_changes"]:
        raise DemoFailed(f"{library} still has unpublished changes.")
    story.say(f"{library}: everything is published ({time.monotonic() - started:.1f} s)")


@dataclass
class Large:
    """A library that holds the same content many times, under codes that end in a number."""

    service: Service
    story: Story
    library: str
    content: Content
    copies: int = 0

    def fill(self) -> None:
        """Import so many more copies that there are MANY more components, and publish them."""
        number = max(1, MANY // len(self.content))
        numbers = range(self.copies, self.copies + number)
        self.story.say(f"the content is imported {number} times over")
        archive = pack(copies(self.content, numbers))
        title = f"import into {self.library}"
        imported(self.service, self.story, self.library, archive, title)
        publish(self.service, self.story, self.library)
        self.copies += number

    def catch(self, title: str, scene: Callable[[Service, Story, str], bool]) -> None:
        """Play a scene in the middle of a backup; where it was over too soon, with more content."""
        self.story.chapter(title)
        for _ in range(4):
            if scene(self.service, self.story, self.library):
                return
            self.story.say("the backup was over before that; once more with a larger library")
            self.fill()
        raise DemoFailed("No backup could be caught in its middle.")


def large_library(service: Service, story: Story, slug: str, content: Content) -> Large:
    story.chapter("A larger library, so that a backup takes a while")
    large = Large(service, story, service.create_library(slug, "The same, many times"), content)
    large.fill()
    return large


def play(suite: embedded.Suite, large: Large) -> None:
    """Everything that can come between a backup and its end."""
    large.catch("While a backup runs, ask for a conflicting `publish all`", conflicting_publish)
    large.catch("Cancel another backup in its middle", canceled_backup)
    large.catch(
        "Kill the worker in the middle of a third backup",
        lambda *scene: killed_worker(suite, *scene),
    )


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
    if ended["base_state"] != "Succeeded":
        raise DemoFailed(f"The backup of a killed worker ended {ended['base_state']}.")
    story.say(f"after {seconds:.0f} s it was whole: run again, on the lock it had kept")
    story.keep("worker killed in a backup", f"run again by itself, whole after {seconds:.0f} s")
    return True
