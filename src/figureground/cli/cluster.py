"""`figureground cluster`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from figureground.cli.ending import say_left_out, stoppable
from figureground.cli.options import Address, Backbone, Device, Out, Runner, Workers

if TYPE_CHECKING:
    from figureground.stages.cluster import ClusterResult


def cluster(
    run: Annotated[Path, typer.Argument(help="The folder of a `label` or `predict` run, or a COCO file with masks.")],
    out: Out = None,
    k: Annotated[
        str | None, typer.Option(help="How many clusters, or `auto`: chosen by the silhouette. [default: 20]")
    ] = None,
    backbone: Backbone = None,
    truth: Annotated[
        Path | None, typer.Option(help="COCO file whose objects have classes: purity and NMI are measured.")
    ] = None,
    device: Device = None,
    runner: Runner = None,
    workers: Workers = None,
    address: Address = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="images, min_score, view, size, candidates, restarts, seed, backbone.features, ...; repeatable.",
        ),
    ] = None,
) -> None:
    """Sort the objects of a run into kinds: a category for each, and a page to name or drop them by.

    Example: `figureground cluster runs/photos --k 20 --out runs/kinds`. Then save `names.json`, which the page writes,
    in `runs/kinds`, and run the same command again.
    """
    from figureground.cli.progress import progress_bar
    from figureground.errors import UsageError
    from figureground.runners import create_runner
    from figureground.stages import cluster as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the clusters go?",
            "Example: figureground cluster runs/photos --k 20 --out runs/kinds",
        )
    config = stage.configure(
        run,
        assignments or (),
        k=k,
        truth=None if truth is None else str(truth),
        device=device,
        backbone=None if backbone is None else {"name": backbone},
    )
    chosen = create_runner(runner, workers, address, config.device)
    with stoppable(), progress_bar("Looking") as progress:
        result = stage.run(config, out, chosen, progress)
    _report(result)
    raise typer.Exit(3 if result.failed else 0)


def _report(result: "ClusterResult") -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{result.instances} objects of {result.images} images in {result.clusters} clusters "
        f"({result.named} named, {result.dropped} dropped), {result.seconds:.1f} s."
    )
    if result.measured is not None:
        console.print(
            f"Purity {result.measured['purity']:.1f} %, NMI {result.measured['nmi']:.1f} % by the "
            f"{result.measured['matched']} of {result.measured['instances']} objects that are in the truth."
        )
    say_left_out(console, result.out, result.failed, 0)
    console.print(f"Masks:  {escape(str(result.out / 'annotations.json'))}")
    console.print(f"Report: {escape(result.report.absolute().as_uri())}")
