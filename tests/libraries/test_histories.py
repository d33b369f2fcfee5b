"""Histories of components and containers. contract: libraries §3.10, content_core §2.10"""

from typing import Any
from uuid import uuid4

import pytest

from shared.testing import as_user
from tests.libraries.conftest import V2
from tests.libraries.test_api import LIB
from tests.libraries.test_containers import Builder, author, ct, p

__all__ = ["author"]
FIELDS = [
    "contributor", "changed_at", "title", "item_type", "action", "old_version", "new_version",
]  # fmt: skip


async def drafted(author: Builder, key: str) -> list[tuple[str, str]]:
    kind = "blocks" if key.startswith("lb:") else "containers"
    rows = (await author.get(f"{kind}/{key}/draft_history/")).json()
    return [(row["item_type"], row["action"]) for row in rows]


async def groups(author: Builder, key: str) -> list[dict[str, Any]]:
    kind = "blocks" if key.startswith("lb:") else "containers"
    answer = await author.get(f"{kind}/{key}/publish_history/")
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()
    return found


async def entries(author: Builder, key: str, log: str) -> list[tuple[str, str, Any, Any]]:
    answer = await author.get(
        f"{LIB}/publish_history_entries/", scope_entity_key=key, publish_log_uuid=log
    )
    assert answer.status_code == 200
    return [
        (row["item_type"], row["action"], row["old_version"], row["new_version"])
        for row in answer.json()
    ]


async def latest(author: Builder, key: str) -> list[tuple[str, str, Any, Any]]:
    group = (await groups(author, key))[0]
    return await entries(author, group["scope_entity_key"] or key, group["publish_log_uuid"])


async def test_39_40_42_from_creation_to_publishing(author: Builder) -> None:
    await author.made("a")
    await author.edit("a", "2")
    await author.edit("a", "2", "Renamed")

    rows = (await author.get(f"blocks/{p('a')}/draft_history/")).json()
    assert [row["action"] for row in rows] == ["renamed", "edited", "created"]
    assert list(rows[0]) == FIELDS
    assert (rows[0]["old_version"], rows[0]["new_version"]) == (2, 3)
    assert (rows[0]["title"], rows[0]["item_type"]) == ("Renamed", "problem")
    assert rows[0]["contributor"]["username"] == "ines"
    pictures = rows[0]["contributor"]["profile_image_urls"]
    assert list(pictures) == ["full", "large", "medium", "small"]
    created = (await author.get(f"blocks/{p('a')}/creation_entry/")).json()
    assert created == rows[-1]
    assert (created["action"], created["old_version"], created["new_version"]) == (
        "created", None, 1,
    )  # fmt: skip

    await author.publish(p("a"))

    assert await drafted(author, p("a")) == []
    (group,) = await groups(author, p("a"))
    assert group["direct_published_entities"] == [
        {"entity_key": p("a"), "title": "Renamed", "entity_type": "problem"}
    ]
    assert (group["scope_entity_key"], group["published_by"]) == (p("a"), "ines")
    answer = await author.get(
        f"{LIB}/publish_history_entries/",
        scope_entity_key=p("a"),
        publish_log_uuid=group["publish_log_uuid"],
    )
    assert answer.json() == rows


async def test_41_published_through_its_unit(author: Builder) -> None:
    await author.made("a")
    unit = await author.container("u", "unit", p("a"))

    await author.publish(unit)

    (group,) = await groups(author, p("a"))
    named = {"entity_key": unit, "title": "u", "entity_type": "unit"}
    assert group["direct_published_entities"] == [named]
    assert group["scope_entity_key"] == p("a")
    (group,) = await groups(author, unit)
    assert (group["direct_published_entities"], group["scope_entity_key"]) == ([named], None)
    found = await entries(author, unit, group["publish_log_uuid"])
    assert found == [
        ("unit", "edited", 1, 2), ("unit", "created", None, 1), ("problem", "created", None, 1),
    ]  # fmt: skip


async def test_what_was_reverted_before_a_publish_is_not_in_it(author: Builder) -> None:
    await author.made("a")
    await author.edit("a", "2")
    await author.publish(p("a"))
    await author.edit("a", "3")
    await author.edit("a", "4")
    await author.delete(f"{LIB}/commit/")
    assert await drafted(author, p("a")) == []
    await author.edit("a", "5")
    await author.publish(p("a"))

    assert await latest(author, p("a")) == [("problem", "edited", 2, 5)]


