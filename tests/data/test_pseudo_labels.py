"""Pseudo-labels as training reads them: from a run or anybody's COCO file, and in spite of what is broken in it."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from figureground.data.images import load_image
from figureground.data.label_file import LabelFile
from figureground.data.pseudo_labels import Failures, PseudoLabelConfig, PseudoLabels
from figureground.errors import RunError, UsageError
from figureground.ops.rle import decode, encode
from figureground.stages import label
from tests.data.blobs import check_targets, same
from tests.data.odd_images import picture

HEIGHT, WIDTH = 24, 32
Content = dict[str, Any]


def mask(x1: int, y1: int, x2: int, y2: int) -> torch.Tensor:
    found = torch.zeros((1, HEIGHT, WIDTH), dtype=torch.bool)
    found[:, y1:y2, x1:x2] = True
    return found


def annotation(image: int, found: torch.Tensor, **values: Any) -> dict[str, Any]:
    return {"image_id": image, "segmentation": encode(found)[0], "category_id": 1, **values}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def content() -> Content:
    """Four images with 2, 1, 0 and 1 masks; ids out of order, as in other people's files."""
    images = [
        {"id": number, "file_name": f"{index}.png", "height": HEIGHT, "width": WIDTH}
        for index, number in enumerate((30, 0, 7, 12))
    ]
    annotations = [
        annotation(30, mask(0, 0, 4, 5), score=0.25),
        annotation(30, mask(10, 10, 20, 20), score=0.75, category_id=3),
        annotation(12, mask(1, 1, 2, 2), score=0.5),
        annotation(0, mask(5, 5, 9, 9), score=1),
    ]
    for index, entry in enumerate(annotations):
        entry["id"] = index + 1
    return {"images": images, "annotations": annotations}


def opened(content: Any, photos: Path, enough: Any = None, **config: Any) -> PseudoLabels:
    path = photos.parent / "annotations.json"
    path.write_text(json.dumps(content))
    failures = Failures(photos.parent / "failures.jsonl")
    return PseudoLabels(path, photos, PseudoLabelConfig(**config), failures, enough)


def failures(photos: Path) -> list[tuple[str, str]]:
    return [(entry["path"], entry["error"]) for entry in Failures(photos.parent / "failures.jsonl").entries()]


def test_examples(content: Content, photos: Path) -> None:
    labels = opened(content, photos)
    assert (len(labels), labels.rejected) == (3, 0)
    expected = [
        ("0.png", [mask(10, 10, 20, 20), mask(0, 0, 4, 5)]),
        ("1.png", [mask(5, 5, 9, 9)]),
        ("3.png", [mask(1, 1, 2, 2)]),
    ]
    for index, (name, masks) in enumerate(expected):
        pixels, targets = labels.example(index)
        assert np.array_equal(pixels, load_image(photos / name))
        check_targets(targets, (HEIGHT, WIDTH))
        assert torch.equal(targets["masks"], torch.cat(masks))
        assert set(targets["labels"].tolist()) == {1}
        assert set(targets["weights"].tolist()) == {1.0}
    assert failures(photos) == []


