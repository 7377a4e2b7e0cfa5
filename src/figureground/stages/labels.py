"""Where a run has its masks, and where their images are."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from figureground.data.annotation_file import find_annotations
from figureground.errors import UsageError


def annotations_of(labels: Path) -> Path:
    """The file of masks that a person named, or that is in the folder of a run: COCO or Parquet.

    Raises:
        UsageError: If there is none.
    """
    labels = labels.expanduser()
    file = find_annotations(labels) if labels.is_dir() else labels
    if file is None or not file.is_file():
        what = f"{labels} has no annotations.json." if labels.is_dir() else f"There are no pseudo-labels at {labels}."
        raise UsageError(what, "Name the folder of a finished `label` run, or a COCO file.")
    return file


def find_labels(labels: Path, images: Sequence[str | os.PathLike[str]]) -> tuple[Path, Path]:
    """The file of masks, COCO or Parquet, and the folder of its images.

    Args:
        labels: The file, or the folder of a run that has it.
        images: What that run was given: files and folders, the deepest folder of which that holds them all is that of
            the images; none: as the run says.

    Raises:
        UsageError: If there is no such file, or it is not said where the images are.
    """
    file = annotations_of(labels)
    if images:
        paths = [os.path.abspath(os.path.expanduser(path)) for path in images]
        missing = [path for path in paths if not os.path.exists(path)]
        if missing:
            raise UsageError(f"There is no file or folder {missing[0]!r}.", "Check the path.")
        folders = [path if os.path.isdir(path) else os.path.dirname(path) for path in paths]
        return file, Path(os.path.commonpath(folders))
    try:
        return file, Path(json.loads((file.parent / "result.json").read_text("utf-8"))["image_root"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"Nothing beside {file} tells where its images are.",
            "Name their folder, too.",
        ) from None
