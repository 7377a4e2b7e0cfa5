"""Options that several verbs share, worded once."""

from pathlib import Path
from typing import Annotated

import typer

from figureground.runners import RunnerName

Images = Annotated[list[str] | None, typer.Argument(help="Photographs and folders of photographs, recursively.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; give the same one to go on after a stop.")]
Backbone = Annotated[
    str | None, typer.Option(help="What patches are compared by; see `figureground doctor`. [default: handcrafted]")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. [default: cpu]")]
Runner = Annotated[
    RunnerName | None,
    typer.Option(
        "--runner",
        help="Where the work is done: in this process (serial), in several that survive each other (processes), or on "
        "a cluster (ray). The result is the same. [default: serial, or what --workers or --address imply]",
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes, or actors of Ray. [default: one a core, or an accelerator]")
]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster: auto, or host:port. [default: one on this machine, for this run]")
]
Limit = Annotated[int | None, typer.Option(help="Only the first images of the sorted list.")]
