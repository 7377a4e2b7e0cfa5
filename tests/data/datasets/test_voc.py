from pathlib import Path

import pytest

from figureground.data.datasets.source import TruthImage, TruthObject
from figureground.errors import UsageError
from tests.data.datasets.originals import SIZE, put, put_image, read, voc_object, voc_xml

NAME = "000005"


def build(root: Path, xml: str | bytes, size: tuple[int, int] = SIZE, listed: str = f"{NAME}\n") -> tuple:
    put(root / "ImageSets/Main/trainval.txt", listed)
    put(root / f"Annotations/{NAME}.xml", xml)
    put_image(root / f"JPEGImages/{NAME}.jpg", size)
    return read("voc07_trainval", root)


def test_boxes_count_from_one_and_hold_their_last_pixel(tmp_path: Path) -> None:
    hard = "<pose>Left</pose><truncated>1</truncated><difficult>1</difficult>"
    part = "<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></part>"
    vague = "<truncated>Unspecified</truncated><difficult>0</difficult>"
    objects = [
        voc_object((1, 1, 3, 2)),
        voc_object((60, 40, 60, 40), "person", hard),
        voc_object((45.7, 11, 50.25, 12), "cat", vague).replace("<bndbox>", f"{part}<bndbox>"),
        voc_object((0, 0, 61, 41)),
    ]
    records, errors, _ = build(tmp_path, voc_xml(objects))
    assert errors == {}
    assert records == {
        f"{NAME}.jpg": TruthImage(
            file_name=f"{NAME}.jpg",
            height=40,
            width=60,
            objects=(
                TruthObject(bbox=(0, 0, 3, 2), area=6, name="dog"),
                TruthObject(bbox=(59, 39, 1, 1), area=1, name="person", difficult=True, truncated=True),
                TruthObject(bbox=(44.7, 10, 5.55, 2), area=11.1, name="cat"),
                TruthObject(bbox=(0, 0, 60, 40), area=2400, name="dog"),
            ),
        )
    }


def test_image_sets_are_joined_and_a_second_column_is_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / f"Annotations/{name}.xml", voc_xml())
        put_image(tmp_path / f"JPEGImages/{name}.jpg")
    put(tmp_path / "ImageSets/Main/trainval.txt", "c -1\na  1\n")
    put(tmp_path / "ImageSets/Main/test.txt", "b\na\n\n")
    assert list(read("voc07", tmp_path)[0]) == ["c.jpg", "a.jpg", "b.jpg"]


def test_a_size_that_is_not_stated_is_the_images_own(tmp_path: Path) -> None:
    xml = voc_xml([voc_object((1, 1, 61, 40))], size=(0, 0))
    records, _, _ = build(tmp_path, xml)
    assert records[f"{NAME}.jpg"].objects[0].bbox == (0, 0, 60, 40)
    assert build(tmp_path, "<annotation/>")[0][f"{NAME}.jpg"].objects == ()


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (voc_xml([voc_object((1, 1, 2, 2))])[:80], "line 2, column"),
        ("", "line 1, column 0: not XML: no element found"),
        (voc_xml(size=(60, 40)), "is for an image of 40x60 px, but the image has 60x40"),
        (voc_xml(head="<!DOCTYPE annotation>"), "refused as unsafe"),
        (voc_xml(head='<!DOCTYPE a SYSTEM "file:///etc/passwd">'), "refused as unsafe"),
    ],
)
def test_a_broken_file_is_an_image_less(tmp_path: Path, xml: str, said: str) -> None:
    records, errors, _ = build(tmp_path, xml)
    assert records == {}
    assert str(tmp_path / f"Annotations/{NAME}.xml") in errors[f"{NAME}.jpg"]
    assert said in errors[f"{NAME}.jpg"]


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    entities = '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    _, errors, _ = build(tmp_path, f"<!DOCTYPE annotation [{entities}]><annotation>&a9;</annotation>")
    assert "refused as unsafe" in errors[f"{NAME}.jpg"]
    # Without a document type an entity of one's own cannot be declared, and using one is an error.
    assert "undefined entity" in build(tmp_path, "<annotation>&a9;</annotation>")[1][f"{NAME}.jpg"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("<object><name>dog</name></object>", "`bndbox/xmin` is not a number: None"),
        (voc_object((1, 2, 3)), "`bndbox/ymax` is not a number: None"),
        (voc_object((1, "two", 3, 4)), "`bndbox/ymin` is not a number: 'two'"),
        (voc_object((1, "nan", 3, 4)), "`bndbox/ymin` is not finite"),
        (voc_object((9, 1, 3, 4)), "is empty"),
        (voc_object((70, 1, 80, 4)), "is outside its image"),
    ],
)
def test_a_broken_object_is_named_and_its_image_kept(tmp_path: Path, wrong: str, said: str) -> None:
    records, errors, _ = build(tmp_path, voc_xml([voc_object((1, 1, 3, 2)), wrong]))
    assert errors == {}
    [message] = records[f"{NAME}.jpg"].broken
    assert message.startswith(f"{tmp_path / 'Annotations'}/{NAME}.xml: object 2: ")
    assert said in message
    assert len(records[f"{NAME}.jpg"].objects) == 1


def test_missing_files_are_named(tmp_path: Path) -> None:
    _, errors, _ = build(tmp_path, voc_xml(), listed=f"{NAME}\n000007\n000009\n")
    put(tmp_path / "Annotations/000009.xml", voc_xml())
    _, errors, _ = read("voc07_trainval", tmp_path)
    assert "Annotations/000007.xml does not exist" in errors["000007.jpg"]
    assert "JPEGImages/000009.jpg does not exist" in errors["000009.jpg"]
    put(tmp_path / "ImageSets/Main/trainval.txt", b"\xff\xfe")
    with pytest.raises(UsageError, match=r"trainval\.txt is not a text file"):
        read("voc07_trainval", tmp_path)