async def test_what_comes_after_a_publish_is_never_in_it(author: Builder) -> None:
    await author.made("a")
    await author.publish(p("a"))
    (group,) = await groups(author, p("a"))
    await author.edit("a", "2")
    await author.delete(f"{LIB}/commit/")
    await author.remove(p("a"))
    await author.restore(p("a"), "before_deletion/")
    await author.edit("a", "3")

    found = await entries(author, p("a"), group["publish_log_uuid"])

    assert found == [("problem", "created", None, 1)]
    assert await drafted(author, p("a")) == [("problem", "edited")]


async def test_deletions_in_histories(author: Builder) -> None:
    await author.made("a")
    await author.remove(p("a"))
    assert await drafted(author, p("a")) == [("problem", "deleted"), ("problem", "created")]
    await author.restore(p("a"))
    await author.publish(p("a"))
    assert await latest(author, p("a")) == [("problem", "created", None, 1)]
    assert len(await latest(author, p("a"))) == 1

    await author.remove(p("a"))
    rows = (await author.get(f"blocks/{p('a')}/draft_history/")).json()
    assert [(row["action"], row["title"]) for row in rows] == [("deleted", "Blank Problem")]
    await author.publish_all()
    assert await drafted(author, p("a")) == []
    assert await latest(author, p("a")) == [("problem", "deleted", 1, None)]


async def test_a_deletion_that_was_taken_back_is_told_with_what_was_published(
    author: Builder,
) -> None:
    await author.made("a")
    await author.publish(p("a"))
    await author.edit("a", "2")
    await author.remove(p("a"))
    await author.restore(p("a"))
    await author.publish(p("a"))

    assert [entry[1:] for entry in await latest(author, p("a"))] == [
        ("created", None, 2), ("deleted", 2, None), ("edited", 1, 2),
    ]  # fmt: skip


async def test_a_reverted_new_component_is_deleted_on_top_of_its_history(author: Builder) -> None:
    await author.made("a")
    await author.delete(f"{LIB}/commit/")

    assert await drafted(author, p("a")) == [("problem", "deleted"), ("problem", "created")]


async def test_a_childs_edit_is_told_once(author: Builder) -> None:
    await author.made("a")
    unit = await author.container("u", "unit", p("a"))
    top = await author.container("s", "subsection", unit)
    await author.publish(top)

    await author.edit("a", "2")
    await author.call("PATCH", f"containers/{unit}/", {"display_name": "New"})

    assert await drafted(author, top) == [("problem", "edited")]
    assert await drafted(author, unit) == [("unit", "renamed"), ("problem", "edited")]
    await author.publish(p("a"))
    # The unit only passed the news on: its own change is in a later publish.
    assert await latest(author, unit) == [("problem", "edited", 1, 2)]
    await author.publish(top)
    assert await latest(author, unit) == [("unit", "renamed", 2, 3)]
    assert await latest(author, top) == []


async def test_a_child_that_left_stays_in_the_publishes_it_was_part_of(author: Builder) -> None:
    await author.made("a", "b")
    unit = await author.container("u", "unit", p("a"), p("b"))
    await author.publish(unit)
    log = (await groups(author, unit))[0]["publish_log_uuid"]
    before = await entries(author, unit, log)

    await author.put_children(unit, p("a"), method="DELETE")

    assert await entries(author, unit, log) == before
    assert len(before) == 4


async def test_a_commit_is_one_group_that_names_what_was_asked_for(author: Builder) -> None:
    await author.made("a", "b")
    unit = await author.container("u", "unit", p("a"))

    await author.publish_all()

    (group,) = await groups(author, unit)
    named = {entity["entity_key"] for entity in group["direct_published_entities"]}
    assert named == {p("a"), p("b"), unit}
    (group,) = await groups(author, p("b"))
    named = {entity["entity_key"] for entity in group["direct_published_entities"]}
    assert named == {p("b")}


