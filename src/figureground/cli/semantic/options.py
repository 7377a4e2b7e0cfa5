"""Options that the verbs which measure share, and what they say when they end, worded once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from figureground.cli.ending import say_left_out

if TYPE_CHECKING:
    from figureground.stages.semantic_report import SemanticResult

Model = Annotated[Path | None, typer.Argument(help="The folder of a `semantic train` run; none with --backbone.")]
Backbone = Annotated[
    str | None, typer.Option(help="Embed by the features of a backbone instead; see `figureground doctor`.")
]
Val = Annotated[
    Path | None, typer.Option(help="Truth to measure by: a folder with classes.json, or a COCO file with classes.")
]
TrainTruth = Annotated[Path | None, typer.Option(help="Truth of the images to learn from: as --val.")]


def chosen(model: Path | None, backbone: str | None, val: Path | None) -> dict[str, Any]:
    """What the shared options say, by the keys of a configuration."""
    return {
        "model": None if model is None else str(model),
        "backbone": None if backbone is None else {"name": backbone},
        "val": None if val is None else str(val),
    }


def say_measured(result: "SemanticResult", what: str) -> None:
    """Say the mean IoU and that of each class, and where the rest is."""
    console = Console(highlight=False, soft_wrap=True)
    miou = result.miou
    between = "" if miou.low is None else f" ({miou.low:.1f} to {miou.high:.1f}, 95 %)"
    console.print(f"mIoU {miou.value:.1f} %{between}, {what}, {result.images} images, {result.seconds:.1f} s.")
    table = Table("class", box=None)
    table.add_column("IoU, %", justify="right")
    for name, value in result.per_class.items():
        table.add_row(escape(name), "-" if value is None else f"{value:.1f}")
    console.print(table)
    for note in result.notes:
        console.print(note, markup=False)
    say_left_out(console, result.out, result.failed, 0)
    console.print(f"Maps:   {escape(str(result.out / 'maps'))}")
    console.print(f"Report: {escape(result.report.absolute().as_uri())}")
