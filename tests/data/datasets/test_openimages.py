import tracemalloc
from pathlib import Path

import pytest

from figureground.data.datasets.builders import open_source
from figureground.data.datasets.catalogue import find
from figureground.data.datasets.source import TruthImage, TruthObject
from figureground.errors import UsageError
from tests.data.datasets.originals import COLUMNS, openimages_row, put, put_image, read

CSV = "validation-annotations-bbox.csv"
MID = "/m/0bt9lr"


def build(root: Path, text: str, names: tuple[str, ...] = ("aa", "bb")) -> tuple:
    put(root / CSV, text)
    for name in names:
        put_image(root / f"validation/{name}.jpg", (40, 60))
    return read("openimages_val", root)


def test_shares_become_pixels_and_groups_crowds(tmp_path: Path) -> None:
    rows = [openimages_row("bb", 0.25, 0.5, 0.1, 1), openimages_row("aa", 0, 1, 0, 1, group=1)]
    records, errors, _ = build(tmp_path, f"{COLUMNS}\n{''.join(rows)}")
    assert errors == {}
    assert list(records) == ["aa.jpg", "bb.jpg"]
    assert records["bb.jpg"] == TruthImage(
        file_name="bb.jpg",
        height=40,
        width=60,
        objects=(TruthObject(bbox=(15, 4, 15, 36), area=540, name=MID, orig_category_id=MID),),
    )
    [crowd] = records["aa.jpg"].objects
    assert crowd == TruthObject(bbox=(0, 0, 60, 40), area=2400, crowd=True, name=MID, orig_category_id=MID)


def test_rows_of_an_image_may_lie_apart_and_columns_in_another_order(tmp_path: Path) -> None:
    put(tmp_path / "class-descriptions-boxable.csv", f'{MID},"Dog, of any kind"\n/m/01,Cat\n')
    text = (
        "\ufeffImageID,IsGroupOf,YMin,YMax,XMin,XMax,LabelName\r\n"
        f"aa,0,0,0.5,0,0.5,{MID}\r\n"
        f"aa,0,0,0.5,0,0.25,{MID}\r\n"
        f"bb,0,0,1,0,1,{MID}\r\n"
        "\r\n"
        f"aa,0,0,0.5,0,0.1,{MID}"
    )
    records, errors, _ = build(tmp_path, text)
    assert errors == {}
    assert [entry.bbox for entry in records["aa.jpg"].objects] == [(0, 0, 30, 20), (0, 0, 15, 20), (0, 0, 6, 20)]
    assert records["bb.jpg"].objects[0].name == "Dog, of any kind"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("aa,xclick,/m/01,1,0.1\n", "5 of 13 columns"),
        (openimages_row("aa", 0.1, 1.5, 0, 1), "`XMax` is not in [0, 1]: 1.5"),
        (openimages_row("aa", 0.1, 0.9, 0, 1).replace("0.9", "x"), "`XMax` is not a number: 'x'"),
        (openimages_row("aa", 0.9, 0.1, 0, 1), "is empty"),
        (openimages_row("aa", 0.1, 0.9, 0, 1, group=7), "`IsGroupOf` is not 0, 1 or -1: '7'"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: str, said: str) -> None:
    good = openimages_row("aa", 0, 1, 0, 1)
    records, errors, _ = build(tmp_path, f"{COLUMNS}\n{good}{row}{good}")
    assert errors == {}
    [message] = records["aa.jpg"].broken
    assert message.startswith(f"{tmp_path / CSV}, line 3: ")
    assert said in message
    assert len(records["aa.jpg"].objects) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"{COLUMNS}\n{openimages_row('aa', 0, 1, 0, 1)}{openimages_row('bb', 0, 1, 0, 1)[:20]}",
            "line 3: the file ends",
        ),
        ("", "line 1: no column ImageID, LabelName, XMin, YMin, XMax, YMax, IsGroupOf"),
        (COLUMNS.replace("YMax", "Ymax"), "line 1: no column YMax"),
        (f"Nr,{COLUMNS}\n", "line 1: ImageID is not the first column"),
        (f"{COLUMNS}\n", "no image is listed"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(tmp_path, text)
    assert said in caught.value.message


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    rows = openimages_row("aa", 0, 1, 0, 1) + openimages_row("zz", 0, 1, 0, 1)
    _, errors, _ = build(tmp_path, f"{COLUMNS}\n{rows}")
    assert "zz.jpg does not exist" in errors["zz.jpg"]


def test_rows_are_not_held_in_memory(tmp_path: Path) -> None:
    row = openimages_row("{name}", 0.123456, 0.987654, 0.123456, 0.987654)
    text = COLUMNS + "\n" + "".join(row.format(name=f"{index:04d}") * 200 for index in range(200))
    put(tmp_path / CSV, text)
    put_image(tmp_path / "validation/0007.jpg")
    tracemalloc.start()
    try:
        source = open_source(find("openimages_val"), tmp_path)
        record = source.read(7)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(record.objects) == 200
    assert peak < len(text) / 5