async def test_what_readers_saw_after_each_publish(author: Builder) -> None:
    await author.made("a", "b", "never")
    unit = await author.container("u", "unit", p("a"), p("b"), p("a"))
    await author.publish(unit)
    await author.edit("a", "2", "Renamed")
    await author.publish(p("a"))
    await author.remove(p("b"))
    await author.put_children(unit, p("never"))
    await author.remove(p("never"))
    await author.publish(unit)
    await author.edit("a", "3", "Later")

    logs = [group["publish_log_uuid"] for group in await groups(author, unit)]
    found = []
    for log in reversed(logs):
        rows = (await author.get(f"containers/{unit}/publish_history/{log}/children/")).json()
        found.append([(row["id"], row["display_name"], row["version_num"]) for row in rows])

    first, old, new = (p("b"), "Blank Problem", 1), (p("a"), "Blank Problem", 1), "Renamed"
    assert found == [
        [old, first, old],
        [(p("a"), new, 2), first, (p("a"), new, 2)],
        [(p("a"), new, 2), (p("a"), new, 2)],
    ]
    for unknown in (str(uuid4()), "x"):
        answer = await author.get(f"containers/{unit}/publish_history/{unknown}/children/")
        assert answer.status_code == 404


async def test_contributors_are_those_of_the_published_changes(author: Builder) -> None:
    await author.made("a")
    await author.publish(p("a"))
    ada, ben = as_user("ada", staff=True), as_user("ben/x", staff=True)
    for number, who in enumerate((ada, ben, ada)):
        body = {"olx": f"<problem>{number}</problem>"}
        await author.http.post(f"{V2}/blocks/{p('a')}/olx/", json=body, headers=who)
    await author.publish(p("a"))

    first, second = [group["contributors"] for group in await groups(author, p("a"))]

    assert [person["username"] for person in first] == ["ada", "ben/x"]
    assert [person["username"] for person in second] == ["ines"]


@pytest.mark.parametrize(
    ("params", "status", "body"),
    [
        ({}, 400, {"error": "scope_entity_key and publish_log_uuid are required."}),
        ({"publish_log_uuid": "x"}, 400, None),
        ({"scope_entity_key": p("a"), "publish_log_uuid": "x"}, 400,
         {"error": "Invalid publish_log_uuid: 'x'"}),
        ({"scope_entity_key": "x", "publish_log_uuid": str(uuid4())}, 400,
         {"error": "Invalid scope_entity_key: 'x'"}),
        ({"scope_entity_key": p("a"), "publish_log_uuid": str(uuid4())}, 200, []),
        ({"scope_entity_key": p("never"), "publish_log_uuid": str(uuid4())}, 200, []),
        ({"scope_entity_key": ct("never"), "publish_log_uuid": str(uuid4())}, 404, None),
        ({"scope_entity_key": ct("u", "section"), "publish_log_uuid": str(uuid4())}, 404, None),
        ({"scope_entity_key": "lb:CL-TEST:other:problem:a", "publish_log_uuid": str(uuid4())},
         404, None),
        ({"scope_entity_key": p("a"), "publish_log_uuid": "a\x00"}, 400, None),
    ],
)  # fmt: skip
async def test_asking_for_entries(
    author: Builder, params: dict[str, str], status: int, body: Any
) -> None:
    await author.create(slug="other")
    await author.made("a")
    await author.container("u")

    answer = await author.get(f"{LIB}/publish_history_entries/", **params)

    assert answer.status_code == status
    if body is not None:
        assert answer.json() == body


async def test_a_publish_of_another_library_tells_nothing(author: Builder) -> None:
    await author.made("a")
    await author.publish(p("a"))
    log = (await groups(author, p("a")))[0]["publish_log_uuid"]
    await author.create(slug="other")
    body = {"block_type": "problem", "definition_id": "a"}
    await author.post("lib:CL-TEST:other/blocks/", body)

    answer = await author.get(
        "lib:CL-TEST:other/publish_history_entries/",
        scope_entity_key="lb:CL-TEST:other:problem:a", publish_log_uuid=log,
    )  # fmt: skip

    assert (answer.status_code, answer.json()) == (200, [])


async def test_histories_of_what_never_existed(author: Builder) -> None:
    for tail in ("draft_history/", "publish_history/", "creation_entry/"):
        assert (await author.get(f"blocks/{p('x')}/{tail}")).status_code == 404
        assert (await author.get(f"containers/{ct('x')}/{tail}")).status_code == 404
