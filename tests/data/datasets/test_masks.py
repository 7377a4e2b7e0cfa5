from pathlib import Path

import numpy as np
import pytest
import torch

from figureground.data.datasets.source import TruthImage, TruthObject
from figureground.ops.rle import decode, encode
from tests.data.datasets.originals import SIZE, SQUARE, put, put_image, put_mask, read

[RLE] = encode(torch.from_numpy(SQUARE)[None])
FOREGROUND = TruthObject(bbox=(20, 10, 30, 20), area=600, mask=RLE, stuff=True)


def test_above_127_is_foreground(tmp_path: Path) -> None:
    put_image(tmp_path / "images/a.jpg")
    put_image(tmp_path / "images/b.png")
    put_image(tmp_path / "images/c.jpg")
    put(tmp_path / "images/Thumbs.db", "")
    soft = np.full(SIZE, 127)
    soft[SQUARE] = 128
    put_mask(tmp_path / "ground_truth_mask/a.png", soft)
    put_mask(tmp_path / "ground_truth_mask/b.png", SQUARE * 255, "RGB")
    put_mask(tmp_path / "ground_truth_mask/c.png", np.zeros(SIZE))
    records, errors, _ = read("ecssd", tmp_path)
    assert errors == {}
    assert records == {
        "a.jpg": TruthImage(file_name="a.jpg", height=40, width=60, objects=(FOREGROUND,)),
        "b.png": TruthImage(file_name="b.png", height=40, width=60, objects=(FOREGROUND,)),
        "c.jpg": TruthImage(file_name="c.jpg", height=40, width=60),
    }


def test_masks_may_be_jpeg(tmp_path: Path) -> None:
    put_image(tmp_path / "DUTS-TE-Image/a.jpg")
    put_mask(tmp_path / "DUTS-TE-Mask/a.jpg", SQUARE * 255)
    [found] = read("duts_te", tmp_path)[0]["a.jpg"].objects
    assert (decode([found.mask])[0].numpy() != SQUARE).mean() < 0.01  # type: ignore[list-item]


def test_broken_masks_are_named(tmp_path: Path) -> None:
    for stem in "abcd":
        put_image(tmp_path / f"images/{stem}.jpg")
    put_mask(tmp_path / "ground_truth_mask/a.png", SQUARE.T * 255)
    put(tmp_path / "ground_truth_mask/b.png", "no image")
    noise = np.random.default_rng(0).integers(0, 256, SIZE)
    whole = put_mask(tmp_path / "ground_truth_mask/c.png", noise)
    put(whole, whole.read_bytes()[: len(whole.read_bytes()) // 2])
    records, errors, _ = read("ecssd", tmp_path)
    assert records == {}
    assert "a.png is for an image of 40x60 px, but the image has 60x40" in errors["a.jpg"]
    assert "b.png is not an image" in errors["b.jpg"]
    assert "c.png is damaged" in errors["c.jpg"]
    assert "has no mask for d.jpg" in errors["d.jpg"]


def lines(*frames: str) -> str:
    return "".join(f"/JPEGImages/480p/{frame}.jpg /Annotations/480p/{frame}.png \n" for frame in frames)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
def test_davis_takes_whatever_is_not_black(tmp_path: Path, mode: str) -> None:
    values = np.zeros(SIZE)
    values[SQUARE] = 1
    values[15:, :][SQUARE[15:, :]] = 2
    put_image(tmp_path / "JPEGImages/480p/bear/00000.jpg")
    put_image(tmp_path / "JPEGImages/480p/camel/00000.jpg")
    for name in ("bear", "camel"):
        put_mask(tmp_path / f"Annotations/480p/{name}/00000.png", values, mode)
    put(tmp_path / "ImageSets/480p/val.txt", lines("camel/00000", "bear/00000"))
    records, errors, _ = read("davis2016_val", tmp_path)
    assert errors == {}
    assert list(records) == ["camel/00000.jpg", "bear/00000.jpg"]
    assert records["bear/00000.jpg"].objects == (FOREGROUND,)


def test_davis_names_what_is_broken(tmp_path: Path) -> None:
    for folder in ("JPEGImages/480p", "Annotations/480p"):
        (tmp_path / folder).mkdir(parents=True)
    text = lines("bear/00000", "../../x") + "/JPEGImages/480p/cow/00000.jpg\n/JPEGImages/1080p/a.jpg /b.png\n"
    put(tmp_path / "ImageSets/480p/val.txt", text)
    put_image(tmp_path / "JPEGImages/480p/bear/00000.jpg")
    records, errors, _ = read("davis2016_val", tmp_path)
    assert records == {}
    assert "Annotations/480p/bear/00000.png does not exist" in errors["bear/00000.jpg"]
    assert "val.txt, line 2: not a frame in" in errors["../../x.jpg"]
    assert "val.txt, line 3: not a frame in" in errors["cow/00000.jpg"]
    assert "val.txt, line 4: not a frame in" in errors["JPEGImages/1080p/a.jpg"]
