"""Fields of components over HTTP. contract: libraries §3.12"""

import asyncio
import json
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from shared.testing import as_user
from tests.libraries.conftest import STAFF
from tests.libraries.test_api import LIB, Author, key

STRUCTURE = {"a": [1, {"b": None}], "ü": "x"}
DEEP: Any = "x"
for _ in range(51):
    DEEP = [DEEP]


class Editor(Author):
    """An author who edits fields."""

    async def fields(self, block: str, suffix: str = "") -> httpx.Response:
        where = f"/api/xblock/v2/xblocks/{block}{suffix}/fields/"
        return await self.http.get(where, headers=STAFF)

    async def save(self, block: str, body: Any, headers: Any = STAFF) -> httpx.Response:
        where = f"/api/xblock/v2/xblocks/{block}/fields/"
        content = json.dumps(body)
        kind = {"Content-Type": "application/json"}
        return await self.http.post(where, content=content, headers={**headers, **kind})

    async def olx(self, block: str) -> str:
        return str((await self.get(f"blocks/{block}/olx/")).json()["olx"])


@pytest_asyncio.fixture
async def editor(http: httpx.AsyncClient, app: FastAPI) -> Editor:
    editor = Editor(http, app)
    await editor.create()
    await editor.block()
    await editor.block("page", "html")
    await editor.block("film", "video")
    return editor


async def test_the_fields_of_a_new_component(editor: Editor) -> None:
    assert (await editor.fields(key("page", "html"))).json() == {
        "display_name": "Text", "metadata": {}, "data": ""
    }  # fmt: skip
    assert (await editor.fields(key())).json()["data"] == "<problem />"
    assert (await editor.fields(key("film", "video"))).json()["data"] == ""


async def test_saving_fields_makes_a_version_with_them(editor: Editor) -> None:
    html = "<p>1 &lt; 2 &amp; <b>b</b></p>"
    body = {"data": html, "metadata": {"display_name": "Ä & b", "editor": "visual"}}
    answer = await editor.save(key("page", "html"), body)

    assert answer.status_code == 200, answer.text
    shown = {"display_name": "Ä & b", "metadata": body["metadata"], "data": html}
    assert answer.json() == {**shown, "id": key("page", "html"), "version_num": 2}
    assert (await editor.fields(key("page", "html"))).json() == shown
    assert (await editor.olx(key("page", "html"))) == (
        f'<html display_name="Ä &amp; b" editor="visual"><![CDATA[{html}]]></html>'
    )
    block = (await editor.get(f"blocks/{key('page', 'html')}/")).json()
    assert (block["display_name"], block["has_unpublished_changes"]) == ("Ä & b", True)


async def test_what_is_not_named_stays_and_null_removes(editor: Editor) -> None:
    await editor.save(key(), {"data": "<p>q</p>", "metadata": {"a": "1x", "b": "y"}})
    await editor.save(key(), {"metadata": {"b": None, "never": None}})
    assert await editor.olx(key()) == '<problem a="1x"><p>q</p></problem>'
    await editor.save(key(), {"data": ""})
    assert await editor.olx(key()) == '<problem a="1x"/>'
    answer = await editor.save(key(), {})
    assert (answer.status_code, answer.json()["version_num"]) == (200, 5)


@pytest.mark.parametrize(
    ("value", "attribute"),
    [
        (3, "3"), (-7, "-7"), (1.5, "1.5"), (1.0, "1.0"), (True, "true"), (False, "false"),
        ("always", "always"), ("", ""), ("00:01:00", "00:01:00"), ("1e5", "1e5"), ("007", "007"),
        (STRUCTURE, '{"a":[1,{"b":null}],"ü":"x"}'), ([], "[]"), ("null", "null"),
        ("[not json", "[not json"), ("12345678901234567890", "12345678901234567890"),
    ],
)  # fmt: skip
async def test_values_come_back_as_they_were(editor: Editor, value: Any, attribute: str) -> None:
    answer = await editor.save(key("film", "video"), {"metadata": {"field": value}})

    assert answer.status_code == 200, answer.text
    again = (await editor.fields(key("film", "video"))).json()["metadata"]["field"]
    assert (again, type(again)) == (value, type(value))
    quoted = attribute.replace('"', "&quot;")
    assert await editor.olx(key("film", "video")) == f'<video field="{quoted}"/>'


