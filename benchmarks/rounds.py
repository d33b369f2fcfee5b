"""Claims, measured in rounds: everyone takes turns, and ratios are made within a round."""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Measure = Callable[[], float]


@dataclass
class Claim:
    """One thing that is compared. The first of `entrants` whose name is `against` is the measure.

    `better` says whether more or less is better; a ratio above 1 is always in our favour when
    it stands at one of our own entrants.
    """

    what: str
    unit: str
    against: str
    goal: str = ""
    better: str = "more"
    note: str = ""
    figures: dict[str, list[float]] = field(default_factory=dict)
    statements: dict[str, list[float]] = field(default_factory=dict)

    def add_count(self, who: str, value: float) -> None:
        """SQL statements, which no other load on the machine changes."""
        self.statements.setdefault(who, []).append(value)

    def add(self, who: str, value: float) -> None:
        self.figures.setdefault(who, []).append(value)

    def ratios(self, who: str) -> list[float]:
        """How many times better than the measure, round by round."""
        measure = self.figures.get(self.against, [])
        pairs = zip(self.figures[who], measure, strict=False)
        if self.better == "less":
            return [theirs / own for own, theirs in pairs if own]
        return [own / theirs for own, theirs in pairs if theirs]


@dataclass
class Report:
    """All claims of a benchmark and what was left out of it."""

    name: str
    sizes: dict[str, Any]
    claims: list[Claim] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def claim(self, *args: Any, **kwargs: Any) -> Claim:
        self.claims.append(Claim(*args, **kwargs))
        return self.claims[-1]

    def print(self) -> None:
        """A table: the ratio is the claim; the figure behind it only helps to read it."""
        for claim in self.claims:
            goal = f", goal {claim.goal}" if claim.goal else ""
            print(f"\n{claim.what} (x {claim.against}{goal})")
            for who in claim.figures:
                print(_line(claim, who))
            if claim.note:
                print(f"  {claim.note}")
        for who, why in self.skipped.items():
            print(f"\nskipped: {who}: {why}")

    def as_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "sizes": self.sizes,
            "claims": [_claim_json(claim) for claim in self.claims],
            "skipped": self.skipped,
        }


def _line(claim: Claim, who: str) -> str:
    values, ratios = claim.figures[who], claim.ratios(who)
    ratio = _spread(ratios, "{:.3g}") if ratios else "-"
    counts = claim.statements.get(who)
    sql = f", {statistics.median(counts):,.4g} statements" if counts else ""
    return f"  {who:<44}{ratio:>24}   [{_spread(values, '{:,.5g}')} {claim.unit}{sql}]"


def _spread(values: list[float], form: str) -> str:
    middle = form.format(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))} - {form.format(max(values))})"


def _claim_json(claim: Claim) -> dict[str, Any]:
    return {
        "what": claim.what,
        "unit": claim.unit,
        "against": claim.against,
        "goal": claim.goal,
        "better": claim.better,
        "note": claim.note,
        "entrants": {
            who: {"figure": _summary(values), "ratio": _summary(claim.ratios(who))}
            | ({"statements": _summary(claim.statements[who])} if who in claim.statements else {})
            for who, values in claim.figures.items()
        },
    }


def _summary(values: list[float]) -> dict[str, Any]:
    if not values:
        return {}
    rounded = [float(f"{value:.5g}") for value in values]
    return {
        "median": float(f"{statistics.median(values):.5g}"),
        "min": min(rounded),
        "max": max(rounded),
        "rounds": rounded,
    }


def take_turns(claim: Claim, rounds: int, entrants: Mapping[str, Measure]) -> None:
    """Measure everyone in each round, the next round in the opposite order."""
    order = list(entrants)
    for number in range(rounds):
        for who in order if number % 2 == 0 else reversed(order):
            claim.add(who, entrants[who]())


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of all values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def write(reports: list[Report], path: Path | None) -> None:
    """The tables, then JSON on the last line, and into a file when one is named."""
    for report in reports:
        report.print()
    text = json.dumps([report.as_json() for report in reports])
    if path is not None:
        path.write_text(text + "\n")
    print()
    print(text)
