"""The part of `docs/datasets.md` that says what the catalogue says."""

from figureground.data.datasets.catalogue import DATA_SETS, DataSet

# Formats of one file.
_FILES = {"voc_classes": "class_maps", "coco_stuff": "class_maps"}


def to_markdown() -> str:
    """A table of all data sets, then each with its layout, terms and notes."""
    rows = ["| name | data set | measures | truth | images (quoted) | licence and terms |", f"|{' --- |' * 6}"]
    for row in DATA_SETS.values():
        cells = (
            f"[`{row.name}`](#{row.name})",
            row.title,
            row.measures,
            _truth(row),
            f"{row.published_images:,}",
            row.licence,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, *(section for row in DATA_SETS.values() for section in _section(row))]) + "\n"


def _section(row: DataSet) -> list[str]:
    tree = "\n".join([*row.layout, f"{row.example}    (an image)"])
    return [
        "",
        f"### {row.name}",
        "",
        f"{row.title}. Format: `{_FILES.get(row.format, row.format)}.py`. From <{row.homepage}>.",
        *(["", row.notes] if row.notes else []),
        "",
        "```text",
        tree,
        "```",
    ]


def _truth(row: DataSet) -> str:
    if row.classes:
        return f"{len(row.classes)} classes of pixels"
    return "masks and boxes" if row.masks else "boxes"
