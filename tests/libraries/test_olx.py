"""Component text from anyone: what is stored, and what is refused."""

import contextlib
import time

import pytest

from services.libraries.olx import InvalidOlx, OlxLimits, blank, parse
from shared.problems import contract_body


def test_text_is_stored_exactly_as_sent_but_for_white_space_around_it() -> None:
    text = "<problem   display_name='A &amp; B'><!-- why --><p>½</p></problem>"

    block = parse(f"\n  {text} \t\n", block_type="problem")

    assert block.olx == text
    assert block.title == "A & B"


def test_url_name_is_removed_and_cdata_stays() -> None:
    block = parse(
        '<html url_name="x" display_name="T"><![CDATA[<p>a & b</p>]]></html>', block_type="html"
    )

    assert block.olx == '<html display_name="T"><![CDATA[<p>a & b</p>]]></html>'


@pytest.mark.parametrize(
    ("block_type", "title"),
    [("problem", "Blank Problem"), ("html", "Text"), ("video", "Video"), ("strange", "strange")],
)
def test_without_a_display_name_the_type_gives_the_title(block_type: str, title: str) -> None:
    assert parse(f"<{block_type}/>", block_type=block_type).title == title
    assert blank(block_type).title == title
    assert blank(block_type).olx == f"<{block_type} />"


def test_an_empty_display_name_is_a_title() -> None:
    assert parse('<html display_name=""/>', block_type="html").title == ""


def test_a_document_type_inside_cdata_is_only_text() -> None:
    text = "<html><![CDATA[<!DOCTYPE html><p>page</p>]]></html>"

    assert parse(text, block_type="html").olx == text


BOMB = (
    '<!DOCTYPE html [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY a{n} "{"&a;" * 10 if n == 0 else f"&a{n - 1};" * 10}">' for n in range(9))
    + "]><html>&a8;</html>"
)

REFUSED = {
    "entity bomb": BOMB,
    "document type": "<!DOCTYPE html><html/>",
    "document type after comments": '<?xml version="1.0"?><!-- - --><?x y?>\n<!DOCTYPE a><html/>',
    "document type after a byte order mark": "\ufeff<!DOCTYPE a><html/>",
    "external entity": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><html>&e;</html>',
    "unknown entity": "<html>&nbsp;</html>",
    "encoding": '<?xml version="1.0" encoding="utf-8"?><html/>',
    "NUL": "<html>\x00</html>",
    "NUL reference": "<html>&#0;</html>",
    "control character": "<html>\x0b</html>",
    "surrogate": "<html>\ud800</html>",
    "wrong root": "<problem/>",
    "root in a namespace": '<html xmlns="urn:x"/>',
    "two roots": "<html/><html/>",
    "not closed": "<html>",
    "not XML": "hello",
    "empty": "  \n ",
    "too deep": "<html>" + "<b>" * 100 + "</b>" * 100 + "</html>",
    "far too deep": "<html>" + "<b>" * 100_000 + "</b>" * 100_000 + "</html>",
    "title too long": f'<html display_name="{"x" * 501}"/>',
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_bad_text_is_refused_with_a_sentence_in_an_array(text: str) -> None:
    with pytest.raises(InvalidOlx) as refused:
        parse(text, block_type="html")

    problem = refused.value
    assert problem.status == 400
    assert contract_body(problem) == [problem.detail]
    assert problem.detail.endswith((".", ")"))


def test_text_over_the_size_limit_is_refused_by_its_bytes() -> None:
    limits = OlxLimits(bytes=100)
    text = f"<html>{'é' * 50}</html>"

    with pytest.raises(InvalidOlx, match="at most 100 bytes"):
        parse(text, block_type="html", limits=limits)


@pytest.mark.parametrize(
    "text",
    [
        "<?a?>" * 600_000 + "<html/>",
        "<!-- -->" * 400_000 + "<x",
        "<html>" + "<a/>" * 800_000 + "</html>",
        "<html " + " ".join(f'a{n}=""' for n in range(300_000)) + "/>",
        "<html" + "".join(f' xmlns:a{n}="u{n}"' for n in range(100_000)) + "/>",
        "<?xml " + "encodin" * 500_000,
    ],
    ids=["instructions", "comments", "elements", "attributes", "namespaces", "declaration"],
)
def test_no_text_takes_long(text: str) -> None:
    started = time.perf_counter()
    with contextlib.suppress(InvalidOlx):
        parse(text, block_type="html")

    assert time.perf_counter() - started < 5
