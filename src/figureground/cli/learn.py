"""`figureground learn`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from figureground.cli.ending import stoppable
from figureground.cli.options import Backbone, Device, Images, Out
from figureground.cli.self_train import report
from figureground.stages.train_recipes import RECIPES, find_recipe

if TYPE_CHECKING:
    from figureground.stages.learn import LearnConfig


def learn(
    images: Images = None,
    out: Out = None,
    method: Annotated[
        str | None,
        typer.Option(help="How objects are found at first; see `figureground label --settings`. [default: as `label`]"),
    ] = None,
    backbone: Backbone = None,
    recipe: Annotated[
        str | None, typer.Option(help=f"{', '.join(RECIPES)}. [default: cutler_cascade on a GPU, else small]")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="How often the detector is trained anew on what it finds. [default: 3, of a SOLOv2 1]"),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="COCO file of true objects: every step is measured, nothing learns from it.")
    ] = None,
    truth_images: Annotated[
        Path | None, typer.Option(help="Folder of its images, all of which are looked at. [default: the photographs]")
    ] = None,
    device: Device = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Keys of `label`, of `train` and of `self-train` below label, train and self_train: label.size, "
            "train.steps, train.init, self_train.thresholds, self_train.train.steps ...; repeatable.",
        ),
    ] = None,
) -> None:
    """Learn a detector from photographs alone: find masks, train on them, train anew on what is found.

    Example: `figureground learn photos/ --out runs/photos`, then
    `figureground predict runs/photos photos/new --out runs/new`. Can be stopped at any time and run again.
    """
    from figureground.cli.progress import progress_bar, training_bar
    from figureground.errors import UsageError
    from figureground.stages import learn as stage
    from figureground.stages.rounds import Bars

    if out is None:
        raise UsageError(
            "--out is missing: where shall the detector go?", "Example: figureground learn photos/ --out runs/photos"
        )
    config = stage.configure(
        images or (),
        assignments or (),
        recipe=recipe,
        method=method,
        backbone=backbone,
        rounds=rounds,
        truth=str(truth) if truth else None,
        truth_images=str(truth_images) if truth_images else None,
        device=device,
    )
    _say_init(config)
    with stoppable():
        result = stage.run(config, out, Bars(progress_bar, training_bar))
    report(result)
    raise typer.Exit(3 if result.failed else 0)


def _say_init(config: "LearnConfig") -> None:
    published = find_recipe(config.train.recipe).init
    if config.train.init is None and published:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"Training begins with random weights; {config.train.recipe} is published to begin with {published}: "
            "--set train.init=WEIGHTS."
        )
