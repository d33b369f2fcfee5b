"""The archive we write, against the one upstream wrote, and back through our own reader."""

import io
import os
import re
import tomllib
import zipfile
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.libraries.archive import write_archive
from services.libraries.archive_contents import (
    ArchivedCollection,
    ArchivedEntity,
    ArchivedMedia,
    ArchivedVersion,
    Manifest,
)
from services.libraries.archive_names import Names, slug
from services.libraries.archive_reading import read_archive
from services.libraries.archive_tables import UNKNOWN_TIME
from services.libraries.archive_toml import toml_string

SAMPLE = Path("tests/libraries/data/upstream_small.zip")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
MANIFEST = Manifest("T", "lib:O:S", "", NOON, NOON, NOON, created_by="ada")


async def each(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def written(
    entities: Sequence[ArchivedEntity] = (),
    collections: Sequence[ArchivedCollection] = (),
    manifest: Manifest = MANIFEST,
) -> bytes:
    stream = write_archive(manifest, each(entities), each(collections))
    return b"".join([piece async for piece in stream])


async def data_of(media: ArchivedMedia) -> bytes:
    if isinstance(media.data, bytes):
        return media.data
    return b"".join([piece async for piece in media.data()])


async def plain(entity: ArchivedEntity) -> ArchivedEntity:
    """With the bytes of its media in place, in the order of their paths."""
    versions = []
    for version in entity.versions:
        media = [ArchivedMedia(m.path, UNKNOWN_TIME, await data_of(m)) for m in version.media]
        media.sort(key=lambda one: one.path)
        children = None if version.children is None else list(version.children)
        versions.append(replace(version, media=media, children=children))
    return replace(entity, versions=versions)


async def read_back(
    data: bytes, folder: Path
) -> tuple[Manifest, list[ArchivedEntity], list[ArchivedCollection]]:
    path = folder / "archive.zip"
    path.write_bytes(data)
    with read_archive(path) as contents:
        entities = [await plain(entity) for entity in contents.entities]
        return contents.manifest, sorted(entities, key=lambda e: e.key), contents.collections


def component(code: str = "a", block_type: str = "html", **values: Any) -> ArchivedEntity:
    media = values.pop("media", [ArchivedMedia("block.xml", NOON, f"<{block_type}/>".encode())])
    version = ArchivedVersion(1, "T", NOON, media)
    defaults: dict[str, Any] = {"draft_num": 1, "versions": [version]}
    return ArchivedEntity(f"xblock.v1:{block_type}:{code}", NOON, **(defaults | values))


def unit(code: str, *children: str) -> ArchivedEntity:
    version = ArchivedVersion(1, code, NOON, children=children)
    return ArchivedEntity(code, NOON, container_type="unit", draft_num=1, versions=[version])


def opened(data: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(data))


# Against upstream's own archive


async def test_what_upstream_wrote_comes_out_the_same_entry_by_entry() -> None:
    with read_archive(SAMPLE) as contents:
        entities = sorted(contents.entities, key=lambda entity: entity.key)
        ours = opened(await written(entities, contents.collections, contents.manifest))
    theirs = zipfile.ZipFile(SAMPLE)

    # Upstream names files by slugs, we by codes.
    renamed = {name: name.replace("/capitalcode", "/CapitalCode") for name in theirs.namelist()}
    assert ours.namelist() == list(renamed.values())
    for name in theirs.namelist():
        text, wanted = ours.read(renamed[name]), theirs.read(name)
        if name.endswith(".toml"):
            text = re.sub(rb"(version_num = \d+\n)created = .*\n", rb"\1", text)
        assert text == wanted, name


async def test_entries_are_deflated_usable_when_unpacked_and_dated() -> None:
    text = b"<html>" + b"gull " * 200 + b"</html>"
    entity = component("ä", media=[ArchivedMedia("block.xml", NOON, text)])
    archive = opened(await written([entity]))

    modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert {mode for name, mode in modes.items() if name.endswith("/")} == {0o040755}
    assert {mode for name, mode in modes.items() if not name.endswith("/")} == {0o100644}
    block = archive.getinfo("entities/xblock.v1/html/ä/component_versions/v1/block.xml")
    assert block.compress_type == zipfile.ZIP_DEFLATED
    assert block.flag_bits & 0x800
    assert block.date_time == (2026, 11, 21, 12, 0, 0)


async def test_dates_follow_the_contract() -> None:
    later, latest = NOON + timedelta(days=1), NOON + timedelta(days=2)
    media = [ArchivedMedia("block.xml", later, b"<html/>")]
    versions = [ArchivedVersion(2, "T", latest, media), ArchivedVersion(1, "T", NOON, media)]
    entity = component(versions=versions, draft_num=2, published_num=1)
    collection = ArchivedCollection("c", "C", "", NOON, later, [entity.key])

    archive = opened(await written([entity], [collection]))

    days = {info.filename: info.date_time[2] - 21 for info in archive.infolist()}
    place = "entities/xblock.v1/html/a"
    assert days == {
        "package.toml": 0, "entities/": 0, "collections/": 0, "entities/xblock.v1/": 2,
        "entities/xblock.v1/html/": 2, f"{place}.toml": 2, f"{place}/": 2,
        f"{place}/component_versions/": 2, f"{place}/component_versions/v2/": 2,
        f"{place}/component_versions/v2/static/": 2,
        f"{place}/component_versions/v2/block.xml": 1,
        f"{place}/component_versions/v1/": 0, f"{place}/component_versions/v1/static/": 0,
        f"{place}/component_versions/v1/block.xml": 1, "collections/c.toml": 1,
    }  # fmt: skip


async def test_years_a_zip_cannot_say_do_not_break_it() -> None:
    old = replace(MANIFEST, updated=datetime(1970, 1, 1, tzinfo=UTC))

    assert opened(await written(manifest=old)).getinfo("package.toml").date_time[0] == 1980


# Traps that the contract marks


async def test_a_user_without_email_leaves_no_blank_behind() -> None:
    text = opened(await written()).read("package.toml").decode()

    assert 'created_by = "ada"' in text
    assert "created_by_email" not in text
    assert "origin_server" not in text


def test_codes_name_the_files_and_only_clashes_are_hashed() -> None:
    names = Names()

    assert names.take("html", "Gull") == "Gull"
    assert names.take("html", "gull") == "gull_a456bc"
    assert names.take("problem", "gull") == "gull"
    assert names.take("html", "a.b.c") == "a.b.c"
    assert names.take("html", "_lead_") == "_lead_"
    assert names.take("html", "日本語") == "日本語"
    assert re.fullmatch(r"_[0-9a-f]{6}", names.take("html", "..."))
    assert names.take("html", "x") == "x"
    assert names.take("html", "x.toml") != "x.toml"
    assert re.fullmatch(r"gull_a456bc_[0-9a-f]{6}", names.take("html", "gull_a456bc"))


def test_slugs() -> None:
    slugs = {"a.b.c": "abc", "_lead_": "lead", "naïve": "naïve", "...": "", "A  b--c": "a-b-c"}

    assert {text: slug(text) for text in slugs} == slugs


async def test_awkward_codes_keep_their_contents(tmp_path: Path) -> None:
    codes = [
        "...",
        ".",
        "..",
        "A",
        "a",
        "static",
        "component_versions",
        "v1",
        "välkommen",
        "x.toml",
    ]
    entities = [
        component(code, media=[ArchivedMedia("block.xml", NOON, f"<html>{code}</html>".encode())])
        for code in sorted([*codes, "x"])
    ]
    entities += [unit("a", "xblock.v1:html:A", "xblock.v1:html:a"), unit("xblock.v1")]
    collections = [
        ArchivedCollection(code, code, "", NOON, NOON, [entities[0].key]) for code in ("a", "A")
    ]

    manifest, back, groups = await read_back(await written(entities, collections), tmp_path)

    wanted = sorted([await plain(entity) for entity in entities], key=lambda e: e.key)
    assert back == wanted
    assert {group.code for group in groups} == {"a", "A"}
    assert manifest == MANIFEST


async def test_files_with_awkward_paths_keep_them(tmp_path: Path) -> None:
    paths = [
        "block.xml", "static/v1/x.png", "static/a.toml", "static/component_versions/v2/b.png",
        "notes.toml", "static/sub/deep/ü.txt", "static/empty.bin",
    ]  # fmt: skip
    media = [ArchivedMedia(path, NOON, b"" if "empty" in path else path.encode()) for path in paths]
    entity = component(media=media)

    _, back, _ = await read_back(await written([entity]), tmp_path)

    assert back == [await plain(entity)]


async def test_deleted_drafts_are_told_apart(tmp_path: Path) -> None:
    version = ArchivedVersion(1, "T", NOON, [ArchivedMedia("block.xml", NOON, b"<html/>")])
    entities = [
        component("gone", draft_num=None, published_num=1, draft_deleted=True, versions=[version]),
        component("never", draft_num=None, draft_deleted=True, versions=[]),
        component("none", draft_num=None, versions=[]),
    ]

    data = await written(entities)
    _, back, _ = await read_back(data, tmp_path)

    assert back == [await plain(entity) for entity in entities]
    text = opened(data).read("entities/xblock.v1/html/gone.toml").decode()
    assert "[entity.draft]" not in text
    assert tomllib.loads(text)["entity"]["published"] == {"version_num": 1}


async def test_large_files_and_large_collections_are_streamed(tmp_path: Path) -> None:
    piece = os.urandom(100_000)

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield piece

    entity = component(media=[ArchivedMedia("static/film.bin", NOON, stream)])
    units = [unit(f"u{number:05}") for number in range(2500)]
    members = [one.key for one in units]
    collection = ArchivedCollection("all", "All", "", NOON, NOON, each(members))

    data = await written([*units, entity], [collection])
    _, back, groups = await read_back(data, tmp_path)

    assert next(e for e in back if e.key == entity.key).versions[0].media[0].data == piece * 30
    assert groups[0].members == members
    assert opened(data).testzip() is None


async def test_more_entries_than_a_plain_zip_can_count(tmp_path: Path) -> None:
    entities = [
        replace(unit(f"u{number}"), versions=[], draft_num=None) for number in range(66_000)
    ]

    archive = opened(await written(entities))

    assert len(archive.namelist()) == 66_003
    assert archive.read("entities/u65999.toml").startswith(b"[entity]\n")


# Any contents


codes = st.text(st.characters(categories=["L", "Nd"], include_characters="_.-"), min_size=1)
codes = codes.filter(lambda code: re.fullmatch(r"[\w.-]+", code) is not None)
codes = codes.map(lambda code: code[:40])
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=60)
titles = texts.map(str.strip)
moments = st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
paths = st.lists(codes.filter(lambda c: c.strip(".") != ""), min_size=1, max_size=3).map(
    lambda parts: "static/" + "/".join(parts)
)
media = st.dictionaries(paths, st.binary(max_size=300), max_size=3).map(
    lambda files: [
        ArchivedMedia("block.xml", UNKNOWN_TIME, b"<html/>"),
        *(ArchivedMedia(path, UNKNOWN_TIME, data) for path, data in sorted(files.items())),
    ]
)


