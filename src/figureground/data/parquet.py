"""Annotated images as a Parquet file: one row an image, read and written a few at a time.

Columns are ``id``, ``file_name``, ``height``, ``width`` and ``annotations``, a list with the fields of COCO: ``id``,
``bbox`` (xywh, px), ``area`` (px), ``counts`` (compressed runs of the mask, which has the size of the image),
``score``, ``category_id``, ``iscrowd``, ``parent`` (an ``id``). What is missing is null. ``file_name_bytes`` is null
but for the rare name that is not UTF-8, of which ``file_name`` shows what can be shown. The file's metadata have
``info`` and ``categories`` as JSON.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from figureground.data.coco import CATEGORY, ImageAnnotations, number
from figureground.errors import UsageError
from figureground.storage.atomic import writing

SUFFIX = ".parquet"
# Of a row group, whichever is reached first. Its columns are in memory at once; each group costs a place in the footer.
_GROUP_IMAGES, _GROUP_BYTES = 2048, 1 << 24
_IMAGE_COLUMNS = ("id", "file_name", "height", "width")
_FIELDS = ("id", "bbox", "area", "counts", "score", "category_id", "iscrowd", "parent")


def write_parquet(
    path: Path,
    images: Iterable[ImageAnnotations],
    description: str,
    categories: Sequence[dict[str, Any]] = (CATEGORY,),
) -> tuple[int, int]:
    """Write a Parquet file atomically, with the ids that :func:`figureground.data.coco.write_coco` gives.

    Args:
        path: Where to; its ending is ``.parquet``.
        images: Gone through once.
        description: For the file's ``info``.
        categories: Of the annotations, each with ``id`` and ``name``.

    Returns:
        The number of images and of annotations.

    Raises:
        UsageError: If pyarrow is not installed.
        ValueError: If an annotation has a field that there is no column for.
    """
    pa, pq = import_pyarrow()
    metadata = {"info": json.dumps({"description": description}), "categories": json.dumps(list(categories))}
    schema = _schema(pa).with_metadata(metadata)
    image_count = count = size = 0
    rows: list[dict[str, Any]] = []
    with writing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for image, annotations in number(images):
            rows.append(_row(image, annotations))
            image_count += 1
            count += len(annotations)
            size += sum(len(entry["counts"] or "") for entry in rows[-1]["annotations"])
            if len(rows) == _GROUP_IMAGES or size > _GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
        writer.write_table(pa.Table.from_pylist(rows, schema))
    return image_count, count


class ParquetFile:
    """Reads what :func:`write_parquet` writes; beside :class:`figureground.data.annotation_file.CocoFile`.

    Args:
        path: The file.

    Raises:
        UsageError: If it cannot be read or lacks a column, or pyarrow is not installed.
    """

    is_coco, is_results = True, False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pa, self._pq = import_pyarrow()
        with self._opened() as file:
            schema = file.schema_arrow
            for name in (*_IMAGE_COLUMNS, "annotations"):
                if name not in schema.names:
                    raise UsageError(f"{path}: column `{name}` is missing; it has {', '.join(schema.names)}.")
            kind = schema.field("annotations").type
            if not self._pa.types.is_list(kind) or not self._pa.types.is_struct(kind.value_type):
                raise UsageError(f"{path}: column `annotations` is of type {kind}, not a list of structures.")
            self._columns = [name for name in (*_IMAGE_COLUMNS, "file_name_bytes") if name in schema.names]

    def entries(self, key: str = "", *, stop: bool = False) -> Iterator[dict[str, Any]]:
        """``images``, ``annotations`` or ``categories`` as a COCO file has them; fields that are null are left out."""
        return {"images": self._images, "annotations": self._annotations, "categories": self._categories}[key]()

    def _categories(self) -> Iterator[dict[str, Any]]:
        with self._opened() as file:
            yield from json.loads((file.schema_arrow.metadata or {}).get(b"categories", "[]"))

    def _images(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches(self._columns):
            for row in batch.to_pylist():
                name = row.pop("file_name_bytes", None)
                yield row if name is None else {**row, "file_name": name.decode("utf-8", "surrogatepass")}

    def _annotations(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches(["id", "height", "width", "annotations"]):
            ids, heights, widths = (batch.column(name).to_pylist() for name in ("id", "height", "width"))
            lists = batch.column("annotations")
            found = lists.flatten()
            names = [field.name for field in found.type]
            # Column by column: several times as fast as row by row.
            rows = zip(*(column.to_pylist() for column in found.flatten()), strict=True)
            lengths = (length or 0 for length in lists.value_lengths().to_pylist())
            for image_id, height, width, length in zip(ids, heights, widths, lengths, strict=True):
                for _ in range(length):
                    entry = {name: value for name, value in zip(names, next(rows), strict=True) if value is not None}
                    counts = entry.pop("counts", None)
                    if counts is not None:
                        entry["segmentation"] = {"size": [height, width], "counts": counts}
                    yield {**entry, "image_id": image_id}

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        with self._opened() as file:
            # Group by group: asked for all, Arrow makes a reader for each beforehand.
            for group in range(file.num_row_groups):
                batches = file.iter_batches(256, [group], columns, use_threads=False)
                while (batch := self._next(batches)) is not None:
                    yield batch

    def _next(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches, None)
        except (OSError, ValueError, self._pa.ArrowException) as error:
            raise self._damaged(error) from None

    def _opened(self) -> Any:
        try:
            return self._pq.ParquetFile(self.path)
        except (OSError, ValueError, self._pa.ArrowException) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> UsageError:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        return UsageError(f"{self.path} cannot be read: {reason}.", "Check the path; a whole Parquet file is needed.")


def _row(image: dict[str, Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    row = {**image, "annotations": [_fields(entry) for entry in annotations]}
    try:
        image["file_name"].encode("utf-8")
    except UnicodeEncodeError:
        name = image["file_name"]
        row["file_name"] = name.encode("utf-8", "backslashreplace").decode("utf-8")
        row["file_name_bytes"] = name.encode("utf-8", "surrogatepass")
    return row


def _fields(annotation: dict[str, Any]) -> dict[str, Any]:
    entry = {key: value for key, value in annotation.items() if key not in ("image_id", "segmentation")}
    entry["counts"] = (annotation.get("segmentation") or {}).get("counts")
    if unknown := entry.keys() - set(_FIELDS):
        raise ValueError(f"Parquet files have no column for {sorted(unknown)}.")
    return entry


def _schema(pa: Any) -> Any:
    annotation = pa.struct(
        [
            pa.field("id", pa.int64()),
            pa.field("bbox", pa.list_(pa.float64())),
            pa.field("area", pa.float64()),
            pa.field("counts", pa.string()),
            pa.field("score", pa.float64()),
            pa.field("category_id", pa.int64()),
            pa.field("iscrowd", pa.int8()),
            pa.field("parent", pa.int64()),
        ]
    )
    return pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("file_name", pa.string()),
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("annotations", pa.list_(annotation)),
            pa.field("file_name_bytes", pa.binary()),
        ]
    )


def import_pyarrow() -> tuple[Any, Any]:
    """``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        UsageError: If they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "Parquet files need pyarrow, which is not installed.", "pip install 'figureground[parquet]'"
        ) from None
    return pyarrow, pyarrow.parquet
