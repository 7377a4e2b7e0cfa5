from pathlib import Path

import pytest

from figureground.data.datasets.source import TruthImage, TruthObject
from tests.data.datasets.originals import kitti_line, put, put_image, read


def build(root: Path, text: str) -> tuple:
    put(root / "training/label_2/000003.txt", text)
    put_image(root / "training/image_2/000003.png")
    return read("kitti", root)


def test_what_is_not_annotated_is_a_crowd(tmp_path: Path) -> None:
    dont_care = "DontCare -1 -1 -10 40.00 0.00 60.00 9.50 -1 -1 -1 -1000 -1000 -1000 -10\n"
    records, errors, _ = build(
        tmp_path, kitti_line("Car", (20.25, 10, 50, 30.5)) + dont_care + kitti_line("Misc", (0, 0, 59, 39))
    )
    assert errors == {}
    assert records["000003.png"] == TruthImage(
        file_name="000003.png",
        height=40,
        width=60,
        objects=(
            TruthObject(bbox=(20.25, 10, 29.75, 20.5), area=609.875, name="Car"),
            TruthObject(bbox=(40, 0, 20, 9.5), area=190, name="DontCare", crowd=True),
            TruthObject(bbox=(0, 0, 59, 39), area=2301, name="Misc"),
        ),
    )


def test_no_object(tmp_path: Path) -> None:
    records, _, _ = build(tmp_path, "")
    assert records["000003.png"].objects == ()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (kitti_line("Car", (1, 2, 3, 4))[:40], "of 15 columns (cut short?)"),
        (kitti_line("Car", (1, 2, 3, 4)).replace("2.00", "two"), "`top` is not a number: 'two'"),
        (kitti_line("Car", (9, 2, 3, 4)), "is empty"),
        (kitti_line("Car", (900, 2, 930, 4)), "is outside its image"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    records, errors, _ = build(tmp_path, kitti_line("Van", (1, 2, 3, 4)) + line)
    assert errors == {}
    [message] = records["000003.png"].broken
    assert message.startswith(f"{tmp_path / 'training/label_2/000003.txt'}, line 2: ")
    assert said in message
    assert [entry.name for entry in records["000003.png"].objects] == ["Van"]


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    build(tmp_path, "")
    put(tmp_path / "training/label_2/000004.txt", "")
    put(tmp_path / "training/label_2/readme.md", "")
    records, errors, _ = read("kitti", tmp_path)
    assert list(records) == ["000003.png"]
    assert "000004.png does not exist" in errors["000004.png"]
