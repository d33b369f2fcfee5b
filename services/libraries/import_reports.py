"""What became of an import, as its user reads it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.libraries.entries import ArchiveRefused, shown
from services.libraries.olx_trees import OlxTree
from shared.problems import Problem

LONGEST_LIST = 1000


@dataclass
class Report:
    """Counts, and what was left out with the reason."""

    library_key: str
    title: str = ""
    total: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_type: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    done: int = 0

    def begin(self, tree: OlxTree) -> None:
        """What was read; of what becomes of it nothing is known yet, or any more."""
        self.title, self.total = tree.title, len(tree.components)
        self.outcomes, self.by_type = Counter(), Counter()
        self.skipped, self.missing, self.done = dict(tree.skipped), {}, 0

    def added(self, block_type: str, outcome: str) -> None:
        self.by_type[block_type] += 1
        self.outcomes[outcome] += 1

    def failed(self, problem: Problem) -> None:
        self.errors = problem.lines if isinstance(problem, ArchiveRefused) else [problem.detail]

    def numbers(self) -> dict[str, Any]:
        """What a program needs of it."""
        kinds = ("added", "changed", "unchanged")
        return {kind: self.outcomes[kind] for kind in kinds} | {
            "skipped": len(self.skipped),
            "by_type": dict(sorted(self.by_type.items())),
        }

    def text(self) -> str:
        of = f" of “{shown(self.title)}”" if self.title else ""
        return "\n".join([f"Import{of} into {self.library_key}", "", *self._lines()]) + "\n"

    def _lines(self) -> Iterator[str]:
        if self.errors:
            yield "Nothing was imported:"
            yield from _listed(self.errors)
            return
        numbers = ", ".join(
            f"{count} {kind}" for kind, count in self.numbers().items() if kind != "by_type"
        )
        yield f"Components: {numbers}."
        for block_type, count in sorted(self.by_type.items()):
            yield f"  {block_type}: {count}"
        for heading, lines in (
            ("Left out:", self.skipped),
            ("Files referred to, but not in the upload:", self.missing),
        ):
            if lines:
                yield ""
                yield heading
                yield from _listed([f"{shown(name)}: {text}" for name, text in lines.items()])


def _listed(lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:LONGEST_LIST]:
        yield f"  {line}"
    if len(lines) > LONGEST_LIST:
        yield f"  and {len(lines) - LONGEST_LIST} more"