def test_a_run_of_label(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(3):
        picture(90 + 10 * index, 70).save(tmp_path / "photos" / f"{index}.jpg")
    label.run(label.configure([str(tmp_path / "photos")], assignments=["size=64"]), tmp_path / "run")
    path = tmp_path / "run" / "annotations.json"
    root = Path(json.loads((tmp_path / "run" / "result.json").read_text())["image_root"])
    labels = PseudoLabels(path, root, PseudoLabelConfig(), Failures(tmp_path / "failures.jsonl"))
    written = json.loads(path.read_text())["annotations"]
    assert len(labels) == len({entry["image_id"] for entry in written}) > 0
    areas = [int(found.sum()) for index in range(len(labels)) for found in labels.example(index)[1]["masks"]]
    assert sorted(areas) == sorted(entry["area"] for entry in written)


def test_options(content: Content, photos: Path) -> None:
    def weights(**config: Any) -> list[list[float]]:
        labels = opened(content, photos, **config)
        return [labels.example(index)[1]["weights"].tolist() for index in range(len(labels))]

    assert weights(soft_targets=True) == [[0.75, 0.25], [1.0], [0.5]]
    assert weights(keep_empty=True) == [[1.0, 1.0], [1.0], [], [1.0]]
    assert weights(max_objects=1, soft_targets=True) == [[0.75], [1.0], [0.5]]
    assert weights(min_score=0.75, soft_targets=True) == [[0.75], [1.0]]
    assert weights(min_score=0.75, keep_empty=True) == [[1.0], [1.0], [], []]
    pixels, targets = opened(content, photos, keep_empty=True).example(2)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    check_targets(targets, (HEIGHT, WIDTH))


def test_categories(content: Content, photos: Path) -> None:
    """Those that are listed and those that are used, in the order of their ids; labels count from 1."""
    labels = opened(content, photos)
    assert labels.categories == {1: "object"}
    assert labels.example(0)[1]["labels"].tolist() == [1, 1]
    labels = opened(content, photos, class_agnostic=False)
    assert labels.categories == {1: "1", 3: "3"}
    assert labels.example(0)[1]["labels"].tolist() == [2, 1]
    content["categories"] = [{"id": 9, "name": "hen"}, {"id": 2, "name": "egg"}, {"id": 3, "name": "cluster 3"}]
    labels = opened(content, photos, class_agnostic=False)
    assert list(labels.categories.items()) == [(1, "1"), (2, "egg"), (3, "cluster 3"), (9, "hen")]
    assert labels.example(0)[1]["labels"].tolist() == [3, 1]
    for wrong, said in (({"id": 1}, "`name` is missing"), ({"id": 9, "name": "cock"}, "`id` 9 is given twice")):
        content["categories"] = [{"id": 9, "name": "hen"}, wrong]
        with pytest.raises(UsageError, match=rf"categories\[1\].*{said}"):
            opened(content, photos, class_agnostic=False)


def test_embeddings_follow_their_annotations(content: Content, photos: Path, tmp_path: Path) -> None:
    """Rows stand in the order of the images and of their annotations, and examples in that of the scores."""
    np.save(tmp_path / "embeddings.npy", np.array([[0.25], [0.75], [1.0], [0.5]], dtype=np.float16))
    for config in ({}, {"keep_empty": True}, {"min_score": 0.5}, {"max_objects": 1}):
        labels = opened(content, photos, soft_targets=True, **config)
        assert "embeddings" not in labels.example(0)[1]
        labels.embeddings = tmp_path / "embeddings.npy"
        for index in range(len(labels)):
            targets = pickle.loads(pickle.dumps(labels)).example(index)[1]
            assert targets["embeddings"].dtype == torch.float32
            assert targets["embeddings"][:, 0].tolist() == targets["weights"].tolist()


def test_polygons_runs_and_no_score(content: Content, photos: Path) -> None:
    content["annotations"] = [
        {"id": 1, "image_id": 30, "segmentation": [[2, 3, 12, 3, 12, 13, 2, 13]]},
        {"id": 2, "image_id": 30, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [24, 48, 24 * 29]}},
        {"id": 3, "image_id": 30, "segmentation": [[0, 0, 9, 0, 9, 9]], "iscrowd": 1},
    ]
    labels = opened(content, photos, min_score=1, soft_targets=True)
    [(_, targets)] = [labels.example(index) for index in range(len(labels))]
    assert torch.equal(targets["masks"], torch.cat([mask(2, 3, 12, 13), mask(1, 0, 3, 24)]))
    assert targets["weights"].tolist() == [1, 1]
    assert labels.rejected == 0


