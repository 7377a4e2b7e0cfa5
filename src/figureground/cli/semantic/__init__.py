"""`figureground semantic`: the verbs of semantic segmentation without labels."""

import typer

from figureground.cli.semantic.cluster import cluster
from figureground.cli.semantic.probe import probe
from figureground.cli.semantic.retrieve import retrieve
from figureground.cli.semantic.train import train

semantic = typer.Typer(
    name="semantic",
    help="Semantic segmentation without labels: what goes with what, from masks that only say where.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
semantic.command()(train)
semantic.command()(cluster)
semantic.command()(probe)
semantic.command()(retrieve)
