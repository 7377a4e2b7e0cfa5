"""`figureground distil`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from figureground.cli.ending import is_first_process, stoppable
from figureground.cli.options import Device, Out

# Below this mean probability a head finds nothing; above the rest of it, everything.
_LEAST = 0.01

if TYPE_CHECKING:
    from figureground.stages.distil import DistilResult


def distil(
    labels: Annotated[
        str | None, typer.Argument(help="Run of `label` or `predict`, or a COCO file with masks.", show_default=False)
    ] = None,
    out: Out = None,
    images: Annotated[
        str | None, typer.Option(help="Folder that file names are relative to, if the run does not say.")
    ] = None,
    device: Device = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="steps, batch_size, init, seed, masks.min_score, crops.side, distil.width, distil.depth ...; "
            "repeatable.",
        ),
    ] = None,
) -> None:
    """Learn a small backbone that sees figure and ground at a glance, from the masks of a run; no labels are needed.

    Example: `figureground label photos/ --out runs/photos`, `figureground distil runs/photos --out runs/own`, then
    `figureground label photos/ --out runs/better --backbone runs/own`. Can be stopped at any time and run again.
    """
    from figureground.cli.progress import training_bar
    from figureground.errors import UsageError
    from figureground.stages import distil as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the backbone go?", "Example: figureground distil runs/photos --out runs/own"
        )
    config = stage.configure(labels, assignments or (), images=images, device=device)
    with stoppable(), training_bar("Distilling") as progress:
        result = stage.run(config, out, progress)
    if is_first_process():
        _report(result)
        raise typer.Exit(3 if result.failed else 0)


def _report(result: "DistilResult") -> None:
    console = Console(highlight=False, soft_wrap=True)
    losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    console.print(f"{result.steps} steps on {result.images} images, {result.seconds:.1f} s. Losses: {losses}.")
    if result.skipped:
        console.print(f"{result.skipped} steps were skipped: the loss or its gradient was not finite.")
    if result.failed:
        console.print(
            f"{result.failed} images or masks could not be used: see {escape(str(result.out))}/failures.jsonl"
        )
    if result.foreground is not None and not _LEAST < result.foreground < 1 - _LEAST:
        console.print(f"{result.foreground:.1%} of the patches are taken for figure: nothing of use was learned.")
    console.print(f"Backbone: {escape(str(result.backbone))}")
    console.print(f"Head:     {escape(str(result.head))}")
    console.print(f"Use:      figureground label ... --backbone {escape(str(result.out))}")