async def test_a_name_that_looks_like_a_number_is_a_text(editor: Editor) -> None:
    answer = await editor.save(key(), {"metadata": {"display_name": 2024}})

    assert answer.json()["metadata"] == {"display_name": "2024"}
    assert answer.json()["display_name"] == "2024"


async def test_a_problem_is_saved_whole_or_from_inside(editor: Editor) -> None:
    whole = '<problem markdown="m"><p>1<!-- kept --></p><![CDATA[x < y]]>tail</problem>'
    await editor.save(key(), {"metadata": {"weight": 2, "markdown": "old"}})
    await editor.save(key(), {"data": f" \n<!-- x --> {whole}"})

    shown = (await editor.fields(key())).json()
    assert shown["metadata"] == {"weight": 2, "markdown": "m"}
    assert shown["data"] == await editor.olx(key())
    assert "<p>1<!-- kept --></p><![CDATA[x < y]]>tail</problem>" in shown["data"]
    await editor.save(key(), {"data": shown["data"]})
    assert await editor.olx(key()) == shown["data"]
    await editor.save(key(), {"data": "text <p>2</p>"})
    assert (await editor.olx(key())).endswith(">text <p>2</p></problem>")


async def test_the_inside_of_other_types_and_of_written_html(editor: Editor) -> None:
    olx = {"olx": '<video a="x &gt; y"><source src="1"/>t</video>'}
    await editor.post(f"blocks/{key('film', 'video')}/olx/", olx)
    shown = (await editor.fields(key("film", "video"))).json()
    assert (shown["data"], shown["metadata"]) == ('<source src="1"/>t', {"a": "x > y"})

    for content, data in [
        ("<html><p>1 &amp; 2</p></html>", "<p>1 &amp; 2</p>"),
        ("<html>&lt;p&gt;<!-- c --></html>", "<p>"),
    ]:
        await editor.post(f"blocks/{key('page', 'html')}/olx/", {"olx": content})
        assert (await editor.fields(key("page", "html"))).json()["data"] == data
    await editor.save(key("page", "html"), {"data": "a ]]> b"})
    assert (await editor.fields(key("page", "html"))).json()["data"] == "a ]]> b"


async def test_fields_of_any_version(editor: Editor) -> None:
    await editor.save(key(), {"metadata": {"a": "published"}})
    await editor.post(f"blocks/{key()}/publish/")
    await editor.save(key(), {"metadata": {"a": "draft"}})
    for suffix, shown in [
        ("", {"a": "draft"}), ("@draft", {"a": "draft"}), ("@published", {"a": "published"}),
        ("@1", {}), ("@3", {"a": "draft"}),
    ]:  # fmt: skip
        assert (await editor.fields(key(), suffix)).json()["metadata"] == shown
    for wrong in ("@4", "@x", "@", "@-1", "@99999999999"):
        status = 200 if wrong == "@" else 404
        assert (await editor.fields(key(), wrong)).status_code == status


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"data": 3}, "data"),
        ({"data": "a\x00b"}, "data"),
        ({"data": "a\ud800b"}, "data"),
        ({"data": "x" * (5 * 1024 * 1024 + 1)}, "data"),
        ({"data": "</problem><problem>"}, "data"),
        ({"data": "<p>"}, "data"),
        ({"data": '<problem a="1"/><problem/>'}, "data"),
        ({"data": "<!DOCTYPE problem><problem/>"}, "data"),
        ({"data": "&unknown;"}, "data"),
        ({"data": "<a>" * 120 + "</a>" * 120}, "data"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"": "x"}}, "metadata"),
        ({"metadata": {"a b": "x"}}, "metadata"),
        ({"metadata": {"x:y": "x"}}, "metadata"),
        ({"metadata": {"a\x00": "x"}}, "metadata"),
        ({"metadata": {"url_name": "x"}}, "metadata"),
        ({"metadata": {"xmlns": "urn:x"}}, "metadata"),
        ({"metadata": {"xmlns": ""}}, "metadata"),
        ({"metadata": {"a" * 256: "x"}}, "metadata"),
        ({"metadata": {"a": "x\x00"}}, "metadata.a"),
        ({"metadata": {"a": ["x\x0b"]}}, "metadata.a"),
        ({"metadata": {"a": "x\ud800"}}, "metadata.a"),
        ({"metadata": {"a": ["x\ud800"]}}, "metadata.a"),
        ({"metadata": {"a": 10**30}}, "metadata.a"),
        ({"metadata": {"a": 10**400}}, "metadata.a"),
        ({"metadata": {"a": [-(10**30)]}}, "metadata.a"),
        ({"metadata": {"a": DEEP}}, "metadata.a"),
        ({"metadata": {"a": "x" * (5 * 1024 * 1024 + 1)}}, "metadata.a"),
        ({"metadata": {"display_name": "x" * 501}}, "metadata.display_name"),
        ({"metadata": {"good": 1, "a": "\x01"}, "data": "good"}, "metadata.a"),
    ],
)
async def test_what_cannot_be_saved_names_the_field_and_changes_nothing(
    editor: Editor, body: Any, field: str
) -> None:
    answer = await editor.save(key(), body)

    assert (answer.status_code, list(answer.json())) == (400, [field])
    assert await editor.olx(key()) == "<problem />"
    assert (await editor.fields(key(), "@2")).status_code == 404


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
async def test_numbers_that_are_none_are_refused(editor: Editor, number: str) -> None:
    where = f"/api/xblock/v2/xblocks/{key()}/fields/"
    for value in (number, f"[{number}]"):
        body = f'{{"metadata": {{"a": {value}}}}}'
        headers = {**STAFF, "Content-Type": "application/json"}
        answer = await editor.http.post(where, content=body, headers=headers)
        assert (answer.status_code, await editor.olx(key())) == (400, "<problem />")


