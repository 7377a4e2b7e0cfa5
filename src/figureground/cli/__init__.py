"""The command line: verbs only, each thin over its stage. Torch is not imported until a verb runs."""

import sys
from collections.abc import Sequence

import typer
from rich.console import Console

from figureground import __version__
from figureground.cli.cluster import cluster
from figureground.cli.compare import compare
from figureground.cli.distil import distil
from figureground.cli.doctor import doctor
from figureground.cli.evaluate import evaluate
from figureground.cli.exemplars import exemplars
from figureground.cli.found import found_head
from figureground.cli.label import label
from figureground.cli.learn import learn
from figureground.cli.predict import predict
from figureground.cli.pretrain import pretrain
from figureground.cli.self_train import self_train
from figureground.cli.semantic import semantic
from figureground.cli.train import train
from figureground.cli.truth import truth
from figureground.errors import FiguregroundError, UsageError

app = typer.Typer(
    name="figureground",
    help="Find objects in photographs without labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(label)
app.command()(learn)
app.command()(train)
app.command("self-train")(self_train)
app.command()(predict)
app.command()(evaluate)
app.command()(compare)
app.command()(cluster)
app.command()(exemplars)
app.command()(pretrain)
app.add_typer(semantic)
app.command("found-head")(found_head)
app.command()(distil)
app.command()(truth)
app.command()(doctor)


def _version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool | None = typer.Option(None, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process: 0 done, 1 failed, 2 usage, 3 done but some images failed."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        app(args=list(arguments) if arguments is not None else None)
    except FiguregroundError as error:
        console.print("[bold red]Error:[/] ", end="")
        console.print(error.message, markup=False)
        if error.remedy:
            console.print(error.remedy, markup=False)
        sys.exit(2 if isinstance(error, UsageError) else 1)
