"""OLX, the XML text of one component: read safely, whoever wrote it."""

import re
from dataclasses import dataclass

from lxml import etree

from shared.problems import BadInput

LONGEST_TITLE = 500

# What a component of a type is called until its author names it.
DEFAULT_TITLES = {
    "annotatable": "Annotation",
    "discussion": "Discussion",
    "done": "Completion",
    "drag-and-drop-v2": "Drag and Drop",
    "edx_sga": "Staff Graded Assignment",
    "google-calendar": "Google Calendar",
    "google-document": "Google Document",
    "html": "Text",
    "lti": "LTI",
    "lti_consumer": "LTI Consumer",
    "openassessment": "Open Response Assessment",
    "poll": "Poll",
    "problem": "Blank Problem",
    "survey": "Survey",
    "video": "Video",
    "word_cloud": "Word cloud",
}

# Atomic and possessive, so that no text makes it try twice.
_DOCTYPE = re.compile(r"(?>\s+|<\?.*?\?>|<!--.*?-->)*+<!(?!\[)", re.DOTALL)
_ENCODING = re.compile(r"<\?xml\s[^>]*?encoding", re.IGNORECASE)
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class InvalidOlx(BadInput):
    """The text is not one well-formed, harmless component of its type."""

    type, title = "invalid-olx", "The OLX is not valid"

    def __init__(self, detail: str | None = None, **kwargs: object) -> None:
        super().__init__(detail, body=[detail or self.title])


@dataclass(frozen=True, slots=True)
class OlxLimits:
    """How much XML one component may be. Beyond it is a 400."""

    bytes: int = 5 * 1024 * 1024
    depth: int = 100


LIMITS = OlxLimits()
# What was stored, maybe under other limits, is still read.
STORED = OlxLimits(bytes=2**31, depth=256)


@dataclass(frozen=True, slots=True)
class Block:
    """A component as its author wrote it, and the title it goes by."""

    block_type: str
    title: str
    olx: str


def default_title(block_type: str) -> str:
    return DEFAULT_TITLES.get(block_type, block_type)


def blank(block_type: str) -> Block:
    """A new component before anyone has written anything. contract: libraries §3.6 #23"""
    return Block(block_type, default_title(block_type), f"<{block_type} />")


def parse(text: str, *, block_type: str, limits: OlxLimits = LIMITS) -> Block:
    """Check a component's text. What is stored is the text as sent, trimmed.

    Only when the root has a `url_name`, which belongs to courses, is it taken out and the text
    written anew. Raises InvalidOlx.
    """
    text = trimmed(text)
    return check_root(read_xml(text, limits), text, block_type=block_type)


def trimmed(text: str) -> str:
    """Without white space at the ends and without a byte order mark."""
    return text.strip().removeprefix("\ufeff").lstrip()


def check_root(root: etree._Element, text: str, *, block_type: str) -> Block:
    """The component that a safely read root stands for. Raises InvalidOlx."""
    if root.tag != block_type:
        raise InvalidOlx(f"The root element must be <{block_type}>, not <{_shown(root.tag)}>.")
    if "url_name" in root.attrib:
        del root.attrib["url_name"]
        text = serialize(root)
    title = str(root.get("display_name", default_title(block_type)))
    if len(title) > LONGEST_TITLE:
        raise InvalidOlx(f"The display name may have at most {LONGEST_TITLE} characters.")
    return Block(block_type, title, text)


def serialize(root: etree._Element) -> str:
    return etree.tostring(root, encoding="unicode", with_tail=False)


def read_xml(text: str, limits: OlxLimits = LIMITS) -> etree._Element:
    """The root of an untrusted text. A document type is refused before the parser sees it.

    Raises InvalidOlx.
    """
    text = trimmed(text)
    _check_text(text, limits)
    try:
        root = etree.fromstring(text, _parser())
    except etree.XMLSyntaxError as error:
        raise InvalidOlx(f"The OLX is not well-formed XML: {_reason(error)}") from error
    except ValueError as error:
        raise InvalidOlx("The OLX is not well-formed XML.") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise InvalidOlx("A document type declaration is not allowed.")
    _check_depth(root, limits.depth)
    return root


def _parser() -> etree.XMLParser:
    return etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        strip_cdata=False,
    )


def _check_text(text: str, limits: OlxLimits) -> None:
    # Characters first: a text of too many need not be encoded to be too long.
    if len(text) > limits.bytes or len(text.encode(errors="replace")) > limits.bytes:
        raise InvalidOlx(f"The OLX is too large: at most {limits.bytes} bytes.")
    if found := NOT_XML.search(text):
        raise InvalidOlx(f"Character U+{ord(found[0]):04X} is not allowed in XML.")
    if not text:
        raise InvalidOlx("The OLX is empty.")
    if _ENCODING.match(text):
        raise InvalidOlx("An XML encoding declaration is not allowed: the text is Unicode already.")
    if _DOCTYPE.match(text):
        raise InvalidOlx("A document type declaration is not allowed.")


def _check_depth(root: etree._Element, deepest: int) -> None:
    depth = 0
    for event, node in etree.iterwalk(root, events=("start", "end", "comment", "pi")):
        if event in ("comment", "pi"):
            continue
        depth += 1 if event == "start" else -1
        if depth > deepest:
            raise InvalidOlx(f"The OLX is nested too deeply: at most {deepest} levels.")
        if node.tag is etree.Entity:
            raise InvalidOlx("Entities are not allowed.")


def _reason(error: etree.XMLSyntaxError) -> str:
    line, column = error.position
    message = str(error.msg or "").partition(", line ")[0]
    return f"{message} (line {line}, column {column})"


def _shown(tag: object) -> str:
    name = str(tag)
    return name if len(name) <= 60 else name[:60] + "…"
