"""PASCAL VOC's format: one XML file an image (VOC, and Clipart, Watercolor and Comic in the same form).

Reference:
    Everingham et al., The PASCAL VOC 2007/2012 Development Kit, section 'Annotation'. Boxes count pixels from 1 and
    hold their last row and column: `xmin` 1 and `xmax` 3 are the columns 0 to 3, half-open.
"""

from pathlib import Path
from xml.etree import ElementTree

from figureground.data.datasets.catalogue import DataSet
from figureground.data.datasets.source import (
    Source,
    TruthImage,
    TruthObject,
    check_size,
    clip_box,
    gather,
    image_size,
    number,
    read_bytes,
    read_lines,
    tidy,
)
from figureground.errors import ImageError, UsageError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def build(data_set: DataSet, root: Path) -> Source:
    """The images of the row's image sets, in their order, each once."""
    lines = [line for part in data_set.lists for _, line in read_lines(root / part, UsageError)]
    # A second column says whether a class is in the image; the first is its name.
    names = list(dict.fromkeys(line.split()[0] for line in lines))

    def read(index: int) -> TruthImage:
        path = root / data_set.annotations[0] / f"{names[index]}.xml"
        file_name = f"{names[index]}.jpg"
        tree = parse_xml(path)
        size = image_size(root / data_set.image_root, file_name)
        _check_size(tree, size, path)
        parts = [(f"{path}: object {place}", part) for place, part in enumerate(tree.findall("object"), start=1)]
        objects, broken = gather(parts, lambda part: _read_object(part, size))
        return TruthImage(file_name=file_name, height=size[0], width=size[1], objects=objects, broken=broken)

    return Source([f"{name}.jpg" for name in names], read)


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file that has no document type: nothing can then be expanded or fetched.

    Raises:
        ImageError: If the file cannot be read, is cut short or damaged, or declares a document type.
    """
    try:
        return ElementTree.fromstring(read_bytes(path), ElementTree.XMLParser(target=_Builder()))
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ImageError(f"{path}, line {line}, column {column}: not XML: {str(error).partition(':')[0]}.") from None
    except _DoctypeError:
        raise ImageError(
            f"{path}: a document type with entities is refused as unsafe (VOC's files have none)."
        ) from None


class _DoctypeError(Exception):
    pass


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _DoctypeError


def _check_size(tree: ElementTree.Element, size: tuple[int, int], path: Path) -> None:
    try:
        annotated = tuple(number(tree.findtext(f"size/{side}"), side) for side in ("height", "width"))
    except ValueError:
        return  # not stated: the image's own size holds
    if all(annotated):
        check_size((int(annotated[0]), int(annotated[1])), size, str(path))


def _read_object(part: ElementTree.Element, size: tuple[int, int]) -> TruthObject:
    # Direct children only: parts of a person have boxes of their own.
    x1, y1, x2, y2 = (number(part.findtext(f"bndbox/{corner}"), f"bndbox/{corner}") for corner in _CORNERS)
    bbox = clip_box((x1 - 1, y1 - 1, x2, y2), size)
    return TruthObject(
        bbox=bbox,
        area=tidy(bbox[2] * bbox[3]),
        difficult=_flag(part, "difficult"),
        truncated=_flag(part, "truncated"),
        name=part.findtext("name"),
    )


def _flag(part: ElementTree.Element, name: str) -> bool:
    # Missing and 'Unspecified' are no.
    return (part.findtext(name) or "").strip() == "1"
