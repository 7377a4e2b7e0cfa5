"""`figureground compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from figureground.cli.ending import say_left_out, stoppable
from figureground.cli.options import Backbone, Device, Images, Limit, Out

if TYPE_CHECKING:
    from figureground.stages import StageResult

_COLUMNS = {
    "corloc": "CorLoc",
    "iou": "IoU",
    "box_ap50": "box AP50",
    "box_ar100": "box AR100",
    "mask_ap50": "mask AP50",
    "mask_ar100": "mask AR100",
}


def compare(
    images: Images = None,
    out: Out = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, with commas between: `maskcut,maskcut:reference,lost`. [default: all that can run]"
        ),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="COCO file of the ground truth; its categories count as one.")
    ] = None,
    backbone: Backbone = None,
    device: Device = None,
    limit: Limit = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting, e.g. maskcut.tau=0.2, or refine.method=dense_crf to compare finished masks, as `label` "
            "gives them; repeatable.",
        ),
    ] = None,
) -> None:
    """Run several methods on the same photographs: a report with all of them side by side, and numbers.

    Example: `figureground compare photos/ --methods maskcut,tokencut,centred_box --out runs/compared`. Features are
    computed once for all methods. Can be stopped at any time and run again.
    """
    from figureground.cli.progress import progress_bar
    from figureground.errors import UsageError
    from figureground.stages import compare as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the comparison go?",
            "Example: figureground compare photos/ --methods maskcut,tokencut --out runs/compared",
        )
    config = stage.configure(
        images or (),
        assignments or (),
        methods=None if methods is None else [name.strip() for name in methods.split(",") if name.strip()],
        truth=None if truth is None else str(truth),
        device=device,
        limit=limit,
        backbone=None if backbone is None else {"name": backbone},
    )
    with stoppable(), progress_bar("Comparing") as progress:
        result = stage.run(config, out, progress=progress)
    _report(result)
    raise typer.Exit(3 if result.failed else 0)


def _report(result: "StageResult") -> None:
    console = Console(highlight=False, soft_wrap=True)
    comparison = json.loads((result.out / "comparison.json").read_text("utf-8"))
    console.print(_table(comparison["methods"]))
    if "measures" in comparison["methods"][0]:
        console.print("Per cent. Intervals, differences and all measures: comparison.csv and the report.")
    for name, reason in comparison["left_out"].items():
        console.print(f"Left out: {name}. {reason}", markup=False)
    console.print(f"{len(comparison['methods'])} methods, {result.images} images, {result.seconds:.1f} s.")
    say_left_out(console, result.out, result.failed, result.ignored)
    console.print(f"Numbers: {escape(str(result.out / 'comparison.csv'))}")
    console.print(f"Report:  {escape(result.report.absolute().as_uri())}")


def _table(methods: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    columns = [key for key in _COLUMNS if key in methods[0].get("measures", {})]
    for title in (*(_COLUMNS[key] for key in columns), "objects an image", "ms an image"):
        table.add_column(title, justify="right")
    for method in methods:
        values = [method["measures"][key]["value"] for key in columns]
        per_image = method["objects_per_image"]
        table.add_row(
            method["name"],
            *("-" if value is None else f"{value:.1f}" for value in values),
            "-" if per_image is None else f"{per_image:.1f}",
            f"{method['ms']['total']:.0f}",
        )
    return table
