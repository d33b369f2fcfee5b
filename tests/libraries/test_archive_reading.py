"""Archives from anyone: what is understood, and what becomes a line of the log."""

import re
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.libraries.archive_reading import ArchiveInvalid, read_archive
from services.libraries.entries import ArchiveLimits
from tests.libraries.test_archive import SAMPLE, data_of
from tests.libraries.test_import_archives import make_zip

Change = Callable[[dict[str, bytes]], None]
A = "entities/xblock.v1/html/never-published"
UNIT = "entities/vertical-names.toml"
GROUP = "collections/favourites.toml"
MACHINES = (
    "__MACOSX/entities/._x.toml", ".DS_Store", "entities/._x.toml", f"{A}/.DS_Store",
    f"{A}/component_versions/Thumbs.db", "collections/._a.toml",
)  # fmt: skip


def sample() -> dict[str, bytes]:
    archive = zipfile.ZipFile(SAMPLE)
    return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def lines(tmp_path: Path, contents: dict[str, bytes]) -> list[str]:
    path = tmp_path / "archive.zip"
    path.write_bytes(make_zip(*contents.items()))
    with pytest.raises(ArchiveInvalid) as refused:
        read_archive(path)
    assert refused.value.log.startswith("Errors encountered during restore:\n")
    assert refused.value.log.endswith("\n")
    return refused.value.lines


async def test_upstreams_archive_is_understood(tmp_path: Path) -> None:
    with read_archive(SAMPLE) as contents:
        by_key = {entity.key: entity for entity in contents.entities}

        assert len(by_key) == 11
        boils = by_key["xblock.v1:problem:water-boils"]
        assert (boils.draft_num, boils.published_num) == (2, 1)
        code = by_key["xblock.v1:problem:CapitalCode"]
        assert b"Oslo" in await data_of(code.versions[0].media[0])
        assert by_key["xblock.v1:html:empty-title"].versions[0].title == ""
        assert by_key["chapter-start"].versions[0].children == ["sequential-warm-up"]


@pytest.mark.parametrize("prefix", ["", "my library/"])
def test_folders_in_between_and_unknown_things_do_no_harm(tmp_path: Path, prefix: str) -> None:
    contents = sample() | {"README.txt": b"hello", "collections/.DS_Store": b"x"}
    contents["package.toml"] += b'\n[extra]\nkey = "value"\n'
    path = tmp_path / "archive.zip"
    path.write_bytes(make_zip(*((prefix + name, data) for name, data in contents.items())))

    with read_archive(path) as found:
        assert len(found.entities) == 11


def replaced(name: str, old: str, new: str) -> Change:
    def change(contents: dict[str, bytes]) -> None:
        assert old.encode() in contents[name]
        contents[name] = contents[name].replace(old.encode(), new.encode())

    return change


def added(name: str, data: bytes = b"") -> Change:
    return lambda contents: contents.update({name: data})


def without(name: str) -> Change:
    return lambda contents: contents.__delitem__(name)


