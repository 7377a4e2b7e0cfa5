"""`figureground truth`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from figureground.stages.truth import TruthResult

_NAMED = 10
"""Failures that are printed; the rest is in the file."""


def truth(
    name: Annotated[str, typer.Argument(help="A data set of the catalogue, or `list` to see them.")],
    root: Annotated[Path | None, typer.Argument(help="The folder that it was unpacked into.")] = None,
    out: Annotated[Path | None, typer.Option(help="COCO file to write.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
) -> None:
    """Make the ground truth of a published data set from its original annotations.

    Example: `figureground truth coco_val2017 data/coco --out coco.json`. `figureground truth list` shows the sets.
    """
    from figureground.errors import UsageError

    if name == "list":
        _list()
        return
    from figureground.data.datasets.catalogue import find, how_to_get

    data_set = find(name)
    example = f"Example: figureground truth {name} data/{name} --out {name}.json"
    if root is None:
        raise UsageError(f"ROOT is missing: where is {data_set.title}?", f"{how_to_get(data_set)}\n{example}")
    if out is None:
        raise UsageError("--out is missing: where shall the truth go?", example)

    from figureground.cli.progress import progress_bar
    from figureground.stages import truth as stage

    config = stage.configure(name, root, limit)
    try:
        with progress_bar("Building") as progress:
            result = stage.run(config, out, progress)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. Nothing was written.")
        raise typer.Exit(130) from None
    _report(result, root)
    raise typer.Exit(3 if result.failures else 0)


def _list() -> None:
    from figureground.data.datasets.catalogue import DATA_SETS

    table = Table("name", "data set", "measures", "truth", "licence and terms")
    table.add_column("images, as published", justify="right")
    for row in DATA_SETS.values():
        kind = "classes" if row.classes else "masks" if row.masks else "boxes"
        table.add_row(row.name, row.title, row.measures, kind, row.licence, str(row.published_images))
    console = Console()
    console.print(table)
    console.print("Where to get each and how it has to lie: docs/datasets.md, or `figureground truth NAME`.")


def _report(result: "TruthResult", root: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{result.data_set.title}: {result.objects} objects ({result.difficult} difficult) and {result.crowd} crowd "
        f"regions in {result.images} images, {result.seconds:.1f} s."
    )
    for failure in result.failures[:_NAMED]:
        console.print(f"Left out: {failure}", markup=False)
    if result.failures_path is not None:
        count = len(result.failures)
        console.print(
            f"{count} images or annotations were left out; each is named in {escape(str(result.failures_path))}."
        )
    for note in result.notes:
        console.print(note, markup=False)
    console.print(f"Terms: {result.data_set.licence}", markup=False)
    console.print(f"Truth: {escape(str(result.path))}")
    folders = " ".join(shlex.quote(str(root / folder)) for folder in result.data_set.images)
    run, path = f"runs/{result.data_set.name}", shlex.quote(str(result.path))
    if result.data_set.classes:
        console.print(
            f"Next:  figureground semantic cluster MODEL --train IMAGES --val {path} --set val_images={folders} "
            "--out OUT",
            markup=False,
        )
        return
    console.print(f"Next:  figureground label {folders} --out {run}", markup=False)
    console.print(f"       figureground evaluate {run} --truth {path}", markup=False)
