"""Several hands on one library at the same moment. contract: content_core §5.4, libraries §4.13"""

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from services.libraries import importing
from services.libraries.importing import import_library
from services.libraries.jobs import publish_library
from shared.testing import as_user
from tests.journeys.conftest import packed
from tests.libraries.conftest import STAFF, V2
from tests.libraries.runs import make_task
from tests.libraries.test_deletion_races import LIB, SUBSECTION, UNIT, Hands, block
from tests.libraries.test_publishing import query

ROUNDS = 12


@pytest_asyncio.fixture
async def hands(http: httpx.AsyncClient) -> Hands:
    hands = Hands(http)
    await hands.make()
    return hands


async def together(*calls: Awaitable[httpx.Response]) -> list[httpx.Response]:
    async with asyncio.timeout(60):
        return list(await asyncio.gather(*calls))


def statuses(answers: list[httpx.Response]) -> list[int]:
    return sorted(answer.status_code for answer in answers)


async def shown(hands: Hands, **params: Any) -> list[str]:
    answer = await hands.call("GET", f"containers/{UNIT}/children/", params=params)
    return [row["id"] for row in answer.json()]


async def save(hands: Hands, number: int, mark: int) -> httpx.Response:
    sent = {"olx": f"<problem>{mark}</problem>"}
    return await hands.call("POST", f"blocks/{block(number)}/olx/", sent)


async def publish_all(app: FastAPI, fence: int) -> None:
    task = make_task(app.state.database, app.state.files, fence=fence)
    await publish_library(task, library_key=LIB)


async def test_saves_of_one_component_at_once_get_a_number_each(hands: Hands) -> None:
    for mark in range(ROUNDS):
        answers = await together(*(save(hands, 0, mark) for _ in range(4)))

        numbers = sorted(answer.json()["version_num"] for answer in answers)
        assert statuses(answers) == [200] * 4
        assert numbers == [*range(numbers[0], numbers[0] + 4)]
        assert numbers[0] == 2 + 4 * mark


async def test_siblings_saved_at_once_are_all_saved_and_seen_from_above(hands: Hands) -> None:
    keys = {"usage_keys": [block(number) for number in range(4)]}
    await hands.call("PATCH", f"containers/{UNIT}/children/", keys)
    for mark in range(ROUNDS):
        await hands.call("POST", f"containers/{SUBSECTION}/publish/", {})
        top = await hands.call("GET", f"containers/{SUBSECTION}/")
        assert top.json()["has_unpublished_changes"] is False

        answers = await together(*(save(hands, number, mark) for number in range(4)))

        assert statuses(answers) == [200] * 4
        for number in range(4):
            olx = await hands.call("GET", f"blocks/{block(number)}/olx/")
            assert olx.json() == {"olx": f"<problem>{mark}</problem>"}
        top = await hands.call("GET", f"containers/{SUBSECTION}/")
        assert top.json()["has_unpublished_changes"] is True


async def test_an_edit_beside_publishing_all_is_in_it_or_after_it(
    hands: Hands, app: FastAPI
) -> None:
    await publish_all(app, 0)
    for mark in range(1, ROUNDS):
        await save(hands, 1, mark)

        answer, _, _ = await asyncio.gather(
            save(hands, 0, mark), publish_all(app, mark), publish_all(app, mark)
        )

        assert answer.status_code == 200
        found = (await hands.call("GET", f"blocks/{block(0)}/")).json()
        library = (await hands.call("GET", f"{LIB}/")).json()
        assert library["has_unpublished_changes"] is found["has_unpublished_changes"]
        unit = (await hands.call("GET", f"containers/{UNIT}/")).json()
        assert unit["has_unpublished_changes"] is found["has_unpublished_changes"]
        await publish_all(app, mark)
        unit = (await hands.call("GET", f"containers/{UNIT}/")).json()
        assert unit["has_unpublished_changes"] is False
    async with app.state.database.sessions() as session:
        twice = await query(
            session,
            "select entity_id, old_version_id from publish_record "
            "where old_version_id is distinct from new_version_id "
            "group by entity_id, old_version_id having count(*) > 1",
        )
    assert twice == []


