"""`figureground doctor`."""

import typer
from rich.console import Console
from rich.table import Table


def doctor() -> None:
    """Say what this machine can do: versions, devices, backbones."""
    from figureground.backbones.catalogue import CATALOGUE
    from figureground.stages.environment import describe

    console = Console(highlight=False)
    facts = Table(show_header=False, title="This machine", title_justify="left")
    for key, value in describe("cpu").items():
        facts.add_row(key, str(value))
    facts.add_row("accelerators", _accelerators())
    console.print(facts)
    table = Table("backbone", "patch", "weights' licence", "paper", title="Backbones", title_justify="left")
    for row in CATALOGUE.values():
        table.add_row(row.name, str(row.patch_size), row.licence, row.paper)
    console.print(table)
    raise typer.Exit


def _accelerators() -> str:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"cuda:{index} {name}" for index, name in enumerate(names)) or "none"
