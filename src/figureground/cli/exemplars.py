"""`figureground exemplars`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from figureground.cli.ending import say_left_out, stoppable
from figureground.cli.options import Backbone, Device

if TYPE_CHECKING:
    from figureground.stages.exemplars import ExemplarsResult


def exemplars(
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Pictures of one object each: a folder for each kind, or each picture a kind by itself."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Choose among the objects of a `label` or `predict` run, by clusters, instead.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the pool; give the same one to go on after a stop.")
    ] = None,
    k: Annotated[
        str | None,
        typer.Option(
            help="Choose what lies at the centres of so many clusters, or `auto`. [default: with --run 20, else none]"
        ),
    ] = None,
    per_cluster: Annotated[int | None, typer.Option(help="Exemplars of each cluster. [default: 1]")] = None,
    method: Annotated[
        str | None, typer.Option(help="How objects are found, as by `label`; `label --settings` names the methods.")
    ] = None,
    backbone: Backbone = None,
    device: Device = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="per_image, min_score, view, view_size, seed, backbone.weights, and any setting of `label`; "
            "repeatable.",
        ),
    ] = None,
) -> None:
    """Make a pool of exemplary objects for training, without labels: a folder to look at, prune and add to.

    Examples: `figureground exemplars pictures/ --out runs/pool` for a few pictures that were picked by hand;
    `figureground exemplars photos/ --k 20 --per-cluster 3 --out runs/pool`, or
    `figureground exemplars --run runs/photos --out runs/pool`, for many that were not.
    """
    from figureground.cli.progress import progress_bar
    from figureground.errors import UsageError
    from figureground.stages import exemplars as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the exemplars go?",
            "Example: figureground exemplars pictures/ --out runs/pool",
        )
    config = stage.configure(
        images or (),
        assignments or (),
        run=None if run is None else str(run),
        k=k,
        per_cluster=per_cluster,
        method=method,
        device=device,
        backbone=None if backbone is None else {"name": backbone},
    )
    with stoppable(), progress_bar("Looking") as progress:
        result = stage.run(config, out, progress=progress)
    _report(result)
    raise typer.Exit(3 if result.failed else 0)


def _report(result: "ExemplarsResult") -> None:
    console = Console(highlight=False, soft_wrap=True)
    by_hand = f" ({result.added} added, {result.removed} removed by hand)" if result.added or result.removed else ""
    console.print(
        f"{result.exemplars} exemplars of {result.categories} hidden categories{by_hand}, from {result.images} images, "
        f"{result.seconds:.1f} s."
    )
    say_left_out(console, result.out, result.failed, result.ignored)
    console.print(f"Pictures: {escape(str(result.out / 'exemplars'))}")
    console.print(f"Report:   {escape(result.report.absolute().as_uri())}")
