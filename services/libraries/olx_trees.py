"""A course's or library's OLX as folders of files: which components are in it, and what is theirs.

Three layouts are understood: a library (`library.xml` names its components), a course
(`course.xml` leads through chapters, sequentials and verticals to them), and plain folders
(`TYPE/CODE.xml`). The structure of a course is read through, not kept.
"""

import hashlib
import html
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from lxml import etree

from services.libraries import olx
from services.libraries.entries import ArchiveRefused, Tree, read, shown
from services.libraries.olx import Block, InvalidOlx, OlxLimits
from services.libraries.states import (
    NOT_IN_PATHS,
    code_is_valid,
    type_is_valid,
    why_no_component,
)

OUTLINES = ("library.xml", "course.xml")
CONTAINERS = {"library", "course", "chapter", "sequential", "vertical"}
OUTLINE_ONLY = {"textbook", "wiki", "asset", "html_textbook", "pdf_textbook"}
NOT_TYPES = {
    "about", "assets", "drafts", "info", "policies", "static", "tabs", "uploads", "wiki",
} | CONTAINERS  # fmt: skip
LONGEST_ASSET_PATH = 500
_REFERENCE = re.compile(r"(?<![\w./:-])/?static/(?=([^\"'<>\\\r\n\t]{1,400}))")
_DECLARATION = re.compile(r"<\?xml\s[^>]{0,200}\?>")
_ENCODING = re.compile(r"encoding\s*=\s*[\"']([^\"']*)")


@dataclass(frozen=True, slots=True)
class Found:
    """A component somewhere in the tree: in its own file, or written where it is used."""

    block_type: str
    code: str
    file: str | None = None
    inline: str | None = None

    @property
    def name(self) -> str:
        return f"{self.block_type}/{self.code}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A component's text, the files it refers to (by path in the component), and those missing."""

    block: Block
    assets: dict[str, str]
    missing: list[str]


