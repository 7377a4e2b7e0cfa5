"""Images looked at together are as images looked at alone."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from figureground.backbones import CATALOGUE
from figureground.data.images import decode
from figureground.errors import ImageError
from figureground.ops.rle import decode as decode_masks
from figureground.stages.batching import label_in_batches
from figureground.stages.label import configure, run
from figureground.stages.labeller import BackboneConfig, Labeller, LabellerConfig
from figureground.structures import Instances, PatchFeatures
from tests.data.odd_images import picture

SHAPES = ((90, 70), (70, 90), (90, 70), (120, 120), (90, 70), (181, 140))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index, (width, height) in enumerate(SHAPES):
        pixels = np.asarray(picture(width, height)).copy()
        x, y = generator.integers(5, 40, 2)
        pixels[y : y + 25, x : x + 20] = generator.integers(0, 255, 3)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "2b.png").write_bytes(b"no image")
    return folder


class Colours(torch.nn.Module):
    """Patch features that tell colours apart, by matrix products that a batch may round otherwise."""

    name, patch_size, width = "dino_s8", 8, 16

    def forward(self, images: Tensor) -> PatchFeatures:
        patches = torch.nn.functional.avg_pool2d(images - 0.5, 8).permute(0, 2, 3, 1)
        mixing = torch.randn(3, self.width, generator=torch.Generator().manual_seed(0)).to(images.device)
        return PatchFeatures(patches @ mixing, 8, (images.shape[2], images.shape[3]))


def labeller(batch_size: int | None, method: str, refine: str = "dense_crf", device: str = "cpu") -> Labeller:
    tree = {"method": method, "size": 96, "device": device, "batch_size": batch_size, "refine": {"method": refine}}
    if method == "background":
        return Labeller(LabellerConfig(**tree))
    return Labeller(LabellerConfig(**tree, backbone=BackboneConfig(name="dino_s8")), Colours().to(device))


def mean_iou(left: Instances, right: Instances | ImageError) -> float:
    """Mean IoU of the masks in their order; 0 where their number differs."""
    assert isinstance(right, Instances)
    if len(left) != len(right):
        return 0.0
    if len(left) == 0:
        return 1.0
    both, either = (left.masks & right.masks).sum((1, 2)), (left.masks | right.masks).sum((1, 2))
    return float((both / either).mean())


def loaded(folder: Path) -> list[tuple[np.ndarray, tuple[int, int]]]:
    return [decode(folder / f"{index}.png") for index in range(len(SHAPES))]


def many(labeller: Labeller, images: list[tuple[np.ndarray, tuple[int, int]]]) -> list[Instances | ImageError]:
    return labeller.many([pixels for pixels, _ in images], [size for _, size in images])


@pytest.mark.parametrize(
    ("method", "refine"),
    [
        ("background", "dense_crf"),
        ("background", "bilateral"),
        ("maskcut", "dense_crf"),
        ("maskcut", "none"),
        ("tokencut", "none"),
    ],
)
def test_many_are_as_one_at_a_time(photos: Path, method: str, refine: str) -> None:
    images = loaded(photos)
    alone = labeller(1, method, refine)
    together = many(labeller(4, method, refine), images)
    overlaps = [mean_iou(alone(*one), found) for one, found in zip(images, together, strict=True)]
    assert np.mean(overlaps) >= 0.99
    assert sum(len(found) for found in together if isinstance(found, Instances)) > 0


def test_batches_of_one_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    settings = ["size=96", "shard_size=4", "method=background"]
    for name, more in (("unset", []), ("one", ["batch_size=1"]), ("three", ["batch_size=3"])):
        result = run(configure([str(photos)], assignments=[*settings, *more]), tmp_path / name)
        assert (result.images, result.failed) == (6, 1)
        assert {"decode", "features", "propose", "refine", "write"} <= result.stage_seconds.keys()
    unset, one, three = ((tmp_path / name / "annotations.json").read_bytes() for name in ("unset", "one", "three"))
    assert unset == one
    expected, found = (json.loads(text)["annotations"] for text in (one, three))
    assert [entry["image_id"] for entry in expected] == [entry["image_id"] for entry in found]
    for left, right in zip(expected, found, strict=True):
        a, b = (decode_masks([entry["segmentation"]])[0] for entry in (left, right))
        assert (a & b).sum() >= 0.99 * (a | b).sum()


def test_the_same_bytes_again(photos: Path) -> None:
    files = [(path, path.name) for path in sorted(photos.iterdir())]
    first, again = (list(label_in_batches(labeller(3, "background", "none"), files)) for _ in range(2))
    assert [record for record in first if isinstance(record, dict)] == [
        record for record in again if isinstance(record, dict)
    ]
    failed = [index for index, record in enumerate(first) if isinstance(record, ImageError)]
    assert failed == [3]
    names = [record["file_name"] for record in first if isinstance(record, dict)]
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"]


def test_batches_are_of_one_shape_and_full_where_they_can_be(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eyes = labeller(2, "background", "none")
    seen: list[tuple[int, ...]] = []
    whole = eyes.look_at
    monkeypatch.setattr(eyes, "look_at", lambda images: (seen.append(tuple(images.shape)), whole(images))[1])
    list(label_in_batches(eyes, [(path, path.name) for path in sorted(photos.iterdir())]))
    counts: dict[tuple[int, ...], list[int]] = {}
    for batch, *shape in seen:
        counts.setdefault(tuple(shape), []).append(batch)
    assert sum(map(sum, counts.values())) == len(SHAPES)
    assert any(2 in batches for batches in counts.values())
    for batches in counts.values():
        assert batches == [2] * (len(batches) - 1) + [batches[-1]]


class _Fussy(Colours):
    """Fails on pictures with a bright first pixel, as a damaged image does."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> PatchFeatures:
        if bool((images[:, :, 0, 0] == 1).all(1).any()):
            raise self.error()
        return super().forward(images)


