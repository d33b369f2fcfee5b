"""`make demo`: the main jobs on real content, told on the terminal. Every line is what happened."""

import time
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.table import Table

from deploy import embedded
from deploy.demo import archives, authoring, tasks
from deploy.demo.content import as_is, expected, opened, pack
from deploy.demo.service import DemoFailed, Service
from deploy.demo.terminal import Story, console
from services.libraries.olx_trees import OlxTree
from shared.callers import make_token

SAMPLE = Path(__file__).parents[2] / "samples" / "coast-and-sky"


def tell(suite: embedded.Suite, service: Service, story: Story, content: Path) -> Path:
    """The whole story; the archive it ends with."""
    mark = time.strftime("%m%d-%H%M%S")
    with opened(content) as tree:
        olx = OlxTree(tree)
        wanted, title = expected(olx), olx.title or content.name
        story.chapter(f"Import {title}: {len(wanted)} components")
        small = service.create_library(f"small-{mark}", title)
        tasks.imported(service, story, small, pack(as_is(tree)), f"import into {small}")
    story.chapter("Publish it")
    tasks.publish(service, story, small)
    authoring.arrange(service, story, small)
    authoring.collect_and_find(service, story, small)
    authoring.change_one_s_mind(service, story, small)
    tasks.play(suite, tasks.large_library(service, story, f"large-{mark}", wanted))
    folder = suite.folder / "demo"
    folder.mkdir(exist_ok=True)
    archive = archives.verify(service, story, folder, small, wanted)
    archives.restore(service, story, folder, archive, f"again-{mark}")
    return archive


def summary(suite: embedded.Suite, story: Story, archive: Path, seconds: float) -> None:
    table = Table(title="What happened", title_justify="left", box=None, pad_edge=False)
    table.add_column("", style="bold")
    table.add_column("")
    for row in story.rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print(f"\nThe archive: {archive}", soft_wrap=True)
    console.print(
        f"The whole story took {seconds:.0f} s. To look around: [bold]make up[/bold], then "
        f"{suite.origin}/ and [bold]make token user=ada staff=1[/bold]."
    )


def run(content: Path) -> None:
    """Start what is not running, tell the story, and stop what was started."""
    started = time.monotonic()
    suite = embedded.Suite.of_environment()
    story = Story()
    story.chapter("Start everything")
    was_running = suite.child("web").process() is not None
    embedded.up(suite, story.say)
    try:
        token = make_token(suite.secrets["token_secret"], "ada", staff=True)
        headers = {"Authorization": f"JWT {token}"}
        with httpx.Client(
            base_url=suite.origin, headers=headers, timeout=120, trust_env=False
        ) as http:
            archive = tell(suite, Service(http), story, content)
    finally:
        if not was_running:
            embedded.down(suite, lambda _: None)
    summary(suite, story, archive, time.monotonic() - started)


def main(
    content: Annotated[
        Path, typer.Option(help="an OLX folder, or a .tar.gz or .zip of one")
    ] = SAMPLE,
) -> None:
    """Import, arrange, find, back up, cancel, kill, restore: the sample or your content."""
    if not content.exists():
        typer.echo(f"lyceum: there is no {content}", err=True)
        raise typer.Exit(1)
    try:
        run(content)
    except (embedded.CannotStart, DemoFailed, httpx.HTTPError) as error:
        typer.echo(f"lyceum: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