OTHER_GROUP = sample()[GROUP].replace(b"favour", b"f").replace(b"water", b"vater")
WRONG: dict[str, tuple[Change, str]] = {
    "no package": (without("package.toml"), "package.toml: Missing learning package file."),
    "no meta": (
        replaced("package.toml", "[meta]", "[other]"),
        "package.toml meta section: No data provided",
    ),
    "no section": (
        replaced("package.toml", "[learning_package]", "[other]"),
        "package.toml learning package section: No data provided",
    ),
    "no title": (
        replaced("package.toml", 'title = "Sampler"\n', ""),
        "package.toml learning package section: title: This field is required.",
    ),
    "blank title": (
        replaced("package.toml", '"Sampler"', '"  "'),
        "package.toml learning package section: title: This field may not be blank.",
    ),
    "bad date": (
        replaced("package.toml", "created = 2026", 'created = "then" # 2026'),
        "package.toml learning package section: created: Datetime has wrong format.",
    ),
    "unknown format": (replaced("package.toml", "= 1", "= 2"), "format_version 2 is not known"),
    "format of a kind": (
        replaced("package.toml", "= 1", '= "1"'),
        "package.toml meta section: format_version: A valid integer is required.",
    ),
    "no address": (
        replaced("package.toml", '"archivist@example.test"', '"archivist"'),
        "package.toml meta section: created_by_email: Enter a valid email address.",
    ),
    "a whole book as origin": (
        replaced("package.toml", "origin.example.test", "x" * 501),
        "package.toml meta section: origin_server: Ensure this field has no more than 500",
    ),
    "first day of the calendar": (
        replaced("package.toml", "created = 2026", "created = 0001-01-01T00:00:00Z # 2026"),
        "package.toml learning package section: created: Datetime has wrong format.",
    ),
    "invalid TOML": (added(UNIT, b"[entity\n"), f"{UNIT}: is not valid TOML"),
    "TOML in latin-1": (added(UNIT, b'x = "\xe9"'), f"{UNIT}: is not UTF-8."),
    "deep TOML": (added(UNIT, b"x = " + b"[" * 100_000), f"{UNIT}: is not valid TOML"),
    "key of many parts": (
        added(UNIT, b".".join([b"a"] * 100_000) + b" = 1"),
        f"{UNIT}: is not valid TOML: a key has more than 20 parts.",
    ),
    "table of many parts": (
        added(UNIT, b"[" + b" . ".join([b'"a"'] * 100_000) + b"]"),
        f"{UNIT}: is not valid TOML: a key has more than 20 parts.",
    ),
    "key of many parts behind texts": (
        added(UNIT, b'x = ["""a"""", {' + b".".join([b"a"] * 100_000) + b'=1}, """b""""]'),
        f"{UNIT}: is not valid TOML: a key has more than 20 parts.",
    ),
    "no entity": (added(UNIT, b"x = 1"), f"{UNIT}: No data provided"),
    "no key": (replaced(UNIT, "key =", "kee ="), f"{UNIT}: key: This field is required."),
    "alone?": (
        replaced(UNIT, "can_stand_alone = true", 'can_stand_alone = "yes"'),
        f"{UNIT}: can_stand_alone: Must be a valid boolean.",
    ),
    "component key": (
        replaced(f"{A}.toml", "xblock.v1:html:never-published", "html:x"),
        "Invalid entity_key format: 'html:x'. Expected format: "
        "'{namespace}:{type_name}:{component_code}'",
    ),
    "illegal code": (
        replaced(f"{A}.toml", "html:never-published", "html:a b"),
        "illegal characters",
    ),
    "a type of dots": (
        replaced(f"{A}.toml", "v1:html:", "v1:..:"),
        f"{A}.toml: key: illegal characters in 'xblock.v1:..:never-published'.",
    ),
    "a type that no key can have": (
        replaced(f"{A}.toml", "v1:html:", "v1:日本:"),
        f"{A}.toml: key: illegal characters in",
    ),
    "container of no kind": (
        replaced(UNIT, "[entity.container.unit]", "[entity.container]"),
        f"{UNIT}: Container must be a dict with exactly one key.",
    ),
    "container of unknown kind": (
        replaced(UNIT, "container.unit", "container.shelf"),
        f"{UNIT}: Invalid container value: shelf",
    ),
    "no children": (
        replaced(UNIT, "children =", "others ="),
        f"{UNIT}: Container must have a 'children' key.",
    ),
    "children of a kind": (
        replaced(UNIT, 'children = ["', 'children = [1] # "'),
        f"{UNIT}: 'children' must be a list.",
    ),
    "unknown child": (
        replaced(UNIT, "xblock.v1:video:intro", "xblock.v1:video:gone"),
        f"{UNIT}: child xblock.v1:video:gone is not in the archive.",
    ),
    "wrong child": (
        replaced(UNIT, "xblock.v1:video:intro", "vertical-facts"),
        "vertical-facts cannot be a child of a unit.",
    ),
    "missing version": (
        replaced(f"{A}.toml", "[entity.draft]\nversion_num = 1", "[entity.draft]\nversion_num = 7"),
        f"{A}.toml: draft version 7 has no [[version]] of that number.",
    ),
    "negative version": (
        replaced(f"{A}.toml", '"Draft only"\nversion_num = 1', '"Draft only"\nversion_num = -1'),
        "version_num: Ensure this value",
    ),
    "version twice": (
        added(f"{A}.toml", sample()[f"{A}.toml"] + b'\n[[version]]\ntitle="x"\nversion_num = 1\n'),
        f"{A}.toml: version_num 1 stands twice.",
    ),
    "no version title": (
        replaced(f"{A}.toml", 'title = "Draft only"\n', ""),
        f"{A}.toml: title: This field is required.",
    ),
    "long title": (
        replaced(f"{A}.toml", "Draft only", "x" * 501),
        "no more than 500 characters",
    ),
    "files of no version": (
        added(f"{A}/component_versions/v9/block.xml"),
        f"{A}.toml: has files of version 9, which is not one of its versions.",
    ),
    "files of no component": (
        added("entities/xblock.v1/html/x/component_versions/v1/block.xml"),
        "Missing component TOML file at entities/xblock.v1/html/x.toml",
    ),
    "file beside the versions": (
        added(f"{A}/note.txt"),
        f"{A}/note.txt: not in the folder of a version.",
    ),
    "strange version folder": (
        added(f"{A}/component_versions/vX/block.xml"),
        "the folder of a version must be called v and its number.",
    ),
    "OLX in latin-1": (
        added(f"{A}/component_versions/v1/block.xml", b"<html>\xe9</html>"),
        "block.xml: is not UTF-8.",
    ),
    "OLX with NUL": (
        added(f"{A}/component_versions/v1/block.xml", b"<html>\0</html>"),
        "block.xml: has a NUL character.",
    ),
    "blanks around a path": (
        added(f"{A}/component_versions/v1/static/ x "),
        "the path has blanks at its ends",
    ),
    "key twice": (
        added("entities/copy.toml", sample()[UNIT]),
        "entities/vertical-names.toml: the archive has this key twice: vertical-names",
    ),
    "collection twice": (
        added("collections/copy.toml", sample()[GROUP]),
        f"{GROUP}: the archive has this key twice: favourites",
    ),
    "collection member": (
        replaced(GROUP, "problem:water-boils", "problem:gone"),
        f"{GROUP}: Entity ref xblock.v1:problem:gone not found for collection favourites",
    ),
    "collection member, named by its file": (
        added(
            "collections/other.toml", sample()[GROUP].replace(b"favour", b"f").replace(b"w", b"v")
        ),
        "collections/other.toml: Entity ref xblock.v1:problem:vater-boils not found for",
    ),
    "collection code": (replaced(GROUP, '"favourites"', '"é"'), "illegal characters"),
    "no collection title": (
        replaced(GROUP, "title =", "tytle ="),
        f"{GROUP} collection section: title: This field is required.",
    ),
    "no members": (
        replaced(GROUP, "entities =", "others ="),
        f"{GROUP} collection section: entities: This field is required.",
    ),
}