def test_an_image_that_fails_fails_alone(photos: Path) -> None:
    images = loaded(photos)
    bright = images[2][0].copy()
    bright[:30, :30] = 255
    images[2] = bright, images[2][1]
    config = labeller(8, "maskcut", "none").config
    found = many(Labeller(config, _Fussy(lambda: ValueError("damaged"))), images)
    assert [isinstance(one, ImageError) for one in found] == [index == 2 for index in range(len(SHAPES))]
    assert "damaged" in str(found[2])
    with pytest.raises(torch.OutOfMemoryError):
        many(Labeller(config, _Fussy(lambda: torch.OutOfMemoryError("full"))), images)


def test_a_batch_that_does_not_fit_is_halved(photos: Path) -> None:
    class Narrow(Colours):
        def forward(self, images: Tensor) -> PatchFeatures:
            if len(images) > 1:
                raise torch.OutOfMemoryError("full")
            return super().forward(images)

    images = loaded(photos)
    config = labeller(8, "maskcut", "none").config
    found = many(Labeller(config, Narrow()), images)
    expected = many(Labeller(config.replace(batch_size=1), Colours()), images)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Instances)
        assert isinstance(other, Instances)
        assert torch.equal(one.masks, other.masks)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("method", ["background", "maskcut"])
def test_an_accelerator_finds_what_the_cpu_finds(photos: Path, method: str) -> None:
    images = loaded(photos)
    here = labeller(1, method)
    there = many(labeller(4, method, device="cuda"), images)
    overlaps = [mean_iou(here(*one), found) for one, found in zip(images, there, strict=True)]
    assert np.mean(overlaps) >= 0.99


def test_the_stand_in_is_like_its_row() -> None:
    row = CATALOGUE["dino_s8"]
    assert (Colours.name, Colours.patch_size) == (row.name, row.patch_size)
