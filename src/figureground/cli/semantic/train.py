"""`figureground semantic train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from figureground.cli.ending import is_first_process, say_left_out, stoppable
from figureground.cli.options import Device, Out
from figureground.stages.semantic_recipes import RECIPES, find_recipe

if TYPE_CHECKING:
    from figureground.stages.semantic_train import SemanticTrainConfig, SemanticTrainResult


def train(
    labels: Annotated[Path, typer.Argument(help="The folder of a `label` or `predict` run, or a COCO file of masks.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="What was labelled: photographs and folders. [default: as the run says]"),
    ] = None,
    out: Out = None,
    recipe: Annotated[
        str | None, typer.Option(help=f"{', '.join(RECIPES)}. [default: maskcontrast_paper on a GPU, else small]")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="A backbone to begin with: a file (MoCo-v2, DINO, torchvision), the folder of `pretrain` or `distil`, "
            "the name of a DINO transformer, or timm/NAME. [default: random]",
        ),
    ] = None,
    device: Device = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="pairs.masks, pairs.min_score, epochs, batch_size, seed, optimiser.rate, maskcontrast.queue, "
            "maskcontrast.segmenter.arch ...; repeatable.",
        ),
    ] = None,
) -> None:
    """Learn an embedding of every pixel from photographs and the masks that were found in them, by MaskContrast.

    Example: `figureground semantic train runs/photos --out runs/semantic`. Can be stopped at any time and run again. On
    several GPUs: `torchrun --nproc-per-node 8 -m figureground semantic train ... --device cuda`.
    """
    from figureground.cli.progress import training_bar
    from figureground.errors import UsageError
    from figureground.stages import semantic_train as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the segmenter go?",
            "Example: figureground semantic train runs/photos --out runs/semantic",
        )
    config = stage.configure(labels, images or (), assignments or (), recipe=recipe, init=init, device=device)
    if is_first_process():
        _say_init(config)
    with stoppable(), training_bar("Training") as progress:
        result = stage.run(config, out, progress)
    if is_first_process():
        _report(result)
        raise typer.Exit(3 if result.failed or result.rejected else 0)


def _say_init(config: "SemanticTrainConfig") -> None:
    published = find_recipe(config.recipe).init
    if config.init is None and published:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"Training begins with random weights; {config.recipe} is published to begin with {published}: --init."
        )


def _report(result: "SemanticTrainResult") -> None:
    console = Console(highlight=False, soft_wrap=True)
    losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    console.print(
        f"{result.steps} steps on {result.proposals} masks of {result.images} images, {result.seconds:.1f} s. "
        f"Losses: {losses}."
    )
    if result.left_out:
        console.print(f"{result.left_out} images had no mask of a size to learn from.")
    if result.skipped:
        console.print(f"{result.skipped} steps were skipped: the loss or its gradient was not finite.")
    if result.rejected:
        console.print(f"{result.rejected} masks could not be used; see {escape(str(result.out))}/failures.jsonl.")
    say_left_out(console, result.out, result.failed, 0)
    console.print(f"Segmenter: {escape(str(result.segmenter))}")
    console.print(f"Report:    {escape(result.report.absolute().as_uri())}")