@st.composite
def components(draw: st.DrawFn) -> ArchivedEntity:
    numbers = sorted(draw(st.sets(st.integers(1, 2**31 - 1), max_size=2)), reverse=True)
    draft = draw(st.sampled_from([None, *numbers])) if len(numbers) < 2 else numbers[0]
    published = numbers[-1] if numbers and (len(numbers) == 2 or draft is None) else None
    block_type = draw(st.sampled_from(["html", "problem", "drag-and-drop-v2"]))
    return ArchivedEntity(
        key=f"xblock.v1:{block_type}:{draw(codes)}",
        created=draw(moments),
        can_stand_alone=draw(st.booleans()),
        draft_num=draft,
        published_num=published,
        draft_deleted=draft is None and (published is not None or draw(st.booleans())),
        versions=[
            ArchivedVersion(number, draw(titles), draw(moments), draw(media)) for number in numbers
        ],
    )


@st.composite
def containers(draw: st.DrawFn, refs: list[str]) -> ArchivedEntity:
    children = draw(st.lists(st.sampled_from(refs), max_size=4)) if refs else []
    version = ArchivedVersion(draw(st.integers(1, 9)), draw(titles), draw(moments), [], children)
    return ArchivedEntity(
        key=draw(codes),
        created=draw(moments),
        container_type="unit",
        draft_num=version.version_num,
        versions=[version],
    )


