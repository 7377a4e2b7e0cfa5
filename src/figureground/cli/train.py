"""`figureground train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from figureground.cli.ending import is_first_process, say_left_out, stoppable
from figureground.cli.options import Device, Out
from figureground.stages.train_recipes import RECIPES, find_recipe

if TYPE_CHECKING:
    from figureground.stages.train import TrainConfig, TrainResult


def train(
    labels: Annotated[Path, typer.Argument(help="The folder of a `label` run, or a COCO file of masks.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="What was labelled: photographs and folders. [default: as the run says]"),
    ] = None,
    out: Out = None,
    detector: Annotated[
        str | None, typer.Option(help="mask_rcnn, cascade_mask_rcnn, vitdet or solov2. [default: the recipe's]")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(RECIPES)}. [default: cutler_cascade on a GPU, else small]"),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="A detector or a backbone to begin with: a file, the folder of a run, or timm/NAME. [default: random]",
        ),
    ] = None,
    device: Device = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="steps, batch_size, optimiser.rate, ema, workers, labels.min_score, copy_paste.rate, "
            "detector.backbone.arch, labels.class_agnostic=false (learn the categories of the file), exemplars, "
            "probe.truth ...; repeatable.",
        ),
    ] = None,
) -> None:
    """Learn a detector from photographs and the masks that were found in them.

    Example: `figureground train runs/photos --out runs/detector`, then
    `figureground predict runs/detector photos/new --out runs/new`. Can be stopped at any time and run again. On several
    GPUs: `torchrun --nproc-per-node 8 -m figureground train ... --device cuda`.
    """
    from figureground.cli.progress import training_bar
    from figureground.errors import UsageError
    from figureground.stages import train as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the detector go?",
            "Example: figureground train runs/photos --out runs/detector",
        )
    config = stage.configure(
        labels, images or (), assignments or (), recipe=recipe, detector=detector, init=init, device=device
    )
    if is_first_process():
        _say_init(config)
    with stoppable(), training_bar("Training") as progress:
        result = stage.run(config, out, progress)
    if is_first_process():
        _report(result)
        raise typer.Exit(3 if result.failed or result.rejected else 0)


def _say_init(config: "TrainConfig") -> None:
    published = find_recipe(config.recipe).init
    if config.init is None and published:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"Training begins with random weights; {config.recipe} is published to begin with {published}: --init."
        )


def _report(result: "TrainResult") -> None:
    console = Console(highlight=False, soft_wrap=True)
    losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    console.print(f"{result.steps} steps on {result.images} images, {result.seconds:.1f} s. Losses: {losses}.")
    if result.measured:
        measured = ", ".join(f"{name} {100 * value:.2f}" for name, value in result.measured.items())
        console.print(f"Measured on the truth, in per cent: {measured}.")
    if result.skipped:
        console.print(f"{result.skipped} steps were skipped: the loss or its gradient was not finite.")
    if result.rejected:
        console.print(f"{result.rejected} masks could not be used; see {escape(str(result.out))}/failures.jsonl.")
    say_left_out(console, result.out, result.failed, 0)
    console.print(f"Detector: {escape(str(result.detector))}")
    console.print(f"Report:   {escape(result.report.absolute().as_uri())}")
    console.print(f"Use:      figureground predict {escape(str(result.out))} ...")
