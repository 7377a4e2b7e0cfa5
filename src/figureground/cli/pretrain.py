"""`figureground pretrain`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from figureground.cli.ending import is_first_process, say_left_out, stoppable
from figureground.cli.options import Device, Limit, Out
from figureground.stages.pretrain_recipes import RECIPES

if TYPE_CHECKING:
    from figureground.stages.pretrain import PretrainResult

_RECIPES = "; ".join(f"{name}: {recipe.summary}" for name, recipe in RECIPES.items())


def pretrain(
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders of them, recursively, and plain .tar files of them (WebDataset)."),
    ] = None,
    out: Out = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"What the settings begin as. {_RECIPES}. [default: dino_s16]")
    ] = None,
    device: Device = None,
    limit: Limit = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="epochs, batch_size, workers, seed, crops.local_count, dino.vit.width, probe.labels ...; repeatable.",
        ),
    ] = None,
) -> None:
    """Learn a backbone of your own from images, without labels, by DINO.

    Example: `figureground pretrain photos/ more.tar --out runs/backbone --recipe small --device cuda`; on several GPUs,
    `torchrun --nproc-per-node 8 -m figureground pretrain ...`. Can be stopped at any time and run again.
    """
    from figureground.cli.progress import training_bar
    from figureground.errors import UsageError
    from figureground.stages import pretrain as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the backbone go?", "Example: figureground pretrain photos/ --out runs/own"
        )
    config = stage.configure(images or (), assignments or (), recipe=recipe, device=device, limit=limit)
    with stoppable(), training_bar("Learning") as progress:
        result = stage.run(config, out, progress)
    if is_first_process():
        _report(result)
        raise typer.Exit(3 if result.failed else 0)


def _report(result: "PretrainResult") -> None:
    console = Console(highlight=False, soft_wrap=True)
    losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    speed = f", {result.images_per_s:.1f} images/s" if result.images_per_s else ""
    console.print(f"{result.steps} steps on {result.images} images, {result.seconds:.1f} s{speed}. Losses: {losses}.")
    console.print(f"Measured: {', '.join(f'{name} {value:.3f}' for name, value in result.measured.items())}.")
    if result.skipped:
        console.print(f"{result.skipped} steps were skipped: the loss or its gradient was not finite.")
    say_left_out(console, result.out, result.failed, result.ignored)
    console.print(f"Backbone: {escape(str(result.backbone))}")
    console.print(f"Use:      figureground label ... --backbone {escape(str(result.out))}")
