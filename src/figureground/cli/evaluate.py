"""`figureground evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from figureground.stages.evaluate import EvaluateConfig, EvaluateResult

_GROUPS = {"box": "Box", "mask": "Mask", "corloc": "", "saliency": "Foreground"}
_NAMES = {
    "corloc": "CorLoc",
    "iou": "IoU",
    "accuracy": "accuracy",
    "max_f": "max F",
    "s_measure": "S-measure",
    "mae": "MAE (lower is better)",
}


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="A run's folder, or anyone's COCO file or list of results.")],
    truth: Annotated[
        Path | None, typer.Option(help="COCO file of the ground truth; its categories count as one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evaluation.json. [default: the run's; none for a file]")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="max_detections, skip_difficult, only_listed, saliency_map, resamples, seed; repeatable.",
        ),
    ] = None,
) -> None:
    """Measure predictions: class-agnostic AP and AR, CorLoc, foreground IoU, with intervals.

    Example: `figureground evaluate runs/photos --truth annotations.json`. LVIS: `--set max_detections=[1,10,100,300]`.
    """
    from figureground.errors import UsageError
    from figureground.stages import evaluate as stage

    if truth is None:
        raise UsageError(
            "--truth is missing: what are the predictions to be measured by?",
            "Example: figureground evaluate runs/photos --truth annotations.json",
        )
    config = stage.configure(predictions, truth, assignments or ())
    _report(config, stage.run(config, out))


def _report(config: "EvaluateConfig", result: "EvaluateResult") -> None:
    console = Console(highlight=False, soft_wrap=True)
    counts = result.counts
    table = Table("measure", title="Per cent", title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for group, part in result.measures.items():
        for name, measure in part.items():
            value = "-" if measure.value is None else f"{measure.value:.2f}"
            interval = "-" if measure.low is None else f"{measure.low:.2f} to {measure.high:.2f}"
            table.add_row(f"{_GROUPS[group]} {_title(name)}".strip(), value, interval)
        table.add_section()
    console.print(table)
    console.print(
        f"{counts['images']} images, {counts['detections']} detections, {counts['objects']} true objects "
        f"({counts['difficult']} difficult), {counts['crowd']} crowd regions."
    )
    console.print(f"AP counts {config.max_detections[-1]} detections an image; -: the truth has no such object.")
    for note in result.notes:
        console.print(note, markup=False)
    if result.path is not None:
        console.print(f"Written: {escape(str(result.path))}")


def _title(name: str) -> str:
    """``ap_small`` as ``AP small``, ``ar100`` as ``AR@100``."""
    if name in _NAMES:
        return _NAMES[name]
    measure, _, size = name.partition("_")
    number = measure[2:]
    if measure.startswith("ar") and number:
        number = f"@{number}"
    return f"{measure[:2].upper()}{number} {size}".strip()
