"""`figureground label`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from figureground.cli.ending import say_left_out, stoppable
from figureground.cli.options import Address, Backbone, Device, Images, Limit, Out, Runner, Workers

if TYPE_CHECKING:
    from figureground.stages import StageResult
    from figureground.stages.label import LabelConfig


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
    runner: Runner = None,
    workers: Workers = None,
    address: Address = None,
    limit: Limit = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, e.g. maskcut.tau=0.2; repeatable. See --settings."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Start from the config.json of another run.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, how long it takes and how much it writes; end.")
    ] = False,
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
    from figureground.runners import create_runner
    from figureground.runners.cores import count_cores
    from figureground.stages import label as stage

    if out is None and not dry_run:
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
    if dry_run or out is None:  # without a folder there is a plan only
        _print_plan(resolved, out, workers or (count_cores() if runner == "processes" else 1))
        return
    chosen = create_runner(runner, workers, address, resolved.device)
    with stoppable(), progress_bar("Labelling") as progress:
        result = stage.run(resolved, out, chosen, progress)
    _report(result)
    raise typer.Exit(3 if result.failed else 0)


def _print_plan(config: "LabelConfig", out: Path | None, workers: int) -> None:
    from figureground.cli.progress import clock
    from figureground.stages.planning import plan

    console = Console(highlight=False, soft_wrap=True)
    with console.status("Timing a few images"):
        made = plan(config, out)
    together = f", {made.batch_size} images together" if made.batch_size > 1 else ""
    failed = f", {made.failed} of them unusable" if made.failed else ""
    low, high = (clock(seconds) for seconds in made.total_s(workers))
    rows = [
        ("Images", f"{made.images} in {made.shards} shards ({made.ignored} other files)"),
        ("Method", f"{config.method} on {config.backbone.name}, {config.backbone.precision}, at {config.size} px"),
        ("Device", f"{config.device}{together}"),
        ("Sample", f"{made.sampled} images{failed}: {made.instances} objects, {made.image_s:.3g} s an image"),
        ("Time", f"{low} to {high} h:mm:ss with {workers} process{'es' if workers > 1 else ''} as fast as this one"),
        ("Output", f"{_bytes(made.annotations_bytes)} of masks as COCO JSON, {_bytes(made.shards_bytes)} of shards"),
    ]
    if made.batch_size > 1 and config.shard_size < 16 * made.batch_size:
        rows.append(("Advice", f"--set shard_size={32 * made.batch_size}: small shards make small batches"))
    for name, text in rows:
        console.print(f"{name + ':':8} {escape(text)}")
    console.print("Nothing was written.")


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def _report(result: "StageResult") -> None:
    from figureground.data.annotation_file import find_annotations

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{result.instances} objects in {result.images} images, {result.seconds:.1f} s.")
    say_left_out(console, result.out, result.failed, result.ignored)
    console.print(f"Masks:  {escape(str(find_annotations(result.out)))}")
    console.print(f"Report: {escape(result.report.absolute().as_uri())}")
