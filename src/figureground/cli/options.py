"""Options that several verbs share, worded once."""

from pathlib import Path
from typing import Annotated

import typer

Images = Annotated[list[str] | None, typer.Argument(help="Photographs and folders of photographs, recursively.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; give the same one to go on after a stop.")]
Backbone = Annotated[
    str | None, typer.Option(help="What patches are compared by; see `figureground doctor`. [default: handcrafted]")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. [default: cpu]")]
Limit = Annotated[int | None, typer.Option(help="Only the first images of the sorted list.")]
