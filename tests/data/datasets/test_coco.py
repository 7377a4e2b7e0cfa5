import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from figureground.data.datasets.source import TruthImage, TruthObject
from figureground.errors import UsageError
from figureground.ops.rle import decode, encode
from tests.data.datasets.originals import SIZE, SQUARE, coco_image, put, put_coco, put_image, read, runs

JSON = "annotations/instances_val2017.json"
[RLE] = encode(torch.from_numpy(SQUARE)[None])
A, B = "000000000139.jpg", "000000000285.jpg"


def build(root: Path, annotations: list[Any], images: list[Any] | None = None) -> tuple[Any, Any, Any]:
    for name in (A, B):
        put_image(root / "val2017" / name)
    put_coco(root / JSON, [coco_image(285, B), coco_image(139, A)] if images is None else images, annotations)
    return read("coco_val2017", root)


def entry(**fields: Any) -> dict[str, Any]:
    whole = {
        "id": 1,
        "image_id": 139,
        "category_id": 18,
        "bbox": [20, 10, 30, 20],
        "area": 601.5,
        "iscrowd": 0,
        **fields,
    }
    return {key: value for key, value in whole.items() if value is not ...}


def test_every_kind_of_annotation(tmp_path: Path) -> None:
    left, right = [20, 10, 30, 10, 30, 30, 20, 30], [40, 10, 50, 10, 50, 30, 40, 30]
    crowd = entry(id=2, iscrowd=1, area=600, segmentation=runs(SQUARE))
    compressed = entry(id=3, bbox=[1.25, 2, 3.5, 4], segmentation=RLE, category_id=99)
    bare = entry(id=4, bbox=[0, 0, 2.5, 3], area=..., iscrowd=...)
    unboxed = entry(id=5, bbox=..., area=..., segmentation=RLE)
    annotations = [entry(segmentation=[left, right]), crowd, compressed, bare, unboxed]
    records, errors, broken = build(tmp_path, annotations)
    assert (errors, broken) == ({}, ())
    assert list(records) == [B, A]
    assert records[B] == TruthImage(file_name=B, height=40, width=60, id=285)
    first, *rest = records[A].objects
    assert records[A].id == 139
    dog: Any = {"name": "dog", "orig_category_id": 18}
    bbox = (20, 10, 30, 20)
    assert rest == [
        TruthObject(bbox=bbox, area=600, mask=RLE, crowd=True, **dog),
        TruthObject(bbox=(1.25, 2, 3.5, 4), area=601.5, mask=RLE, orig_category_id=99),
        TruthObject(bbox=(0, 0, 2.5, 3), area=7.5, **dog),
        TruthObject(bbox=bbox, area=600, mask=RLE, **dog),
    ]
    both = SQUARE.copy()
    both[:, 30:40] = False
    assert (first.bbox, first.area, first.name) == (bbox, 601.5, "dog")
    np.testing.assert_array_equal(decode([first.mask])[0].numpy(), both)


