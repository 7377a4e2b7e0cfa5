"""Proposals of a file of masks, and pairs of views of them."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from figureground.data.mask_pairs import MaskPairsConfig, MaskProposals, _shares, mask_pairs
from figureground.errors import RunError, UsageError
from figureground.ops.rle import encode

HEIGHT, WIDTH = 60, 80
PLAIN: dict[str, Any] = {"jitter": 0.0, "grey": 0.0}


def rectangle(top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


LARGE, SECOND, SMALL = rectangle(10, 10, 30, 30), rectangle(20, 50, 24, 24), rectangle(2, 2, 5, 5)


def write(folder: Path, *images: list[tuple[Tensor, float]]) -> Path:
    """Pictures, black but for what the masks of each say, and their file."""
    entries, annotations = [], []
    for number, masks in enumerate(images, start=1):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for mask, score in masks:
            pixels[mask.numpy()] = 255
            [rle] = encode(mask[None])
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "score": score}
            annotations.append({**entry, "segmentation": rle})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
    (folder / "masks.json").write_text(json.dumps({"images": entries, "annotations": annotations}))
    return folder / "masks.json"


def read(path: Path, side: int = 40, **settings: Any) -> MaskProposals:
    return MaskProposals(path, path.parent, MaskPairsConfig(**settings), side, lambda name, error: None)


def squashed(*masks: Tensor) -> np.ndarray:
    mask = torch.stack(masks).any(0).float()
    return (torch.nn.functional.interpolate(mask[None, None], size=(40, 40), mode="area")[0, 0] >= 0.5).numpy()


class TestProposals:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write(tmp_path, [(SECOND, 0.7), (LARGE, 0.9), (SMALL, 1.0)], [(LARGE, 0.6)], [(SMALL, 0.8)])

    @pytest.mark.parametrize(
        ("masks", "expected"),
        [
            # What is too small is no proposal, however sure.
            ("best", [[LARGE], [LARGE]]),
            ("union", [[LARGE, SECOND], [LARGE]]),
            ("instances", [[LARGE], [SECOND], [LARGE]]),
        ],
    )
    def test_which_there_are(self, path: Path, masks: str, expected: list[list[Tensor]]) -> None:
        proposals = read(path, masks=masks)
        assert (len(proposals), proposals.used, proposals.left_out) == (len(expected), 2, 1)
        for index, own in enumerate(expected):
            square, aspect = proposals.example(index)
            assert aspect == WIDTH / HEIGHT
            different = (square[..., 3] == 255) ^ squashed(*own)
            # On the outline by how it is resized.
            assert different.mean() < 0.02
            assert set(np.unique(square[..., 3])) == {0, 255}
            # The picture is white where the masks of its image are.
            assert square[..., :3][square[..., 3] == 255].mean() > 230
        assert [proposals.name(index) for index in range(len(proposals))][-1] == "2.png"

    def test_of_instances_all_of_the_image_come_along(self, path: Path) -> None:
        square, _ = read(path, masks="instances").example(0)
        assert square.shape == (40, 40, 5)
        assert ((square[..., 4] == 255) ^ squashed(LARGE, SECOND)).mean() < 0.02

    def test_small_parts_are_dropped(self, tmp_path: Path) -> None:
        path = write(tmp_path, [(LARGE | SMALL, 0.9)])
        for least, expected in ((0.01, [LARGE]), (0.001, [LARGE, SMALL])):
            square, _ = read(path, min_contour=least).example(0)
            assert ((square[..., 3] == 255) ^ squashed(*expected)).mean() < 0.01

    def test_unsure_ones_are_left_out(self, path: Path) -> None:
        assert len(read(path, masks="instances", min_score=0.8)) == 1

    def test_what_cannot_be_read_gives_its_place_to_the_next(self, path: Path) -> None:
        (path.parent / "1.png").write_bytes(b"")
        named = []
        proposals = MaskProposals(
            path, path.parent, MaskPairsConfig(), 40, lambda name, error: named.append((name, error))
        )
        assert np.array_equal(proposals.example(0)[0], proposals.example(1)[0])
        assert named == [("1.png", "The file is empty.")]
        Image.new("RGB", (10, 10)).save(path.parent / "2.png")
        with pytest.raises(RunError, match="None of the 2 images"):
            proposals.example(0)

    def test_can_be_pickled(self, path: Path) -> None:
        proposals = MaskProposals(path, path.parent, MaskPairsConfig(), 40, print)
        again = pickle.loads(pickle.dumps(proposals))
        assert np.array_equal(again.example(0)[0], proposals.example(0)[0])

    def test_nothing_to_learn_from(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="none of its 2 images has a mask"):
            read(write(tmp_path, [], []))
        everything = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
        for masks in ("best", "union", "instances"):
            with pytest.raises(UsageError, match="none of the 2 masks of its 2 images is left") as caught:
                read(write(tmp_path, [(SMALL, 0.9)], [(everything, 0.9)]), masks=masks)
            assert "1% to 99%" in caught.value.remedy


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    """Squares, white where the mask is, and their aspects."""
    squares = torch.zeros(count, 40, 40, 4, dtype=torch.uint8)
    for index in range(count):
        row, column = 3 * index, 24 - 3 * index
        squares[index, row : row + 12, column : column + 14] = 255
    return squares, torch.linspace(0.6, 1.7, count)


@given(st.integers(0, 2**32))
def test_shares_are_those_of_pixels_counted(seed: int) -> None:
    """With windows on the borders of pixels; between them the share is linear."""
    draws = np.random.default_rng(seed)
    masks = torch.from_numpy(draws.random((2, 16, 16)) < 0.3)
    low = draws.integers(0, 12, (2, 3, 2))
    windows = np.concatenate([low, low + draws.integers(1, 5, (2, 3, 2))], 2)
    shares = _shares(masks, torch.from_numpy(windows / 16).float())
    for image in range(2):
        for place, (x1, y1, x2, y2) in enumerate(windows[image]):
            counted = masks[image, y1:y2, x1:x2].float().mean()
            assert float(shares[image, place]) == pytest.approx(float(counted), abs=1e-4)


class TestViews:
    def test_masks_are_cut_as_the_photographs_are(self) -> None:
        pairs = mask_pairs(*batch(), MaskPairsConfig(size=32, **PLAIN), torch.Generator().manual_seed(0))
        for view, masks in ((pairs.queries, pairs.query_masks), (pairs.keys, pairs.key_masks)):
            assert view.shape == (6, 3, 32, 32)
            assert torch.equal(view[:, 0] > 0.5, masks)
        assert torch.equal(pairs.figures, pairs.query_masks)
        assert not torch.equal(pairs.query_masks, pairs.key_masks)

    def test_figures_are_the_last_channel(self) -> None:
        squares, aspects = batch()
        squares = torch.cat([squares, torch.full_like(squares[..., :1], 255)], 3)
        config = MaskPairsConfig(masks="instances", size=32)
        pairs = mask_pairs(squares, aspects, config, torch.Generator().manual_seed(0))
        assert pairs.figures.all()
        assert not pairs.query_masks.all()

    def test_shares_are_as_asked_for(self) -> None:
        config = MaskPairsConfig(size=40, area=(0.2, 0.6), tries=100, **PLAIN)
        for seed in range(20):
            pairs = mask_pairs(*batch(), config, torch.Generator().manual_seed(seed))
            for masks in (pairs.query_masks, pairs.key_masks):
                shares = masks.float().mean((1, 2))
                assert 0.17 < float(shares.min()) < float(shares.max()) < 0.63

    def test_else_it_is_the_whole_image(self) -> None:
        squares, aspects = batch()
        config = MaskPairsConfig(size=40, area=(0.9, 0.99), flip=0.0, **PLAIN)
        pairs = mask_pairs(squares, aspects, config, torch.Generator().manual_seed(0))
        assert torch.equal(pairs.query_masks, squares[..., 3] == 255)
        torch.testing.assert_close(pairs.keys, squares[..., :3].permute(0, 3, 1, 2) / 255, atol=1e-5, rtol=0)

    def test_every_draw_is_of_the_generator(self) -> None:
        state = torch.get_rng_state()
        first, again, other = (
            mask_pairs(*batch(), MaskPairsConfig(size=32), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
        assert not torch.equal(first.queries, other.queries)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrong", [{"area": (0.5, 0.1)}, {"scale": (0.5, 1.5)}, {"aspect": (0.0, 1.0)}])
def test_ranges_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pairs"):
        MaskPairsConfig(**wrong)