async def test_children_replaced_by_two_are_the_list_of_one(hands: Hands) -> None:
    path = f"containers/{UNIT}/children/"
    for number in range(ROUNDS):
        dice = random.Random(number)
        wishes = [dice.sample([block(n) for n in range(4)], 3) for _ in range(3)]

        answers = await together(
            *(hands.call("PATCH", path, {"usage_keys": wish}) for wish in wishes)
        )

        assert statuses(answers) == [200] * 3
        assert await shown(hands) in wishes


async def test_a_container_published_while_its_children_change_shows_one_of_the_lists(
    hands: Hands,
) -> None:
    path = f"containers/{UNIT}"
    lists = [[block(0), block(1)], [block(2)], [block(3), block(2), block(0)]]
    await hands.call("PATCH", f"{path}/children/", {"usage_keys": lists[0]})
    for number in range(ROUNDS):
        wish = lists[number % 3]

        answers = await together(
            hands.call("POST", f"{path}/publish/", {}),
            hands.call("PATCH", f"{path}/children/", {"usage_keys": wish}),
            save(hands, 0, number),
            hands.call("POST", f"{path}/publish/", {}),
        )

        assert statuses(answers) == [200] * 4
        assert await shown(hands, published="true") in lists
        await hands.call("POST", f"{path}/publish/", {})
        assert await shown(hands, published="true") == wish
        unit = (await hands.call("GET", f"{path}/")).json()
        assert unit["has_unpublished_changes"] is False


async def test_a_collection_edited_by_many_has_all_that_was_added(hands: Hands) -> None:
    path = f"{LIB}/collections/c/items/"
    for _ in range(ROUNDS):
        keys = [block(number) for number in range(4)] + [UNIT]
        await hands.call("DELETE", path, {"usage_keys": keys})

        added = [hands.call("PATCH", path, {"usage_keys": [key, block(0)]}) for key in keys]
        renamed = [hands.call("PATCH", f"{LIB}/collections/c/", {"title": title}) for title in "xy"]
        answers = await together(*added, *renamed)

        assert statuses(answers) == [200] * 7
        found = (await hands.call("GET", f"{LIB}/collections/c/")).json()
        assert len(found["entities"]) == 5
        assert found["title"] in ("x", "y")


async def test_of_many_that_delete_a_collection_one_has_done_it(hands: Hands) -> None:
    path = f"{LIB}/collections/c/"
    for _ in range(ROUNDS):
        answers = await together(*(hands.call("DELETE", path) for _ in range(4)))

        assert statuses(answers) == [204, 404, 404, 404]
        await hands.call("POST", f"{path}restore/", {})


async def test_one_person_copies_in_two_windows_at_once(hands: Hands) -> None:
    for number in range(ROUNDS):
        reader = as_user(f"reader-{number}", staff=True)
        where = f"{V2}/containers/{UNIT}/copy/"

        answers = await together(*(hands.http.post(where, headers=reader) for _ in range(4)))

        assert statuses(answers) == [200] * 4


async def test_two_pastes_at_once_both_come(hands: Hands) -> None:
    before = (await hands.call("GET", f"{LIB}/")).json()["num_blocks"]
    for _ in range(ROUNDS):
        answers = await together(
            *(hands.call("POST", f"{LIB}/paste_clipboard/", {}) for _ in range(3))
        )

        assert statuses(answers) == [200] * 3
        assert len({answer.json()["id"] for answer in answers}) == 3
    after = (await hands.call("GET", f"{LIB}/")).json()["num_blocks"]
    assert after == before + 3 * ROUNDS


async def test_one_code_created_by_many_is_created_once(hands: Hands) -> None:
    for number in range(ROUNDS):
        made = {"block_type": "problem", "definition_id": f"n{number}"}
        unit = {"container_type": "unit", "display_name": "x", "slug": f"u{number}"}
        section = unit | {"container_type": "section"}

        blocks = await together(*(hands.call("POST", f"{LIB}/blocks/", made) for _ in range(4)))
        units = await together(
            *(hands.call("POST", f"{LIB}/containers/", one) for one in (unit, section, unit))
        )

        assert statuses(blocks) == [200, 400, 400, 400]
        assert statuses(units) == [200, 400, 400]