@dataclass
class OlxTree:
    """The components of one upload, in the order of its outline."""

    tree: Tree
    limits: OlxLimits = olx.LIMITS
    allowed: Collection[str] | None = None
    components: list[Found] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    layout: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        names = list(self.tree.names())
        self._root, self.layout = _root(names)
        cut = len(self._root)
        self._files = {name[cut:]: name for name in names if name.startswith(self._root)}
        self._seen: set[tuple[str, str]] = set()
        self._explore()
        if not self.components and not self.skipped:
            raise ArchiveRefused(
                "There is no component in it: neither library.xml, nor course.xml, "
                "nor any TYPE/CODE.xml."
            )

    def load(self, found: Found) -> Loaded:
        """Read one component. Raises InvalidOlx."""
        text = self._text(found.file) if found.file else found.inline or ""
        root = olx.read_xml(text, self.limits)
        block = olx.check_root(root, olx.trimmed(text), block_type=found.block_type)
        if found.block_type == "html" and root.get("filename"):
            block = self._with_body(root, found)
        references = self._references(root)
        return Loaded(block, *references)

    # Which components there are

    def _explore(self) -> None:
        if not self.layout:
            self._every_file()
            return
        root = self._outline(self.layout)
        self.title = str(root.get("display_name", ""))
        if root.tag == "course" and _is_pointer(root):
            root = self._outline(f"course/{root.get('url_name')}.xml")
            self.title = str(root.get("display_name", ""))
        self._walk(root)
        self._unlisted()

    def _outline(self, file: str) -> etree._Element:
        if file not in self._files:
            raise ArchiveRefused(f"{shown(file)}: missing.")
        try:
            return olx.read_xml(self._text(file), self.limits)
        except InvalidOlx as error:
            raise ArchiveRefused(f"{shown(file)}: {error.detail}") from error

    def _walk(self, parent: etree._Element) -> None:
        for node in parent:
            if not isinstance(node.tag, str) or node.tag in OUTLINE_ONLY:
                continue
            block_type, code = node.tag, str(node.get("url_name", ""))
            if block_type in CONTAINERS:
                self._descend(node, code)
            elif _is_pointer(node):
                self._add_file(block_type, code)
            else:
                self._add_inline(node, code)

    def _descend(self, node: etree._Element, code: str) -> None:
        if not _is_pointer(node):
            self._walk(node)
            return
        if (node.tag, code) in self._seen:
            return
        self._seen.add((node.tag, code))
        file = f"{node.tag}/{_file_stem(code)}.xml"
        if file not in self._files:
            self.skipped[f"{node.tag}/{code}"] = f"{shown(file)} is missing."
            return
        try:
            self._walk(olx.read_xml(self._text(file), self.limits))
        except InvalidOlx as error:
            self.skipped[f"{node.tag}/{code}"] = error.detail

    def _add_file(self, block_type: str, code: str) -> None:
        file = f"{block_type}/{_file_stem(code)}.xml"
        if file not in self._files:
            self.skipped[f"{block_type}/{code}"] = f"{shown(file)} is missing."
            return
        self._add(Found(block_type, code, file=file))

    def _add_inline(self, node: etree._Element, code: str) -> None:
        text = olx.serialize(node)
        code = code or str(node.get("slug", "")) or _code_from(text)
        self._add(Found(str(node.tag), code, inline=text))

    def _add(self, found: Found) -> None:
        if (found.block_type, found.code) in self._seen:
            self.skipped.setdefault(f"{found.name} (again)", "it is named more than once.")
            return
        self._seen.add((found.block_type, found.code))
        if not code_is_valid(found.code) or not type_is_valid(found.block_type):
            self.skipped[found.name] = (
                "a code may have letters, digits, underscores, dots and hyphens only."
            )
        elif (why := why_no_component(found.block_type, self.allowed)) is not None:
            self.skipped[found.name] = f"it {why}"
        else:
            self.components.append(found)

    def _every_file(self) -> None:
        for found in self._component_files():
            self._add(found)

    def _unlisted(self) -> None:
        for found in self._component_files():
            if (found.block_type, found.code) not in self._seen:
                self.skipped[found.name] = f"{self.layout} does not lead to it."

    def _component_files(self) -> Iterator[Found]:
        for file in self._files:
            folder, _, name = file.partition("/")
            if name.endswith(".xml") and "/" not in name and folder not in NOT_TYPES:
                yield Found(folder, name.removesuffix(".xml"), file=file)

    # What is in one of them

    def _text(self, file: str) -> str:
        name = self._files[file]
        if self.tree.size(name) > self.limits.bytes:
            raise InvalidOlx(f"{shown(file)} is too large: at most {self.limits.bytes} bytes.")
        try:
            text = read(self.tree, name).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InvalidOlx(f"{shown(file)} is not UTF-8.") from None
        return _without_declaration(text.lstrip())

    def _with_body(self, root: etree._Element, found: Found) -> Block:
        """`<html filename="x"/>`: the text lies in a file next to it, and moves in here."""
        filename = str(root.attrib["filename"])
        places = [f"html/{filename}.html", f"{filename}.html", f"html/{filename}", filename]
        body = next((place for place in places if place in self._files), None)
        if body is None:
            raise InvalidOlx(f"{shown(places[0])} is missing.")
        text = self._text(body)
        del root.attrib["filename"]
        try:
            root.text = text if "]]>" in text else etree.CDATA(text)
        except ValueError:
            raise InvalidOlx(f"{shown(body)} has characters that XML does not allow.") from None
        inlined = olx.serialize(root)
        if len(inlined.encode()) > self.limits.bytes:
            raise InvalidOlx(f"The OLX is too large: at most {self.limits.bytes} bytes.")
        return olx.check_root(root, inlined, block_type=found.block_type)

    def _references(self, root: etree._Element) -> tuple[dict[str, str], list[str]]:
        assets: dict[str, str] = {}
        missing: list[str] = []
        for candidates in _mentioned(root):
            path = next((path for path in candidates if path in self._files), None)
            if path is not None and _usable(path):
                assets[path] = self._files[path]
            else:
                missing.append(path or candidates[-1])
        for path in _maybe_transcripts(root):
            if path in self._files and _usable(path):
                assets[path] = self._files[path]
        return dict(sorted(assets.items())), sorted(set(missing))


