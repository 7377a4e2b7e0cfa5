"""`figureground semantic retrieve`."""

from typing import Annotated

import typer

from figureground.cli.ending import stoppable
from figureground.cli.options import Address, Device, Out, Runner, Workers
from figureground.cli.semantic.options import Backbone, Model, TrainTruth, Val, chosen, say_measured


def retrieve(
    model: Model = None,
    backbone: Backbone = None,
    train: TrainTruth = None,
    val: Val = None,
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
            help="train_masks, val_masks, train_images, val_images, foreground, segments, size, neighbours, only, crf, "
            "backbone.features, ...; repeatable.",
        ),
    ] = None,
) -> None:
    """Give what is in photographs the class of the labelled segment that is nearest to it, and measure that.

    Example: `figureground semantic retrieve runs/semantic --train truth/voc-train --val truth/voc-val --out runs/near`.
    """
    from figureground.cli.progress import progress_bar
    from figureground.errors import UsageError
    from figureground.runners import create_runner
    from figureground.stages import semantic_retrieve as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the neighbours go?",
            "Example: figureground semantic retrieve runs/semantic --train truth/train --val truth/val --out runs/near",
        )
    config = stage.configure(
        assignments or (),
        **chosen(model, backbone, val),
        train=None if train is None else str(train),
        device=device,
    )
    workforce = create_runner(runner, workers, address, config.device)
    with stoppable(), progress_bar("Looking") as progress:
        result = stage.run(config, out, workforce, progress)
    say_measured(result, f"neighbours among {result.gallery} labelled segments")
    raise typer.Exit(3 if result.failed else 0)