@st.composite
def libraries(
    draw: st.DrawFn,
) -> tuple[Manifest, list[ArchivedEntity], list[ArchivedCollection]]:
    leaves = draw(st.lists(components(), max_size=4, unique_by=lambda e: e.key))
    refs = [leaf.key for leaf in leaves]
    units = draw(st.lists(containers(refs), max_size=3, unique_by=lambda e: e.key))
    entities = sorted([*leaves, *units], key=lambda entity: entity.key)
    keys = [entity.key for entity in entities]
    groups = []
    for code in draw(st.lists(st.from_regex(r"[A-Za-z0-9_.-]{1,9}", fullmatch=True), unique=True)):
        created = draw(moments)
        members = sorted(draw(st.sets(st.sampled_from(keys)))) if keys else []
        title = draw(titles.filter(bool))
        groups.append(ArchivedCollection(code, title, draw(texts), created, created, members))
    manifest = Manifest(
        draw(titles.filter(bool)), "lib:O:S", draw(texts), draw(moments), draw(moments),
        draw(moments), created_by=draw(titles), created_by_email="", origin_server=draw(titles),
    )  # fmt: skip
    return manifest, entities, groups


@settings(max_examples=60, deadline=None)
@given(library=libraries())
async def test_whatever_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    library: tuple[Manifest, list[ArchivedEntity], list[ArchivedCollection]],
) -> None:
    manifest, entities, collections = library

    data = await written(entities, collections, manifest)
    back = await read_back(data, tmp_path_factory.mktemp("archive"))

    assert back[0] == manifest
    assert back[1] == [await plain(entity) for entity in entities]
    assert sorted(back[2], key=lambda c: c.code) == sorted(collections, key=lambda c: c.code)


@given(text=texts)
def test_every_text_survives_as_toml(text: str) -> None:
    line = f"x = {toml_string(text)}"

    assert tomllib.loads(line) == {"x": text}
    assert "\n" not in line