def _root(names: list[str]) -> tuple[str, str]:
    """The folder everything is relative to, ending in /, and the outline's file name."""
    outlines = [name for name in names if name.rpartition("/")[2] in OUTLINES]
    if outlines:
        # `course/course.xml` is the course of a `course.xml` next to that folder.
        best = min(outlines, key=lambda name: (name.count("/"), name.endswith("course.xml"), name))
        folder, _, outline = best.rpartition("/")
        return (f"{folder}/" if folder else ""), outline
    prefix = ""
    while names:
        tops = {name[len(prefix) :].partition("/")[0] for name in names}
        if len(tops) != 1 or any(name.count("/") < prefix.count("/") + 2 for name in names):
            break
        prefix += f"{tops.pop()}/"
    return prefix, ""


def _is_pointer(node: etree._Element) -> bool:
    """Only a name, so the rest is in a file of that name."""
    attributes = set(node.attrib) - ({"org", "course"} if node.tag == "course" else set())
    empty = len(node) == 0 and not (node.text or "").strip()
    return empty and attributes == {"url_name"} and bool(node.get("url_name"))


def _file_stem(code: str) -> str:
    return code.replace(":", "/")


def _code_from(text: str) -> str:
    """A name for what has none, always the same for the same content."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _without_declaration(text: str) -> str:
    """Files may declare their encoding; only UTF-8 is read, so it can go."""
    declaration = _DECLARATION.match(text)
    if declaration is None:
        return text
    encoding = _ENCODING.search(declaration[0])
    if encoding and encoding[1].lower() not in ("utf-8", "utf8", "ascii", "us-ascii"):
        raise InvalidOlx(f"The encoding {encoding[1][:40]!r} is not read, only UTF-8.")
    return text[declaration.end() :].lstrip()


def _texts(root: etree._Element) -> Iterator[str]:
    for node in root.iter():
        if isinstance(node.tag, str):
            yield from (str(value) for value in node.attrib.values())
            yield node.text or ""
        yield node.tail or ""


def _mentioned(root: etree._Element) -> Iterator[list[str]]:
    """For each reference to a static file the paths it may mean, most literal first."""
    for text in _texts(root):
        for match in _REFERENCE.finditer(text):
            candidates = _readings(match[1])
            if candidates:
                yield candidates
    for name in _named_transcripts(root):
        if not name.startswith(("/", "http:", "https:")):
            yield [f"static/{name.removeprefix('static/')}"]


def _readings(rest: str) -> list[str]:
    plain = html.unescape(rest)
    shorter = re.split(r"[?#]", plain, maxsplit=1)[0]
    shortest = re.split(r"[\s),;&|\]}]", shorter, maxsplit=1)[0]
    readings: dict[str, None] = {}
    for text in (rest, plain, shorter, shortest):
        for reading in (text.strip(), unquote(text).strip()):
            if reading:
                readings[f"static/{reading}"] = None
    return list(readings) if shortest else []


def _named_transcripts(root: etree._Element) -> Iterator[str]:
    if root.tag != "video":
        return
    for node in root.iter("transcript"):
        if node.get("src"):
            yield str(node.get("src"))
    try:
        named = json.loads(str(root.get("transcripts", "{}")))
    except (ValueError, RecursionError):
        return
    if isinstance(named, dict):
        yield from (str(name) for name in named.values() if name)


def _maybe_transcripts(root: etree._Element) -> Iterator[str]:
    """Files that older exports keep for a video without naming them in full."""
    if root.tag != "video":
        return
    if root.get("sub"):
        yield f"static/subs_{root.get('sub')}.srt.sjson"
    for node in root.iterfind("video_asset/transcripts/transcript"):
        language, kind = node.get("language_code", ""), node.get("file_format", "srt")
        yield f"static/{root.get('edx_video_id', '')}-{language}.{kind}"


def _usable(path: str) -> bool:
    """contract: libraries §3.7, content_core §1.5"""
    parts = path.split("/")
    return (
        len(path) <= LONGEST_ASSET_PATH
        and path == path.strip()
        and NOT_IN_PATHS.search(path) is None
        and "\\" not in path
        and not {"", ".."} & set(parts)
    )
