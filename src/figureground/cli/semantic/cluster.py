"""`figureground semantic cluster`."""

from typing import Annotated

import typer

from figureground.cli.ending import stoppable
from figureground.cli.options import Address, Device, Out, Runner, Workers
from figureground.cli.semantic.options import Backbone, Model, Val, chosen, say_measured


def cluster(
    model: Model = None,
    backbone: Backbone = None,
    train: Annotated[
        list[str] | None, typer.Option(help="What clusters are fitted on: a run with masks, or images; repeatable.")
    ] = None,
    val: Val = None,
    k: Annotated[
        str | None, typer.Option(help="How many clusters, or `auto`: by the silhouette. [default: one a class]")
    ] = None,
    fit_on: Annotated[
        str | None,
        typer.Option(help="train, or val: MaskContrast's protocol, which fits on what it measures. [default: train]"),
    ] = None,
    out: Out = None,
    device: Device = None,
    runner: Runner = None,
    workers: Workers = None,
    address: Address = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="val_masks, val_images, foreground, segments, size, matching, pca, seeds, crf, label.method, "
            "backbone.features, ...; repeatable.",
        ),
    ] = None,
) -> None:
    """Sort what is in photographs into kinds without any label, and measure the classes of pixels.

    Example: `figureground semantic cluster runs/semantic --train photos --val truth/voc --k 20 --out runs/kinds`.
    Without training: `figureground semantic cluster --backbone dino_vits16 --train runs/photos --val ...`.
    """
    from figureground.cli.progress import progress_bar
    from figureground.errors import UsageError
    from figureground.runners import create_runner
    from figureground.stages import semantic_cluster as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the clusters go?",
            "Example: figureground semantic cluster runs/semantic --train photos --val truth/voc --out runs/kinds",
        )
    config = stage.configure(
        assignments or (), **chosen(model, backbone, val), train=train or None, k=k, fit_on=fit_on, device=device
    )
    workforce = create_runner(runner, workers, address, config.device)
    with stoppable(), progress_bar("Looking") as progress:
        result = stage.run(config, out, workforce, progress)
    say_measured(
        result,
        f"{result.clusters} clusters fitted on {result.fitted} segments of {result.fit_on}, matched by "
        f"{result.matching}",
    )
    raise typer.Exit(3 if result.failed else 0)