def test_a_box_over_the_border_is_cut_off(tmp_path: Path) -> None:
    records, _, _ = build(tmp_path, [entry(bbox=[-3, 30, 10, 20.5], area=...)])
    assert records[A].objects[0].bbox == (0, 30, 7, 10)
    assert records[A].objects[0].area == 70


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bbox": [20, 10, 0, 20]}, "is empty"),
        ({"bbox": [20, 10, -4, 20]}, "is empty"),
        ({"bbox": [70, 10, 5, 5]}, "is outside its image of 60x40 px"),
        ({"bbox": [1, 2, 3]}, "`bbox` is not four numbers: [1, 2, 3]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "`bbox` is not four numbers"),
        ({"bbox": ...}, "`bbox` and `segmentation` are both missing"),
        ({"area": -1}, "`area` is not a positive number: -1"),
        ({"iscrowd": 2}, "`iscrowd` is neither 0 nor 1: 2"),
        ({"segmentation": [[1, 2, 3, 4]]}, "`segmentation` is not a list of polygons"),
        ({"segmentation": [[0, 0, 90, 0, 90, 30]]}, "`segmentation` reaches 30 px out"),
        ({"segmentation": {"size": [60, 40], "counts": [2400]}}, "`size` [60, 40] is not the height and width"),
        ({"segmentation": {"size": [40, 60], "counts": [5, 6]}}, "`counts` are not runs that fill"),
        ({"segmentation": {"size": [40, 60], "counts": RLE["counts"][:-2]}}, "`counts` are not runs that fill"),
        ({"category_id": [1]}, ""),
    ],
)
def test_a_broken_annotation_is_named_and_its_image_kept(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    records, errors, _ = build(tmp_path, [entry(id=8, **fields), entry(id=9)])
    assert errors == {}
    if said:
        [message] = records[A].broken
        assert message.startswith(f"{tmp_path / JSON}: annotations[0]: ")
        assert said in message
    assert len(records[A].objects) == (1 if said else 2)


def test_broken_images_and_strays_are_named(tmp_path: Path) -> None:
    put_image(tmp_path / "val2017/wide.jpg", (40, 61))
    put_image(tmp_path / "val2017/turned.jpg", (60, 40), orientation=6)
    put(tmp_path / "val2017/text.jpg", "no image")
    names = ["wide.jpg", "turned.jpg", "text.jpg", "gone.jpg", "../../etc/x.jpg"]
    images: list[Any] = [coco_image(index, name) for index, name in enumerate(names)]
    images += [{"id": 20, "height": 1, "width": 1}, {**coco_image(21, B), "height": "40"}, "text"]
    strays = [entry(image_id=77), "text"]
    records, errors, broken = build(tmp_path, strays, [*images, coco_image(139, A)])
    assert list(records) == ["turned.jpg", A]
    assert "60x40 px, but the image has 61x40" in errors["wide.jpg"]
    assert "is not an image" in errors["text.jpg"]
    assert "gone.jpg does not exist" in errors["gone.jpg"]
    assert "leads out of the data set" in errors["../../etc/x.jpg"]
    assert "images[5]: `file_name` is not a text: None" in errors["images[5]"]
    assert "images[6]: `height` is not a whole number: '40'" in errors[B]
    assert "images[7]: `id` is not a whole number" in errors["images[7]"]
    assert [message.rpartition(": ")[2] for message in broken] == [
        "`image_id` 77 is not among the images",
        "`image_id` None is not among the images",
    ]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_cut_short(tmp_path: Path, share: float) -> None:
    build(tmp_path, [entry(segmentation=RLE)])
    content = (tmp_path / JSON).read_text()
    put(tmp_path / JSON, content[: int(len(content) * share)])
    with pytest.raises(UsageError) as caught:
        read("coco_val2017", tmp_path)
    assert str(tmp_path / JSON) in caught.value.message
    assert "line 1, column" in caught.value.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "ends too early"),
        ('{"images": [\n{"id": 1}', "line 2, column 10: not JSON: it ends too early"),
        ('{"images": "a\n', "not JSON"),
        ("{'images': []}", "line 1, column 2"),
        ("[]", "`images` is missing"),
        ('{"images": []}', "`annotations` is missing"),
        ('{"images": [], "annotations": []}', "no image is listed"),
        ('{"images": [{"id": 1}, {"id": 1}], "annotations": []}', "images[1]: `id` 1 is given twice"),
        (b"\xff\xfe\x00", "is not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: str | bytes, said: str) -> None:
    build(tmp_path, [])
    put(tmp_path / JSON, content)
    with pytest.raises(UsageError) as caught:
        read("coco_val2017", tmp_path)
    assert said in caught.value.message


def test_coco20k_takes_what_the_list_names_in_its_order(tmp_path: Path) -> None:
    names = [f"COCO_train2014_{index:012d}.jpg" for index in (9, 25, 30)]
    for name in names:
        put_image(tmp_path / "train2014" / name)
    images = [coco_image(index, name) for index, name in zip((9, 25, 30), names, strict=True)]
    put_coco(tmp_path / "annotations/instances_train2014.json", images, [entry(image_id=9), entry(image_id=25)])
    listed = f"{names[2]}\r\n\ntrain2014/{names[0]}\n{names[0]}\nCOCO_val2014_000000000042.jpg\n"
    put(tmp_path / "coco_20k_filenames.txt", listed)
    records, errors, broken = read("coco20k", tmp_path)
    assert [(name, image.id, len(image.objects)) for name, image in records.items()] == [
        (names[2], 30, 0),
        (names[0], 9, 1),
    ]
    assert broken == ()
    assert "is not among the images of" in errors["COCO_val2014_000000000042.jpg"]


def test_lvis_names_images_by_url_and_keeps_what_was_not_annotated(tmp_path: Path) -> None:
    images: list[Any] = []
    for index, name in enumerate(["val2017/000000000001.jpg", "train2017/000000000002.jpg"], start=1):
        put_image(tmp_path / name)
        url = f"http://images.cocodataset.org/{name}"
        federated = {"neg_category_ids": [4, 5], "not_exhaustive_category_ids": [index], "flickr_url": "x"}
        images.append({"id": index, "coco_url": url, "height": 40, "width": 60, **federated})
    images.append({"id": 3, "coco_url": "x.jpg", "height": 40, "width": 60})
    square = [[20, 10, 50, 10, 50, 30, 20, 30]]
    put_coco(
        tmp_path / "annotations/lvis_v1_val.json",
        images,
        [entry(image_id=2, iscrowd=..., segmentation=square, area=600)],
    )
    records, errors, _ = read("lvis_val", tmp_path)
    found = TruthObject(bbox=(20, 10, 30, 20), area=600, mask=RLE, name="dog", orig_category_id=18)
    extra = {"neg_category_ids": [4, 5], "not_exhaustive_category_ids": [2]}
    name = "train2017/000000000002.jpg"
    assert records[name] == TruthImage(file_name=name, height=40, width=60, objects=(found,), id=2, extra=extra)
    assert list(records) == ["val2017/000000000001.jpg", name]
    assert "`coco_url` does not end in folder and file: 'x.jpg'" in errors["images[2]"]


def test_objects365_lies_in_subfolders_and_has_no_masks(tmp_path: Path) -> None:
    name = "v1/patch8/objects365_v1_00420917.jpg"
    put_image(tmp_path / "images" / name)
    crowd = entry(id=2, iscrowd=1, bbox=[50.5, -2.25, 30, 12.25], area=367.5)
    put_coco(
        tmp_path / "annotations/zhiyuan_objv2_val.json",
        [coco_image(139, f"images/{name}")],
        [entry(area=600), crowd],
        [{"id": 18, "name": "Dog"}],
    )
    records, errors, _ = read("objects365_val", tmp_path)
    assert errors == {}
    assert records[name].objects == (
        TruthObject(bbox=(20, 10, 30, 20), area=600, name="Dog", orig_category_id=18),
        TruthObject(bbox=(50.5, 0, 9.5, 10), area=367.5, crowd=True, name="Dog", orig_category_id=18),
    )


def test_uvo_names_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    for name in ("x/0.png", "y/0.png"):
        put_image(tmp_path / "all_UVO_frames" / name)
    put_coco(
        tmp_path / "annotations/UVO_frame_val.json",
        [coco_image(1, "x/0.png"), coco_image(2, "y/0.png")],
        [entry(image_id=2, segmentation=RLE)],
        [],
    )
    records, _, _ = read("uvo_val", tmp_path)
    assert [len(image.objects) for image in records.values()] == [0, 1]
    assert json.loads(json.dumps(records["y/0.png"].objects[0].mask)) == RLE
    assert records["y/0.png"].objects[0].name is None
    assert (records["x/0.png"].height, records["x/0.png"].width) == SIZE
