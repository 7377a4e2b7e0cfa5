"""The kinds of objects that a COCO file tells apart."""

from pathlib import Path

from figureground.data.coco_fields import read_field, to_whole
from figureground.data.parquet import SUFFIX, ParquetFile
from figureground.errors import UsageError
from figureground.storage.json_stream import JsonStream


def read_categories(path: Path) -> dict[int, str]:
    """The names of the categories that a file lists, by id and in the order of the ids; of some files there are none.

    Raises:
        UsageError: If the file cannot be read, or an entry has no id or no name.
    """
    found: dict[int, str] = {}
    try:
        file = ParquetFile(path) if path.suffix == SUFFIX else JsonStream(path)
        for index, entry in enumerate(file.entries("categories", stop=True)):
            where = f"{path}: categories[{index}]"
            number, name = to_whole(read_field(entry, "id", where), "id", where), read_field(entry, "name", where)
            if number in found:
                raise UsageError(f"{where}: `id` {number} is given twice.")
            found[number] = str(name)
    except (KeyError, TypeError):
        return {}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}.", "A COCO file is needed.") from None
    return dict(sorted(found.items()))
