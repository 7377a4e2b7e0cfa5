"""`figureground found-head`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from figureground.cli.ending import say_left_out, stoppable
from figureground.cli.options import Backbone, Device, Images, Limit, Out

# Below this share of patches a head finds nothing; above the rest of it, everything.
_LEAST = 0.01

if TYPE_CHECKING:
    from figureground.stages.found_head import FoundHeadResult


def found_head(
    images: Images = None,
    out: Out = None,
    backbone: Backbone = None,
    device: Device = None,
    limit: Limit = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="steps, batch_size, rate, seed, backbone.weights, crop.side, loss.threshold ...; repeatable.",
        ),
    ] = None,
) -> None:
    """Learn the head of FOUND from photographs, without labels, for `label --method found`.

    Example: `figureground found-head photos/ --out runs/head`, then
    `figureground label photos/ --out runs/photos --method found --set found.head=runs/head/head.safetensors`.
    Can be stopped at any time and run again.
    """
    from figureground.cli.progress import training_bar
    from figureground.errors import UsageError
    from figureground.stages import found_head as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the head go?", "Example: figureground found-head photos/ --out runs/head"
        )
    config = stage.configure(
        images or (),
        assignments or (),
        device=device,
        limit=limit,
        backbone={"name": backbone} if backbone is not None else None,
    )
    with stoppable(), training_bar("Learning") as progress:
        result = stage.run(config, out, progress)
    _report(result, config.backbone.name)
    raise typer.Exit(3 if result.failed else 0)


def _report(result: "FoundHeadResult", backbone: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    console.print(f"{result.steps} steps on {result.images} images, {result.seconds:.1f} s. Losses: {losses}.")
    if result.skipped:
        console.print(f"{result.skipped} steps were skipped: the loss or its gradient was not finite.")
    say_left_out(console, result.out, result.failed, result.ignored)
    if not _LEAST < result.foreground < 1 - _LEAST:
        console.print(
            f"The head takes {result.foreground:.1%} of the patches for objects: it has learned nothing of use.\n"
            "Taught by the background alone it cannot run away so: --set loss.refined_weight=0 "
            "--set loss.background_steps=500; or use another backbone or seed."
        )
    head = escape(str(result.head))
    console.print(f"Head: {head}")
    console.print(f"Use:  figureground label ... --backbone {backbone} --method found --set found.head={head}")
