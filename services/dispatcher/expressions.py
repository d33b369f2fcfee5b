"""The `q` parameter: other filters joined by NOT, AND, OR and parentheses.

contract: dispatcher §5.1
"""

import re
from collections.abc import Callable

from sqlalchemy import ColumnElement, and_, not_, or_

MOST_PARTS = 8
MOST_NESTED = 20
Apply = Callable[[str, str], ColumnElement[bool]]
TOKEN = re.compile(
    r"""\s*(?:(?P<bracket>[()])
          |(?P<word>NOT|AND|OR)\b
          |(?P<name>[A-Za-z_]\w*)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"
                                         |'(?P<single>(?:[^'\\]|\\.)*)'
                                         |(?P<plain>[^\s()"']+)))""",
    re.VERBOSE | re.IGNORECASE,
)


def read_expression(text: str, apply: Apply) -> ColumnElement[bool]:
    """The condition an expression stands for; `apply` makes that of one filter and its value.

    Raises ValueError, saying what is wrong with it.
    """
    return _Reader(_tokens(text), apply).whole()


def _tokens(text: str) -> list[re.Match[str]]:
    found, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"Syntax error in expression at character {position + 1}.")
        found.append(match)
        position = match.end()
    if not found:
        raise ValueError("An expression may not be empty.")
    parts = sum(1 for match in found if not match["bracket"])
    if parts > MOST_PARTS:
        raise ValueError(f"Filter expression exceeds allowed complexity of {MOST_PARTS}.")
    return found


class _Reader:
    def __init__(self, tokens: list[re.Match[str]], apply: Apply) -> None:
        self._tokens, self._apply, self._place, self._depth = tokens, apply, 0, 0

    def whole(self) -> ColumnElement[bool]:
        condition = self._any()
        if self._place < len(self._tokens):
            raise ValueError("Syntax error in expression: too many closing parentheses.")
        return condition

    def _any(self) -> ColumnElement[bool]:
        parts = [self._all()]
        while self._next_is("OR"):
            parts.append(self._all())
        return or_(*parts)

    def _all(self) -> ColumnElement[bool]:
        parts = [self._one()]
        while self._next_is("AND"):
            parts.append(self._one())
        return and_(*parts)

    def _one(self) -> ColumnElement[bool]:
        if self._next_is("NOT"):
            return not_(self._one())
        if self._next_is("("):
            self._depth += 1
            if self._depth > MOST_NESTED:
                raise ValueError("The expression is nested too deeply.")
            condition = self._any()
            if not self._next_is(")"):
                raise ValueError("Syntax error in expression: a parenthesis is not closed.")
            self._depth -= 1
            return condition
        return self._filter()

    def _filter(self) -> ColumnElement[bool]:
        match = self._tokens[self._place] if self._place < len(self._tokens) else None
        if match is None or not match["name"]:
            raise ValueError("Syntax error in expression: a filter is missing.")
        self._place += 1
        quoted = match["quoted"] if match["quoted"] is not None else match["single"]
        value = match["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        return self._apply(match["name"], value)

    def _next_is(self, text: str) -> bool:
        if self._place < len(self._tokens):
            match = self._tokens[self._place]
            if (match["bracket"] or (match["word"] or "").upper()) == text:
                self._place += 1
                return True
        return False