@pytest.mark.parametrize(("change", "line"), WRONG.values(), ids=WRONG.keys())
def test_each_mistake_becomes_a_line(tmp_path: Path, change: Change, line: str) -> None:
    contents = sample()
    change(contents)

    assert any(line in one for one in lines(tmp_path, contents))


PASSED_OVER: dict[str, Change] = {
    "when it was updated": replaced("package.toml", "updated = 2026", 'updated = "then" # 2026'),
    "when a collection was made": replaced(GROUP, "created = 2026", 'created = "then" # 2026'),
    "blanks around the package's key": replaced(
        "package.toml", '"lib:Example:Sampler"', '" lib:Example:Sampler "'
    ),
    "blanks around an entity's key": replaced(
        f"{A}.toml", '"xblock.v1:html:never-published"', '" xblock.v1:html:never-published\\n"'
    ),
    "blanks around a collection's key": replaced(GROUP, '"favourites"', '" favourites "'),
    "an address without a domain": replaced("package.toml", "archivist@example.test", "a@host"),
    "many dots in a text": replaced(
        f"{A}.toml", "[entity]", f'"x" = """{"." * 90}\n"""" # {"." * 90}\n[entity]'
    ),
    "what macOS and Windows leave": lambda contents: contents.update(dict.fromkeys(MACHINES, b"x")),
}


@pytest.mark.parametrize("change", PASSED_OVER.values(), ids=PASSED_OVER.keys())
def test_what_other_readers_do_not_mind_does_no_harm(tmp_path: Path, change: Change) -> None:
    contents = sample()
    change(contents)
    path = tmp_path / "archive.zip"
    path.write_bytes(make_zip(*contents.items()))

    with read_archive(path) as found, read_archive(SAMPLE) as known:
        assert [entity.key for entity in found.entities] == [one.key for one in known.entities]
        assert [one.code for one in found.collections] == ["favourites"]
        assert found.manifest.key == "lib:Example:Sampler"
        assert found.manifest.updated == known.manifest.updated


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("folders", [True, False])
def test_19_every_kind_of_zip_and_keys_nobody_knows(
    tmp_path: Path, method: int, folders: bool
) -> None:
    """contract: content_core §7 trap 19"""
    contents = sample()
    for name in (one for one in contents if one.endswith(".toml")):
        contents[name] = re.sub(
            rb"(?m)^(\[\[?(?!entity.container|version.container)[\w.]+\]?\])$",
            rb"\1\nunknown = [{ a = 1 }]",
            contents[name],
        )
        assert b"unknown" in contents[name]
    bare = b"[entity]\ncan_stand_alone = true\nkey = 'xblock.v1:html:bare'\n"
    contents["entities/xblock.v1/html/bare.toml"] = bare
    names = sorted({f"{name.rpartition('/')[0]}/" for name in contents if "/" in name})
    path = tmp_path / "archive.zip"
    entries = [*((name, b"") for name in names if folders), *contents.items()]
    path.write_bytes(make_zip(*entries, method=method))

    with read_archive(path) as found:
        by_key = {entity.key: entity for entity in found.entities}
        assert len(by_key) == 12
        assert by_key["xblock.v1:html:empty-title"].versions[0].title == ""
        empty = by_key["xblock.v1:html:bare"]
        assert (empty.draft_num, empty.published_num, [*empty.versions]) == (None, None, [])


