"""Objects365 v2: COCO's format; boxes only.

Reference:
    https://www.objects365.org. `file_name` is `images/v1/patch8/objects365_v1_00420917.jpg`. Boxes that reach over the
    border of their image are common; they are cut off there.
"""

from pathlib import Path

from figureground.data.datasets.catalogue import DataSet
from figureground.data.datasets.coco import Entry, load, read_entries, text
from figureground.data.datasets.source import Source


def build(data_set: DataSet, root: Path) -> Source:
    """Objects365 v2."""
    path = root / data_set.annotations[0]
    return read_entries(data_set, root, path, *load(path), name_of=_name)


def _name(entry: Entry) -> str:
    return text(entry, "file_name").removeprefix("images/")