BAD = {
    "another size": ({"segmentation": encode(torch.ones((1, 24, 31), dtype=torch.bool))[0]}, "`size`"),
    "no pixel": ({"segmentation": encode(mask(0, 0, 0, 0))[0]}, "no pixel"),
    "no mask": ({"segmentation": None}, "missing"),
    "a mask cut short": (
        {"segmentation": {"size": [24, 32], "counts": encode(mask(3, 3, 9, 9))[0]["counts"][:-1]}},
        "runs",
    ),
    "a mask of nonsense": ({"segmentation": "abc"}, "neither polygons nor runs"),
    "a polygon far out of the image": ({"segmentation": [[0, 0, 90, 0, 90, 9]]}, "reaches 58 px out"),
    "an unknown image": ({"image_id": 99}, "`image_id` 99"),
    "no image": ({"image_id": None}, "`image_id` is missing"),
    "a score above 1": ({"score": 3}, "`score` is 3"),
    "a score that is no number": ({"score": "high"}, "`score`"),
    "no category": ({"category_id": 0}, "`category_id` is 0"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_annotation(kind: str, content: Content, photos: Path) -> None:
    """It is named and passed over; the others of its image are there; as the only one it is an error."""
    change, message = BAD[kind]
    whole = copy.deepcopy(content)
    content["annotations"][0].update(change)
    labels = opened(content, photos)
    assert labels.rejected == 1
    assert torch.equal(labels.example(0)[1]["masks"], mask(10, 10, 20, 20))
    [(path, error)] = failures(photos)
    assert path == ("0.png" if "image_id" not in change else str(photos.parent / "annotations.json"))
    assert message in error
    assert "annotations[0]" in error
    with pytest.raises(UsageError, match=r"annotations\[0\]"):
        LabelFile(photos.parent / "annotations.json")
    whole["annotations"] = content["annotations"][:1]
    with pytest.raises(UsageError, match="None of the 1 annotations can be used"):
        opened(whole, photos)


def without(content: Content, key: str) -> Content:
    return {name: value for name, value in content.items() if name != key}


def with_image(content: Content, **values: Any) -> Content:
    return {**content, "images": [*content["images"][:-1], {**content["images"][-1], **values}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: [content], "has no `images`"),
        (lambda content: without(content, "images"), "`images` is missing"),
        (lambda content: without(content, "annotations"), "`annotations` is missing"),
        (lambda content: with_image(content, id=30), "image 30: `id` is given twice"),
        (lambda content: with_image(content, file_name=None), "image 12: `file_name` is missing"),
        (lambda content: with_image(content, height=0), "must be positive"),
        (lambda content: {**content, "annotations": []}, r"none of its 4 images has a mask .*\(0 masks"),
    ],
)
def test_a_broken_file(change: Any, message: str, content: Content, photos: Path) -> None:
    with pytest.raises(UsageError, match=message):
        opened(change(content), photos)


def test_a_file_that_is_no_json(photos: Path) -> None:
    (photos.parent / "cut.json").write_text('{"images": [')
    for name, message in [("cut.json", "is not JSON"), ("missing.json", "cannot be read")]:
        with pytest.raises(UsageError, match=message):
            LabelFile(photos.parent / name)


def test_nothing_is_sure_enough(content: Content, photos: Path) -> None:
    content["annotations"].pop()
    with pytest.raises(UsageError, match=r"(?s)none of its 4 images has a mask .* from 0.9 count"):
        opened(content, photos, min_score=0.9)


def test_a_bad_image_gives_its_place_to_the_next(content: Content, photos: Path) -> None:
    labels = opened(content, photos)
    (photos / "1.png").write_bytes(b"no image")
    Image.new("RGB", (WIDTH, HEIGHT - 1)).save(photos / "3.png")
    examples = [labels.example(index) for index in (0, 1, 2, 1)]
    assert all(np.array_equal(pixels, load_image(photos / "0.png")) for pixels, _ in examples)
    assert all(same(targets, examples[0][1]) for _, targets in examples)
    named = failures(photos)
    assert [path for path, _ in named] == ["1.png", "3.png"]
    assert "23x32 px, but its masks have 24x32" in named[1][1]
    # A later start goes on with the same list.
    opened(content, photos).example(1)
    assert failures(photos) == named

    (photos / "0.png").unlink()
    with pytest.raises(RunError, match="None of the 3 images"):
        labels.example(0)
    assert len(failures(photos)) == 3


def test_copies_in_other_processes(content: Content, photos: Path) -> None:
    """What is pickled is about as large as the file; the copies give the same and write to the same list."""
    labels = opened(content, photos)
    path = photos.parent / "annotations.json"
    (photos / "1.png").unlink()
    copies = [pickle.loads(pickle.dumps(labels)) for _ in range(2)]
    for other in copies:
        for index in range(3):
            assert np.array_equal(other.example(index)[0], labels.example(index)[0])
            assert same(other.example(index)[1], labels.example(index)[1])
    assert [name for name, _ in failures(photos)] == ["1.png"]
    content["images"] = [{**content["images"][0], "id": index} for index in range(500)]
    content["annotations"] = [{**content["annotations"][1], "image_id": index % 500} for index in range(2000)]
    assert len(pickle.dumps(opened(content, photos))) < path.stat().st_size / 2


def test_images_decoded_at_less_than_their_size(content: Content, photos: Path) -> None:
    """A JPEG at a half has masks at a half."""
    size = (480, 640)
    image = torch.zeros((1, *size), dtype=torch.bool)
    image[:, 96:289, 160:401] = True
    pixels = np.where(image[0].numpy()[..., None], [250, 30, 30], [20, 20, 90]).astype(np.uint8)
    Image.fromarray(pixels).save(photos / "0.jpg", quality=95)
    content["images"] = [{"id": 30, "file_name": "0.jpg", "height": size[0], "width": size[1]}]
    speck = torch.zeros_like(image)
    speck[:, 5, 5] = True
    content["annotations"] = [annotation(30, image), annotation(30, speck)]
    labels = opened(content, photos, enough=lambda size: (size[0] // 2, size[1] // 2))
    small, targets = labels.example(0)
    assert small.shape == (240, 320, 3)
    check_targets(targets, (240, 320))
    red = torch.from_numpy(small[..., 0] > 135)
    assert (red ^ targets["masks"][0]).float().mean() < 0.01
    assert len(targets["masks"]) == 1


def test_packed_masks_are_the_files(content: Content, photos: Path) -> None:
    opened(content, photos)
    file = LabelFile(photos.parent / "annotations.json")
    assert (len(file), file.annotations) == (4, 4)
    assert [image["file_name"] for image in file] == ["0.png", "1.png", "2.png", "3.png"]
    [first, second] = file[0]["annotations"]
    assert torch.equal(decode([first["segmentation"]]), mask(0, 0, 4, 5))
    assert (second["score"], second["category_id"]) == (0.75, 3)
    with pytest.raises(IndexError):
        file[4]
