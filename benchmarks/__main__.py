"""`python -m benchmarks`: every benchmark there is, small; `python -m benchmarks.NAME` for one."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks import dispatcher, libraries, user_tasks
from benchmarks.rounds import write


def run(
    rounds: Annotated[int, typer.Option(help="how often everyone is measured")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="write JSON there")] = None,
) -> None:
    """All claims in sizes that take less than three minutes."""
    small = dispatcher.Sizes(tasks=500, rounds=rounds, requests=1000, waiting=10_000, samples=30)
    few = user_tasks.Sizes(tasks=100, rounds=rounds, rows=100_000, purged=2000)
    some = libraries.Sizes(components=100, samples=10, rounds=rounds, large=5000)
    write(
        [
            dispatcher.measure(small, dispatcher.PARTS),
            user_tasks.measure(few, user_tasks.PARTS),
            libraries.measure(some, libraries.PARTS),
        ],
        json_file,
    )


if __name__ == "__main__":
    typer.run(run)
