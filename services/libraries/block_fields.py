"""A component's OLX as fields: the root's attributes, and what is inside it.

Which type a field has only its block's code knows, and that is not here: what reads as a JSON
number, truth value, list or object in its one usual form is shown as that, all else as text.
contract: libraries §3.12, §4.9
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from lxml import etree
from sqlmodel.ext.asyncio.session import AsyncSession

from services.libraries import components, olx
from services.libraries.models import Entity, Library
from services.libraries.olx import InvalidOlx, OlxLimits
from services.libraries.versions import MadeVersion
from shared.problems import BadInput

DEEPEST, LONGEST_NAME, LONGEST_NUMBER = 50, 255, 15
LARGEST = 2**53
TITLE = "display_name"
NO_FIELDS = {"url_name", "xmlns"}
_NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_JSON = re.compile(r"true|false|[-\d\[{]")


@dataclass(frozen=True, slots=True)
class Fields:
    """What a version of a component says of itself."""

    display_name: str
    metadata: dict[str, Any]
    data: str


def read(content: str, *, block_type: str) -> Fields:
    """The fields of a stored OLX. Raises InvalidOlx for what was restored without being XML."""
    root = olx.read_xml(content, olx.STORED)
    metadata = {
        str(name): str(value) if name == TITLE else _value(str(value))
        for name, value in root.attrib.items()
        if _NAME.fullmatch(str(name))
    }
    title = str(root.get(TITLE, olx.default_title(block_type)))
    return Fields(title, metadata, _data(root, content))


def _data(root: etree._Element, content: str) -> str:
    """Of html its text, of a problem all of it, as its editors expect; of others what is inside."""
    if root.tag == "problem":
        return content
    if root.tag == "html" and not any(isinstance(node.tag, str) for node in root):
        return (root.text or "") + "".join(node.tail or "" for node in root)
    inside = olx.serialize(root)  # In which no attribute holds a ">".
    return inside[inside.find(">") + 1 : inside.rfind("</")] if "</" in inside else ""


def _value(content: str) -> Any:
    if not _JSON.match(content):
        return content
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return content
    if isinstance(value, list | dict):
        return value if _depth(value) <= DEEPEST else content
    usual = orjson.dumps(value).decode() == content
    return value if usual and len(content) <= LONGEST_NUMBER else content


def _depth(value: Any) -> int:
    """How many lists and objects are around the innermost value, as far as it matters."""
    depth, level = 0, _held([value])
    while level and depth <= DEEPEST:
        depth, level = depth + 1, _held(_inner(level))
    return depth


def _held(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, list | dict)]


def _inner(values: Iterable[Any]) -> list[Any]:
    return [part for one in values for part in (one.values() if isinstance(one, dict) else one)]


def _parts(value: Any) -> Iterator[str | float]:
    """All texts and numbers of a value that is not too deep."""
    level = [value]
    while level:
        yield from (part for part in level if isinstance(part, str | int | float))
        held = _held(level)
        yield from (name for one in held if isinstance(one, dict) for name in one)
        level = _inner(held)


async def save(
    session: AsyncSession,
    library: Library,
    component: Entity,
    *,
    data: str | None,
    metadata: Mapping[str, Any],
    user: str,
    now: datetime,
    limits: OlxLimits,
) -> tuple[MadeVersion, Fields]:
    """Make the next version with these fields; what is not named stays, None takes it away.

    Of two saves at once both are there, for each reads what the other has made. Raises BadInput
    naming the field, InvalidOlx, or BlockUnknown when it is deleted by now.
    """
    given = {name: _attribute(name, value, limits) for name, value in metadata.items()}
    inside = None if data is None else _inside(data, component.type, limits)
    await components.hold(session, component)
    root = olx.read_xml(await components.get_olx(session, component), olx.STORED)
    if inside is not None:
        for name, value in root.attrib.items():
            if name not in inside.attrib:
                inside.set(name, value)
        root = inside
    for name, content in given.items():
        if content is None:
            root.attrib.pop(name, "")
        else:
            root.set(name, content)
    content = olx.serialize(root)
    made = await components.set_olx(
        session, library, component, content, user=user, now=now, limits=limits
    )
    return made, read(content, block_type=component.type)


def _attribute(name: str, value: Any, limits: OlxLimits) -> str | None:
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME or name in NO_FIELDS:
        raise _refused("metadata", f"{_shown(name)}: not the name of a field.")
    field = f"metadata.{name}"
    if value is None:
        return None
    if _depth(value) > DEEPEST:
        raise _refused(field, f"Nested too deeply: at most {DEEPEST} levels.")
    for part in _parts(value):
        if isinstance(part, str):
            _require_text(field, part, limits)
        elif abs(part) >= LARGEST or not math.isfinite(part):
            raise _refused(field, "Not a number that can be stored.")
    content = value if isinstance(value, str) else orjson.dumps(value).decode()
    _require_text(field, content, limits)
    if name == TITLE and len(content) > olx.LONGEST_TITLE:
        raise _refused(field, f"At most {olx.LONGEST_TITLE} characters.")
    return content


def _inside(data: str, block_type: str, limits: OlxLimits) -> etree._Element:
    """An element with what is to be inside, and with the attributes to add."""
    _require_text("data", data, limits)
    if block_type == "html":
        root = etree.Element(block_type)
        root.text = etree.CDATA(data) if data and "]]>" not in data else data
        return root
    try:
        whole = re.match(rf"\s*(?:<!--.*?-->\s*)*<{re.escape(block_type)}[\s>/]", data, re.DOTALL)
        wrapped = data if whole else f"<{block_type}>{data}</{block_type}>"
        root = olx.read_xml(wrapped, limits)
    except InvalidOlx as error:
        raise _refused("data", error.detail) from None
    root.attrib.pop("url_name", "")
    return root


def _require_text(field: str, content: str, limits: OlxLimits) -> None:
    if len(content) > limits.bytes:
        raise _refused(field, f"Too long: at most {limits.bytes} bytes.")
    if found := olx.NOT_XML.search(content):
        raise _refused(field, f"Character U+{ord(found[0]):04X} is not allowed in XML.")


def _refused(field: str, message: str) -> BadInput:
    return BadInput(f"{field}: {message}", fields={field: [message]})


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:60] + "…")
