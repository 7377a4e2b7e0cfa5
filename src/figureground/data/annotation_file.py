"""Files of annotated images as a stream of entries: COCO files of any length, or Parquet."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from figureground.data import parquet
from figureground.data.coco import CATEGORY, ImageAnnotations, write_coco
from figureground.errors import UsageError
from figureground.storage.json_stream import JsonStream

Format = Literal["json", "parquet", "both"]
"""What annotations are written as."""


class CocoFile:
    """A COCO file, or a bare list of results; of it, one entry at a time is in memory.

    Args:
        path: The file.

    Attributes:
        is_coco: Whether it has ``images`` and ``annotations``.
        is_results: Whether it is a bare list of results instead.

    Raises:
        UsageError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._stream = JsonStream(path)
        except (OSError, ValueError) as error:
            raise self._explained(error) from None
        self.is_coco, self.is_results = self._stream.is_object, self._stream.is_list

    def entries(self, key: str = "", *, stop: bool = False) -> Iterator[Any]:
        """The entries of a list from the first on.

        Args:
            key: ``images`` or ``annotations``; a bare list is the only one of its file.
            stop: End with the list; else what follows in the file is checked, too.

        Raises:
            UsageError: If the file cannot be read, or there is no such list.
        """
        # Not around the yield: an error of who takes the entries is not one of the file.
        entries = self._stream.items() if self.is_results else self._stream.entries(key, stop=stop)
        while True:
            try:
                entry = next(entries)
            except StopIteration:
                return
            except (KeyError, TypeError) as error:
                state = "missing" if isinstance(error, KeyError) else "not a list"
                raise UsageError(f"{self.path}: `{key}` is {state}.", "A COCO file is needed.") from None
            except (OSError, ValueError, RecursionError) as error:
                raise self._explained(error) from None
            yield entry

    def _explained(self, error: Exception) -> UsageError:
        if isinstance(error, OSError):
            return UsageError(f"{self.path} cannot be read: {error.strerror or error}.", "Check the path.")
        return UsageError(f"{self.path} is not JSON: {error}.", "A COCO file is needed.")


AnnotationFile = CocoFile | parquet.ParquetFile
"""What gives the entries of its ``images`` and ``annotations`` as a COCO file has them."""


def open_annotations(path: Path) -> AnnotationFile:
    """Open a file by its ending: ``.parquet`` (see :mod:`figureground.data.parquet`), else JSON.

    Raises:
        UsageError: If it cannot be read.
    """
    return parquet.ParquetFile(path) if path.suffix == parquet.SUFFIX else CocoFile(path)


def find_annotations(run: Path) -> Path | None:
    """The annotations in the folder of a run: ``annotations.json``, else ``annotations.parquet``, else nothing."""
    return next((file for file in _files(run) if file.is_file()), None)


def annotations_name(form: Format) -> str:
    """The file in the folder of a run that readers look for first."""
    return "annotations.parquet" if form == "parquet" else "annotations.json"


def check_format(form: Format) -> None:
    """Raise :class:`UsageError` if what is needed to write it is not installed; before hours are spent."""
    if form != "json":
        parquet.import_pyarrow()


def write_annotations(
    run: Path,
    form: Format,
    images: Callable[[], Iterable[ImageAnnotations]],
    description: str,
    categories: Sequence[dict[str, Any]] = (CATEGORY,),
) -> tuple[int, int]:
    """Write the annotations of a run; a file of the other format, which may be of fewer images, is removed.

    Args:
        run: The folder.
        form: As what.
        images: Gives the images from the first on, each time it is called.
        description: For the ``info``.
        categories: Of the annotations, each with ``id`` and ``name``.

    Returns:
        The number of images and of annotations.
    """
    coco, table = _files(run)
    counts = (0, 0)
    if form == "parquet":
        coco.unlink(missing_ok=True)
    else:
        counts = write_coco(coco, images, description, categories)
    if form == "json":
        table.unlink(missing_ok=True)
    else:
        counts = parquet.write_parquet(table, images(), description, categories)
    return counts


def _files(run: Path) -> tuple[Path, Path]:
    return run / "annotations.json", run / f"annotations{parquet.SUFFIX}"
