"""`figureground label`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from figureground.cli.ending import say_left_out, stoppable
from figureground.cli.options import Backbone, Device, Images, Limit, Out

if TYPE_CHECKING:
    from figureground.stages import StageResult


def _print_settings(wanted: bool | None) -> None:
    if not wanted:
        return
    from figureground.proposals import METHODS
    from figureground.stages.label import LabelConfig, configure

    table = Table("key", "default", "meaning", title="--set KEY=VALUE", title_justify="left")
    for method in METHODS:
        for key, default, meaning in _rows(LabelConfig, configure(method=method).model_dump(), method):
            table.add_row(key, escape(str(default)), escape(meaning))
        table.add_section()
    Console().print(table)
    raise typer.Exit


def _rows(model: type, values: dict, method: str) -> list[tuple[str, object, str]]:
    from figureground.config import describe_fields

    first = method == "maskcut"
    rows = describe_fields(model, values)
    return [row for row in rows if row[0].startswith(f"{method}.") or (first and row[0].partition(".")[0] != method)]


def label(
    images: Images = None,
    out: Out = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How objects are found; --settings names the methods. [default: found with a backbone of distil, "
            "maskcut with another learned one, else background]"
        ),
    ] = None,
    backbone: Backbone = None,
    weights: Annotated[
        Path | None, typer.Option(help="Official .pth or .safetensors of the backbone, if not from its hub.")
    ] = None,
    device: Device = None,
    limit: Limit = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, e.g. maskcut.tau=0.2; repeatable. See --settings."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Start from the config.json of another run.")] = None,
    settings: Annotated[
        bool | None,
        typer.Option(
            "--settings", callback=_print_settings, is_eager=True, help="List every setting with its default and end."
        ),
    ] = None,
) -> None:
    """Find the objects in photographs: COCO masks and a report to look at.

    Example: `figureground label photos/ --out runs/photos`. Can be stopped at any time and run again.
    """
    from figureground.cli.progress import progress_bar
    from figureground.errors import UsageError
    from figureground.stages import label as stage

    if out is None:
        raise UsageError(
            "--out is missing: where shall the masks go?", "Example: figureground label photos/ --out runs/photos"
        )
    named = {"name": backbone, "weights": str(weights.absolute()) if weights else None}
    resolved = stage.configure(
        images or (),
        config,
        assignments or (),
        method=method,
        device=device,
        limit=limit,
        backbone={key: value for key, value in named.items() if value is not None} or None,
    )
    with stoppable(), progress_bar("Labelling") as progress:
        result = stage.run(resolved, out, progress=progress)
    _report(result)
    raise typer.Exit(3 if result.failed else 0)


def _report(result: "StageResult") -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{result.instances} objects in {result.images} images, {result.seconds:.1f} s.")
    say_left_out(console, result.out, result.failed, result.ignored)
    console.print(f"Masks:  {escape(str(result.out / 'annotations.json'))}")
    console.print(f"Report: {escape(result.report.absolute().as_uri())}")
