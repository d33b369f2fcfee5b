"""Which components an upload has, what is theirs, and what is left out with a reason."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.libraries.entries import ArchiveRefused, Folder
from services.libraries.olx import InvalidOlx, OlxLimits
from services.libraries.olx_trees import Loaded, OlxTree

SAMPLES = Path("samples/coast-and-sky")


class Files:
    """A tree in memory."""

    def __init__(self, **files: str | bytes) -> None:
        self._files = {
            name: data.encode() if isinstance(data, str) else data for name, data in files.items()
        }

    def names(self) -> list[str]:
        return sorted(self._files)

    def size(self, name: str) -> int:
        return len(self._files[name])

    def chunks(self, name: str) -> Iterator[bytes]:
        yield self._files[name]


def tree(files: dict[str, str | bytes]) -> OlxTree:
    return OlxTree(Files(**files))


def names(tree: OlxTree) -> list[str]:
    return [found.name for found in tree.components]


def load(files: dict[str, str | bytes], name: str) -> Loaded:
    found = tree(files)
    return found.load(next(one for one in found.components if one.name == name))


def test_a_library_gives_what_it_lists_in_its_order() -> None:
    found = tree(
        {
            "library.xml": '<library display_name="L"><problem url_name="b"/><html url_name="a"/>'
            '<problem url_name="gone"/><problem url_name="b"/></library>',
            "problem/b.xml": "<problem/>",
            "html/a.xml": "<html/>",
            "video/other.xml": "<video/>",
        }
    )

    assert names(found) == ["problem/b", "html/a"]
    assert found.title == "L"
    assert found.skipped == {
        "problem/gone": "problem/gone.xml is missing.",
        "problem/b (again)": "it is named more than once.",
        "video/other": "library.xml does not lead to it.",
    }


COURSE: dict[str, str | bytes] = {
    "course.xml": '<course url_name="2026" org="O" course="C"/>',
    "course/2026.xml": '<course display_name="Birds"><chapter url_name="c1"/><wiki slug="w"/>'
    '<chapter url_name="gone"/></course>',
    "chapter/c1.xml": '<chapter><sequential url_name="s1"/></chapter>',
    "sequential/s1.xml": '<sequential><vertical url_name="v1"/><vertical display_name="in">'
    '<problem url_name="in1" display_name="Inline"><p>?</p></problem></vertical></sequential>',
    "vertical/v1.xml": '<vertical><html url_name="h"/><library_content url_name="lc"/>'
    '<discussion url_name="d" discussion_category="x"/><html><p>no name</p></html></vertical>',
    "html/h.xml": '<html filename="h" display_name="H"/>',
    "html/h.html": "<p>&amp; <img src='/static/gull.png'></p>",
    "library_content/lc.xml": "<library_content/>",
    "static/gull.png": b"png",
    "policies/assets.json": "{}",
    "about/overview.html": "<p/>",
    "drafts/vertical/v2.xml": "<vertical/>",
}


@pytest.mark.parametrize("prefix", ["", "course/", "a/b/"])
def test_a_course_is_read_through_to_its_components(prefix: str) -> None:
    found = tree({prefix + name: data for name, data in COURSE.items()})

    assert names(found)[:2] == ["html/h", "discussion/d"]
    assert names(found)[-1] == "problem/in1"
    assert len(names(found)) == 4
    assert found.title == "Birds"
    assert found.skipped == {
        "library_content/lc": "it has children, so it is not supported in content libraries.",
        "chapter/gone": "chapter/gone.xml is missing.",
    }


def test_types_that_are_not_allowed_are_left_out_and_told() -> None:
    found = OlxTree(Files(**{"html/a.xml": "<html/>", "video/b.xml": "<video/>"}), allowed={"html"})

    assert names(found) == ["html/a"]
    assert found.skipped == {"video/b": "it is of a type that is not allowed here."}


def test_an_inline_component_loses_its_url_name() -> None:
    loaded = load(COURSE, "problem/in1")

    assert loaded.block.olx == '<problem display_name="Inline"><p>?</p></problem>'
    assert loaded.block.title == "Inline"


def test_a_component_without_a_name_gets_the_same_one_each_time() -> None:
    first, second = names(tree(COURSE)), names(tree(COURSE))

    assert first == second
    assert len(first[2].partition("/")[2]) == 12


def test_the_text_of_a_pointer_moves_into_the_component() -> None:
    loaded = load(COURSE, "html/h")

    assert loaded.block.olx == (
        "<html display_name=\"H\"><![CDATA[<p>&amp; <img src='/static/gull.png'></p>]]></html>"
    )
    assert loaded.assets == {"static/gull.png": "static/gull.png"}


def test_a_body_that_cdata_cannot_hold_is_escaped() -> None:
    files = COURSE | {"html/h.html": "a ]]> b"}

    assert "a ]]&gt; b" in load(files, "html/h").block.olx


@pytest.mark.parametrize("prefix", ["", "wrapped/", "problem/"])
def test_without_an_outline_every_component_file_counts(prefix: str) -> None:
    found = tree(
        {
            f"{prefix}problem/a.xml": "<problem/>",
            f"{prefix}html/b.xml": "<html/>",
            f"{prefix}html/b.html": "x",
            f"{prefix}static/c.xml": "<x/>",
        }
    )

    assert names(found) == ["html/b", "problem/a"]


def test_the_outline_nearest_to_the_top_counts() -> None:
    found = tree(COURSE | {"static/library.xml": "<library/>", "course/course.xml": "<course/>"})

    assert found.layout == "course.xml"
    assert len(names(found)) == 4


def test_circles_in_an_outline_end() -> None:
    found = tree(
        {
            "course.xml": '<course><chapter url_name="c"/></course>',
            "chapter/c.xml": '<chapter><chapter url_name="c"/><html url_name="h"/></chapter>',
            "html/h.xml": "<html/>",
        }
    )

    assert names(found) == ["html/h"]


@pytest.mark.parametrize(
    "files",
    [
        {"readme.txt": "hello"},
        {},
        {"library.xml": "<library>"},
        {"library.xml": '<!DOCTYPE a [<!ENTITY b "c">]><library>&b;</library>'},
        {"course.xml": '<course url_name="x"/>'},
    ],
)
def test_uploads_without_any_component(files: dict[str, str | bytes]) -> None:
    with pytest.raises(ArchiveRefused):
        tree(files)


@pytest.mark.parametrize(
    "text",
    [
        b"<problem>",
        b"<html/>",
        b"\xff\xfe<problem/>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><problem>&b;</problem>',
        b'<?xml version="1.0" encoding="latin-1"?><problem/>',
        b"<problem>\0</problem>",
    ],
)
def test_a_bad_component_says_why(text: bytes) -> None:
    with pytest.raises(InvalidOlx) as refused:
        load({"problem/a.xml": text}, "problem/a")

    assert refused.value.detail


def test_files_may_declare_utf8_and_it_is_not_kept() -> None:
    text = "\ufeff<?xml version='1.0' encoding='UTF-8'?>\n<problem display_name='é'/>"

    assert load({"problem/a.xml": text}, "problem/a").block.olx == "<problem display_name='é'/>"


def test_codes_that_no_key_could_hold() -> None:
    long = "x" * 101
    found = tree(
        {
            "problem/a b.xml": "<problem/>",
            "problem/日本語.xml": "<problem/>",
            f"{long}/a.xml": f"<{long}/>",
            "日/a.xml": "<日/>",
        }
    )

    assert names(found) == ["problem/日本語"]
    assert {"problem/a b", f"{long}/a", "日/a"} <= found.skipped.keys()


STATIC: dict[str, str | bytes] = {
    f"static/{name}": b"x"
    for name in ("a.png", "sub/b c.png", "d(1).pdf", "e&f.txt", "é.svg", "en.srt", "uk.srt")
} | {"static/subs_xyz.srt.sjson": b"x", "static/v-1-de.srt": b"x"}


@pytest.mark.parametrize(
    ("text", "assets", "missing"),
    [
        ('<html><![CDATA[<img src="/static/a.png">]]></html>', ["a.png"], []),
        ("<html><![CDATA[<img src='static/a.png?x=1#y'>]]></html>", ["a.png"], []),
        ("<html>[x](/static/a.png) and url(/static/a.png)</html>", ["a.png"], []),
        ('<html><img src="/static/sub/b%20c.png"/></html>', ["sub/b c.png"], []),
        ('<html><img src="/static/sub/b c.png"/></html>', ["sub/b c.png"], []),
        ('<html><a href="/static/d(1).pdf"/></html>', ["d(1).pdf"], []),
        ('<html><a href="/static/e&amp;f.txt"/></html>', ["e&f.txt"], []),
        ('<html><![CDATA[<a href="/static/e&amp;f.txt">]]></html>', ["e&f.txt"], []),
        ('<html><a href="/static/%C3%A9.svg"/></html>', ["é.svg"], []),
        ('<html data=\'{"img": "/static/a.png"}\'/>', ["a.png"], []),
        ('<html><a href="/static/gone.png"/></html>', [], ["gone.png"]),
        ('<html><a href="https://x.test/static/a.png"/> my-static/a.png</html>', [], []),
        ('<html><a href="/static/../a.png"/></html>', [], ["../a.png"]),
    ],
)
def test_files_a_component_refers_to(text: str, assets: list[str], missing: list[str]) -> None:
    loaded = load(STATIC | {"html/x.xml": text}, "html/x")

    assert list(loaded.assets) == [f"static/{name}" for name in assets]
    assert loaded.missing == [f"static/{name}" for name in missing]


def test_transcripts_of_a_video_in_all_their_spellings() -> None:
    text = """<video sub="xyz" edx_video_id="v-1" transcripts='{"uk": "uk.srt", "fr": "fr.srt"}'>
      <transcript language="en" src="en.srt"/>
      <video_asset><transcripts><transcript language_code="de" file_format="srt"/></transcripts>
      </video_asset></video>"""

    loaded = load(STATIC | {"video/v.xml": text}, "video/v")

    assert set(loaded.assets) == {
        "static/en.srt", "static/uk.srt", "static/subs_xyz.srt.sjson", "static/v-1-de.srt",
    }  # fmt: skip
    assert loaded.missing == ["static/fr.srt"]


def test_a_text_that_is_too_large_is_not_even_read() -> None:
    found = OlxTree(Files(**{"html/a.xml": b"x" * 2000}), OlxLimits(bytes=1000))

    with pytest.raises(InvalidOlx, match="too large"):
        found.load(found.components[0])


def test_the_sample_content_is_complete() -> None:
    found = OlxTree(Folder(SAMPLES))

    loaded = [found.load(one) for one in found.components]

    assert len(loaded) == 62
    assert found.skipped == {}
    assert [one.missing for one in loaded if one.missing] == []
    used = {path for one in loaded for path in one.assets}
    assert used == {f"static/{path.name}" for path in (SAMPLES / "static").iterdir()}