async def test_one_library_created_by_many_is_created_once(http: httpx.AsyncClient) -> None:
    for number in range(ROUNDS):
        body = {"org": "R", "slug": f"s{number}", "title": "T", "description": ""}

        answers = await together(*(http.post(f"{V2}/", json=body, headers=STAFF) for _ in range(4)))

        assert statuses(answers) == [200, 400, 400, 400]
        texts = {answer.text for answer in answers if answer.status_code == 400}
        assert texts == {'{"slug":"A library with that ID already exists."}'}


async def test_reverting_beside_saving_leaves_one_of_both(hands: Hands, app: FastAPI) -> None:
    await publish_all(app, 0)
    for mark in range(1, ROUNDS):
        before = (await hands.call("GET", f"blocks/{block(0)}/olx/")).json()

        answers = await together(
            save(hands, 0, mark), hands.call("DELETE", f"{LIB}/commit/"), save(hands, 1, mark)
        )

        assert statuses(answers) == [200] * 3
        found = (await hands.call("GET", f"blocks/{block(0)}/olx/")).json()
        assert found in ({"olx": f"<problem>{mark}</problem>"}, {"olx": "<problem />"}), before
        await hands.call("DELETE", f"{LIB}/commit/")
        library = (await hands.call("GET", f"{LIB}/")).json()
        assert library["has_unpublished_changes"] is False


async def test_what_is_deleted_is_not_brought_back_by_a_save(hands: Hands) -> None:
    """Either the save came first and went with the component, or it is 404."""
    path = f"blocks/{block(0)}"
    files = {"content": b"x"}
    for mark in range(ROUNDS * 2):
        deleted, *saved = await together(
            hands.call("DELETE", f"{path}/"),
            save(hands, 0, mark),
            hands.call("PUT", f"{path}/assets/static/a", files=files),
            hands.at("POST", f"/api/xblock/v2/xblocks/{block(0)}/fields/", {"data": "<problem/>"}),
        )

        assert deleted.status_code == 200
        assert {answer.status_code for answer in saved} <= {200, 404}
        assert (await hands.call("GET", f"{path}/")).status_code == 404
        await hands.call("POST", f"{path}/restore/", {})


async def test_a_restore_does_not_go_behind_a_save(hands: Hands) -> None:
    path = f"blocks/{block(0)}"
    for mark in range(ROUNDS):
        answers = await together(hands.call("POST", f"{path}/restore/", {}), save(hands, 0, mark))

        assert statuses(answers) == [200, 204]
        found = (await hands.call("GET", f"{path}/olx/")).json()
        assert found == {"olx": f"<problem>{mark}</problem>"}


async def test_an_import_over_what_others_edit_never_waits_in_a_circle(
    hands: Hands, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes over all components of a unit, backwards, in batches."""
    keys = {"usage_keys": [block(number) for number in range(4)]}
    await hands.call("PATCH", f"containers/{UNIT}/children/", keys)
    state = app.state
    monkeypatch.setattr(importing, "BATCH", 1)
    for mark in range(ROUNDS // 2):
        files = {
            f"many/problem/p{number}.xml": f"<problem>i{mark}</problem>".encode()
            for number in range(3, -1, -1)
        }
        upload = f"incoming/{mark}"
        await state.files.put(upload, packed(files))
        task = make_task(state.database, state.files, fence=mark)

        *answers, _ = await asyncio.gather(
            *(save(hands, number, mark) for number in (0, 3, 1, 2)),
            hands.call("DELETE", f"blocks/{block(2)}/"),
            hands.call("POST", f"blocks/{block(2)}/restore/", {}),
            hands.call(
                "POST", f"{LIB}/blocks/", {"block_type": "html", "definition_id": f"m{mark}"}
            ),
            import_library(task, library_key=LIB, upload=upload),
        )

        assert [answer.status_code for answer in answers if answer.status_code >= 404] in (
            [],
            [404],
        )
        await hands.call("POST", f"blocks/{block(2)}/restore/", {})
