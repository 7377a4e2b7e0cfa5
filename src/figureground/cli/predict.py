"""`figureground predict`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from figureground.cli.ending import say_left_out, stoppable
from figureground.cli.options import Address, Device, Images, Limit, Out, Runner, Workers

if TYPE_CHECKING:
    from figureground.stages import StageResult


def predict(
    detector: Annotated[
        str,
        typer.Argument(help="The folder of a `train` run, its detector.safetensors, or detectron2's .pth or .pkl."),
    ],
    images: Images = None,
    out: Out = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            help="Objects that score above are written; low, so that they can be measured and learned from. "
            "[default: 0.05]"
        ),
    ] = None,
    device: Device = None,
    runner: Runner = None,
    workers: Workers = None,
    address: Address = None,
    limit: Limit = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="batch_size, max_detections, nms, short_side, precision, threads; repeatable.",
        ),
    ] = None,
) -> None:
    """Find the objects in photographs with a trained detector: COCO masks and a report to look at.

    Example: `figureground predict runs/detector photos/ --out runs/found`. Can be stopped at any time and run again.
    """
    from figureground.cli.progress import progress_bar
    from figureground.errors import UsageError
    from figureground.runners import create_runner
    from figureground.stages import predict as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the masks go?",
            "Example: figureground predict runs/detector photos/ --out runs/found",
        )
    config = stage.configure(
        detector, images or (), assignments or (), score_threshold=score_threshold, device=device, limit=limit
    )
    chosen = create_runner(runner, workers, address, config.device)
    with stoppable(), progress_bar("Predicting") as progress:
        result = stage.run(config, out, chosen, progress)
    _report(result, config.score_threshold)
    raise typer.Exit(3 if result.failed else 0)


def _report(result: "StageResult", threshold: float) -> None:
    from figureground.data.annotation_file import find_annotations

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{result.instances} objects that score above {threshold:g} in {result.images} images, {result.seconds:.1f} s."
    )
    say_left_out(console, result.out, result.failed, result.ignored)
    console.print(f"Masks:  {escape(str(find_annotations(result.out)))}")
    console.print(f"Report: {escape(result.report.absolute().as_uri())}")
