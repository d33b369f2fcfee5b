"""Chapters about authors' work: containers, a collection, search, history, taking changes back."""

import re
import time
from typing import Any

from deploy.demo.service import LIBRARIES, DemoFailed, Service
from deploy.demo.terminal import Story

UNITS, UNIT_SIZE = 3, 4
WORD = re.compile(r"[^\W\d_]{4,}")


def arrange(service: Service, story: Story, library: str) -> str:
    """A section of units out of the first components, published with one request; its key."""
    story.chapter("Arrange components: a section, a subsection, units")
    keys = first_components(service, library, UNITS * UNIT_SIZE)
    units = []
    for number, start in enumerate(range(0, len(keys), UNIT_SIZE), start=1):
        unit = create_container(service, library, "unit", f"Unit {number}")
        add_children(service, unit, keys[start : start + UNIT_SIZE])
        units.append(unit)
    subsection = create_container(service, library, "subsection", "A morning outside")
    add_children(service, subsection, units)
    section = create_container(service, library, "section", "Field trip")
    add_children(service, section, [subsection])
    preview = service.call("GET", f"{LIBRARIES}/containers/{section}/publish/preview/")
    story.say(f"publishing {section} would publish {len(preview['publishes'])} items")
    service.call("POST", f"{LIBRARIES}/containers/{section}/publish/")
    left = service.call("GET", f"{LIBRARIES}/{library}/")["has_unpublished_changes"]
    if left:
        raise DemoFailed("Publishing the section left something in it unpublished.")
    above = service.call("GET", f"{LIBRARIES}/blocks/{keys[0]}/hierarchy/")
    path = [above[level][0]["display_name"] for level in ("sections", "subsections", "units")]
    story.say(f"{keys[0]} is now in {' > '.join(path)}")
    story.keep("containers", f"{len(units)} units in a subsection in a section, published as one")
    return section


def first_components(service: Service, library: str, most: int) -> list[str]:
    page = service.call("GET", f"{LIBRARIES}/{library}/blocks/", params={"page_size": most})
    return [row["id"] for row in page["results"]]


def create_container(service: Service, library: str, kind: str, title: str) -> str:
    body = {"container_type": kind, "display_name": title}
    key: str = service.call("POST", f"{LIBRARIES}/{library}/containers/", json=body)["id"]
    return key


def add_children(service: Service, container: str, keys: list[str]) -> None:
    where = f"{LIBRARIES}/containers/{container}/children/"
    service.call("POST", where, json={"usage_keys": keys})


def collect_and_find(service: Service, story: Story, library: str) -> None:
    """A collection, a tag, and finding them again by a word, with what else there is of it."""
    story.chapter("Collect some, and find them")
    keys = first_components(service, library, UNIT_SIZE)
    body = {"title": "Favourites", "description": "What we use most"}
    code = service.call("POST", f"{LIBRARIES}/{library}/collections/", json=body)["key"]
    items = f"{LIBRARIES}/{library}/collections/{code}/items/"
    service.call("PATCH", items, json={"usage_keys": keys})
    service.call("PUT", f"{LIBRARIES}/blocks/{keys[0]}/tags/", json={"tags": ["outdoors"]})
    word = some_word(service.call("GET", f"{LIBRARIES}/blocks/{keys[0]}/"))
    began = time.monotonic()
    found = search(service, q=word, library=library)
    took = (time.monotonic() - began) * 1000
    if keys[0] not in [row["id"] for row in found["results"]]:
        raise DemoFailed(f"A search for {word!r} did not find {keys[0]}.")
    kinds = ", ".join(f"{count} x {name}" for name, count in found["facets"]["type"].items())
    story.say(f"{word!r} is found {found['count']} times ({kinds}) in {took:.0f} ms")
    tagged = search(service, tag="outdoors", collection=code, library=library)
    if [row["id"] for row in tagged["results"]] != [keys[0]]:
        raise DemoFailed("The tag and the collection together should find one component.")
    story.say(f"the tag `outdoors` in the collection `{code}` finds {keys[0]}")
    story.keep("search", f"{word!r} found {found['count']} times in {took:.0f} ms")


def some_word(block: dict[str, Any]) -> str:
    """A word of a component's title to look for; its whole title when that has none."""
    title: str = block["display_name"]
    words = WORD.findall(title)
    return words[0] if words else title


def search(service: Service, **wanted: str) -> dict[str, Any]:
    found: dict[str, Any] = service.call("GET", f"{LIBRARIES}/search/", params=wanted)
    return found


def change_one_s_mind(service: Service, story: Story, library: str) -> None:
    """Two edits and a deletion; what the history says of them; all taken back."""
    story.chapter("Edit, look at the history, change your mind")
    (key,) = first_components(service, library, 1)
    where = f"{LIBRARIES}/blocks/{key}"
    published = service.call("GET", f"{where}/olx/")["olx"]
    for number in (1, 2):
        edited = f"<!-- edit {number} -->{published}"
        service.call("POST", f"{where}/olx/", json={"olx": edited})
    service.call("DELETE", f"{where}/")
    service.call("POST", f"{where}/restore/before_deletion/", ok=204)
    history = service.call("GET", f"{where}/draft_history/")
    if service.call("GET", f"{where}/olx/")["olx"] != edited:
        raise DemoFailed("The restored component is not what was deleted.")
    for entry in reversed(history):
        story.say(f"version {entry['old_version']} -> {entry['new_version']}: {entry['action']}")
    service.call("POST", f"{where}/discard/")
    if service.call("GET", f"{where}/olx/")["olx"] != published:
        raise DemoFailed("Discarding the changes did not bring the published text back.")
    story.say("discarded: the text is the published one again")
    story.keep("history", f"{len(history)} changes of one component, then taken back")