def test_moments_of_any_zone_and_year_are_kept(tmp_path: Path) -> None:
    contents = sample()
    unix = "1970-01-01T00:00:00Z"
    for name, text in (
        ("package.toml", unix), (f"{A}.toml", unix), (UNIT, "2026-03-01 05:30:00+05:30"),
    ):  # fmt: skip
        contents[name] = re.sub(rb"created = \S+", f"created = {text}".encode(), contents[name])
    path = tmp_path / "archive.zip"
    path.write_bytes(make_zip(*contents.items()))

    with read_archive(path) as found:
        created = {entity.key: entity.created for entity in found.entities}
        assert found.manifest.created == datetime(1970, 1, 1, tzinfo=UTC)
        assert created["xblock.v1:html:never-published"] == datetime(1970, 1, 1, tzinfo=UTC)
        assert created["vertical-names"] == datetime(2026, 3, 1, tzinfo=UTC)


def test_a_log_has_an_end(tmp_path: Path) -> None:
    found = lines(tmp_path, sample() | {UNIT: b"[entity]\n" + b"[[version]]\n" * 20_000})

    assert len(found) == 10_001
    assert re.fullmatch(r"and \d{5} more\.", found[-1])


def test_many_pins_of_one_component_are_checked_at_once(tmp_path: Path) -> None:
    """Each version of the component is looked at once, not once for each pin."""
    many = range(2, 20_000)
    more = "".join(f'[[version]]\ntitle = ""\nversion_num = {number}\n' for number in many)
    refs = ", ".join(['"xblock.v1:video:intro"'] * len(many))
    unit = sample()[UNIT].decode().partition("[[version]]")[0]
    unit += f'[[version]]\ntitle = "x"\nversion_num = 1\npins = {[*many]}\n'
    unit += f"[version.container]\nchildren = [{refs}]\n"
    video = "entities/xblock.v1/video/intro.toml"
    contents = sample() | {UNIT: unit.encode(), video: sample()[video] + more.encode()}
    path = tmp_path / "archive.zip"
    path.write_bytes(make_zip(*contents.items()))

    with read_archive(path) as found:
        assert found.entities.kind("vertical-names") == "unit"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    contents = sample()
    for name in ("no title", "no key", "unknown child", "OLX with NUL", "collection member"):
        WRONG[name][0](contents)

    found = lines(tmp_path, contents)

    assert len(found) >= 5


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04" + b"x" * 100])
def test_what_is_no_archive_has_a_log_too(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(data)

    with pytest.raises(ArchiveInvalid) as refused:
        read_archive(path)
    assert len(refused.value.log.splitlines()) == 2


def test_hostile_names_and_sizes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(make_zip(*sample().items(), ("../x", b""), ("big.bin", b"x" * 2000)))

    with pytest.raises(ArchiveInvalid) as refused:
        read_archive(path, ArchiveLimits(file_bytes=1000))
    assert len(refused.value.lines) == 2


def test_a_component_whose_code_left_its_name_empty(tmp_path: Path) -> None:
    """Upstream names the code `...` by an empty slug; its files are found all the same."""
    contents = sample()
    contents["entities/xblock.v1/html/.toml"] = contents.pop(f"{A}.toml").replace(
        b"never-published", b"..."
    )
    olx = contents.pop(f"{A}/component_versions/v1/block.xml")
    contents["entities/xblock.v1/html/component_versions/v1/block.xml"] = olx
    path = tmp_path / "archive.zip"
    path.write_bytes(make_zip(*contents.items()))

    with read_archive(path) as found:
        entity = next(one for one in found.entities if one.key == "xblock.v1:html:...")
        assert [media.path for media in entity.versions[0].media] == ["block.xml"]


NAMES = sorted(sample())
PIECES = [
    b"= 1", b'= "x"', b"= true", b"= [1]", b"= {}", b"= 2026-01-01", b"[entity]", b"[[version]]",
    b"[entity.draft]", b"[entity.container.unit]", b"[meta]", b"\xff", b"\n", b'"', b"= 1e400",
    b"= 0001-01-01T00:00:00+12:00", b"= -1", b"= 99999999999999999999", b"[[entity]]",
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from([name for name in NAMES if name.endswith(".toml")]),
    changes=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 30), st.sampled_from(PIECES)), min_size=1
    ),
)
def test_no_text_in_an_archive_does_more_than_make_lines(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[int, int, bytes]]
) -> None:
    contents = sample()
    text = contents[name]
    for at, length, piece in changes:
        at %= len(text) + 1
        text = text[:at] + piece + text[at + length :]
    path = tmp_path_factory.mktemp("fuzz") / "archive.zip"
    path.write_bytes(make_zip(*(contents | {name: text}).items()))

    try:
        read_archive(path).close()
    except ArchiveInvalid as refused:
        assert refused.lines
