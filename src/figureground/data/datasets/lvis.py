"""LVIS v1: COCO's format with other fields.

Reference:
    https://www.lvisdataset.org/dataset. An image has no `file_name`; the last two parts of its `coco_url` say where in
    COCO it lies. There is no `iscrowd`. Each image is annotated with some categories only: `neg_category_ids` are known
    to be absent, of `not_exhaustive_category_ids` not every instance is annotated. Both lists are kept; a measure
    without classes cannot use them, so that a right detection of another category counts as wrong.
"""

from pathlib import Path

from figureground.data.datasets.catalogue import DataSet
from figureground.data.datasets.coco import Entry, load, read_entries, text
from figureground.data.datasets.source import Source

_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


def build(data_set: DataSet, root: Path) -> Source:
    """LVIS v1."""
    path = root / data_set.annotations[0]
    return read_entries(data_set, root, path, *load(path), name_of=_name, extra=_FEDERATED)


def _name(entry: Entry) -> str:
    parts = text(entry, "coco_url").split("/")
    if len(parts) < 2 or not all(parts[-2:]):
        raise ValueError(f"`coco_url` does not end in folder and file: {entry['coco_url']!r}")
    return "/".join(parts[-2:])
