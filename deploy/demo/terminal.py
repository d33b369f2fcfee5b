"""What the demo prints: chapters, progress bars, and a table at the end."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(highlight=False)


@dataclass
class Story:
    """What happened so far, for the table at the end."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    chapters: int = 0

    def chapter(self, text: str) -> None:
        self.chapters += 1
        console.print(f"\n[bold]{self.chapters}. {text}[/bold]")

    def say(self, text: str) -> None:
        console.print(f"  {text}", soft_wrap=True)

    def keep(self, what: str, how: str) -> None:
        self.rows.append((what, how))


def bar() -> Progress:
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.completed:>5.0f}/{task.total}"),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
        console=console,
    )
