"""`figureground semantic probe`."""

from typing import Annotated

import typer

from figureground.cli.ending import stoppable
from figureground.cli.options import Address, Device, Out, Runner, Workers
from figureground.cli.semantic.options import Backbone, Model, TrainTruth, Val, chosen, say_measured


def probe(
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
            help="train_images, val_images, size, views, pixels, probe.epochs, probe.rate, probe.holdout, seed, crf, "
            "backbone.features, ...; repeatable.",
        ),
    ] = None,
) -> None:
    """Learn a linear layer from labelled photographs on embeddings that stay as they are, and measure it on others.

    Example: `figureground semantic probe runs/semantic --train truth/voc-train --val truth/voc-val --out runs/probe`.
    """
    from figureground.cli.progress import progress_bar
    from figureground.errors import UsageError
    from figureground.runners import create_runner
    from figureground.stages import semantic_probe as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the layer go?",
            "Example: figureground semantic probe runs/semantic --train truth/train --val truth/val --out runs/probe",
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
    say_measured(result, f"epoch {result.epoch} chosen on {result.held_out} of {result.trained + result.held_out}")
    raise typer.Exit(3 if result.failed else 0)
