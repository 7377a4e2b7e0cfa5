"""`figureground self-train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from figureground.cli.ending import say_left_out, stoppable
from figureground.cli.options import Device, Out
from figureground.stages.train_recipes import RECIPES

if TYPE_CHECKING:
    from figureground.stages.rounds import RoundsResult

_MEASURES = {"mask_ap50": "mask AP50", "mask_ap": "mask AP", "mask_ar100": "mask AR100"}
_MEASURES |= {"box_ap50": "box AP50", "box_ap": "box AP", "box_ar100": "box AR100", "corloc": "CorLoc"}


def self_train(
    detector: Annotated[str, typer.Argument(help="The folder of a `train` run, or a file of weights.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="The `label` run or COCO file that it was trained with. [default: as the training says]"),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="What was labelled: photographs and folders; repeatable. [default: as the training says]"),
    ] = None,
    out: Out = None,
    rounds: Annotated[
        int | None, typer.Option(help="How often the detector is trained anew. [default: 3, of a SOLOv2 1]")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(RECIPES)}. [default: what follows the detector's own training]"),
    ] = None,
    device: Device = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="thresholds=[0.7,0.65], merge.max_overlap, merge.nms, predict.max_detections, predict.batch_size, "
            "train.steps, train.optimiser.rate, train.exemplars (a pool, with a detector that learns embeddings) ...; "
            "repeatable.",
        ),
    ] = None,
) -> None:
    """Train a detector anew, round by round, on what it finds itself in the photographs it was trained with.

    Example: `figureground self-train runs/detector --out runs/better`. Can be stopped at any time and run again.
    """
    from figureground.cli.progress import progress_bar, training_bar
    from figureground.errors import UsageError
    from figureground.stages import self_train as stage
    from figureground.stages.rounds import Bars

    if out is None:
        raise UsageError(
            "--out is missing: where shall the detector go?",
            "Example: figureground self-train runs/detector --out runs/better",
        )
    config = stage.configure(
        detector, labels, images or (), assignments or (), recipe=recipe, rounds=rounds, device=device
    )
    with stoppable():
        result = stage.run(config, out, Bars(progress_bar, training_bar))
    report(result)
    raise typer.Exit(3 if result.failed else 0)


def report(result: "RoundsResult") -> None:
    """Say what came of the rounds."""
    console = Console(highlight=False, soft_wrap=True)
    for number, counts in enumerate(result.rounds, start=1):
        console.print(
            f"Round {number}: {counts['kept']} masks kept, {counts['replaced']} replaced, {counts['added']} added from "
            f"a score of {counts['threshold']:g}."
        )
    if result.measured:
        table = Table("per cent", *result.measured)
        for name, title in _MEASURES.items():
            values = (measured.get(name) for measured in result.measured.values())
            table.add_row(title, *("-" if value is None else f"{value:.1f}" for value in values))
        console.print(table)
    console.print(f"{result.seconds:.1f} s.")
    say_left_out(console, result.out, result.failed, 0)
    console.print(f"Detector: {escape(str(result.detector))}")
    console.print(f"Report:   {escape(result.report.absolute().as_uri())}")
    console.print(f"Use:      figureground predict {escape(str(result.out))} ...")