async def test_too_deep_for_the_parser_is_a_client_error(editor: Editor) -> None:
    where = f"/api/xblock/v2/xblocks/{key()}/fields/"
    body = '{"metadata": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}"
    headers = {**STAFF, "Content-Type": "application/json"}
    assert (await editor.http.post(where, content=body, headers=headers)).status_code == 400
    deep = "[" * 900 + "]" * 900
    await editor.post(f"blocks/{key()}/olx/", {"olx": f'<problem a="{deep}"/>'})
    assert (await editor.fields(key())).json()["metadata"] == {"a": deep}


async def test_what_is_missing_is_told_by_name(editor: Editor) -> None:
    other = "lb:CL-TEST:none:problem:p1"
    for answer in (await editor.fields(other), await editor.save(other, {})):
        assert answer.status_code == 404
        assert answer.json() == {"detail": "Content Library 'lib:CL-TEST:none' does not exist"}
    await editor.block("gone")
    await editor.delete(f"blocks/{key('gone')}/")
    for block in (key("gone"), key("never")):
        for answer in (await editor.fields(block), await editor.save(block, {})):
            assert answer.status_code == 404
            assert answer.json() == {"detail": f"The component '{block}' does not exist."}
    for answer in (await editor.save(key() + "@1", {}), await editor.save("x", {})):
        assert answer.status_code == 404


async def test_saving_needs_the_right_to_edit(editor: Editor, http: httpx.AsyncClient) -> None:
    grant = {"access_level": "read"}
    await http.put(f"/api/libraries/v2/{LIB}/team/user/ben/", json=grant, headers=STAFF)
    ben, where = as_user("ben"), f"/api/xblock/v2/xblocks/{key()}/fields/"

    assert (await http.get(where, headers=ben)).status_code in (200, 403)
    assert (await editor.save(key(), {"metadata": {"a": "b"}}, ben)).status_code == 403
    assert (await editor.save(key(), {}, {})).status_code == 401
    assert await editor.olx(key()) == "<problem />"


async def test_of_two_saves_at_once_both_are_there(editor: Editor) -> None:
    names = [f"f{number}" for number in range(6)]
    answers = await asyncio.gather(
        *(editor.save(key(), {"metadata": {name: name}}) for name in names)
    )

    assert sorted(answer.json()["version_num"] for answer in answers) == [2, 3, 4, 5, 6, 7]
    assert (await editor.fields(key())).json()["metadata"] == {name: name for name in names}
