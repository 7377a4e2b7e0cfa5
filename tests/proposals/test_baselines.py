"""The baselines: boxes that know nothing of objects, and OpenCV's selective search."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from figureground.errors import UsageError
from figureground.proposals import METHODS, create
from figureground.proposals.selective_search import SelectiveSearch
from figureground.stages.labeller import LabellerConfig, label
from figureground.structures import PatchFeatures


def features(h: int, w: int, batch: int = 1) -> PatchFeatures:
    return PatchFeatures(torch.randn(batch, h, w, 3), 8, (8 * h, 8 * w))


def test_the_centred_box_is_70_per_cent_of_the_sides_and_in_the_middle() -> None:
    [found] = create("centred_box").propose(features(20, 40))
    assert found.boxes.tolist() == [[6, 3, 34, 17]]
    assert found.masks[0, 3:17, 6:34].all()
    assert int(found.masks.sum()) == 14 * 28
    [smaller] = create("centred_box", side=0.1).propose(features(1, 2))
    assert smaller.masks.any()


def test_the_whole_image() -> None:
    first, second = create("whole_image").propose(features(3, 5, batch=2))
    assert first.masks.all()
    assert second.boxes.tolist() == [[0, 0, 5, 3]]


def test_boxes_of_baselines_are_not_refined() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    found = label(pixels, "centred_box", size=128)
    rows, columns = found.masks[0].any(1).nonzero(), found.masks[0].any(0).nonzero()
    x1, y1, x2, y2 = found.boxes[0].tolist()
    assert (x1, y1, x2, y2) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    # All of the box but what resizing rounds off at its corners.
    assert float(found.masks.sum()) > 0.995 * (x2 - x1) * (y2 - y1)
    assert x2 - x1 == pytest.approx(0.7 * 160, abs=8)


class _Search:
    """What `cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()` gives, as far as it is used."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def setBaseImage(self, img: np.ndarray) -> None:  # noqa: N802
        assert img.dtype == np.uint8
        assert img.flags["C_CONTIGUOUS"]
        self.image = img

    def switchToSelectiveSearchFast(self, base_k: int = 150, inc_k: int = 150, sigma: float = 0.8) -> None:  # noqa: N802
        self.calls.append("fast")

    def switchToSelectiveSearchQuality(self, base_k: int = 150, inc_k: int = 150, sigma: float = 0.8) -> None:  # noqa: N802
        self.calls.append("quality")

    def process(self) -> np.ndarray:
        assert self.calls
        boxes = [(x, y, 16 + 8 * s, 8 + 4 * s) for s in range(4) for x in range(0, 64, 16) for y in range(0, 64, 16)]
        # As OpenCV: int32, x y width height, in an order that changes from call to call.
        return np.random.default_rng().permutation(np.array([*boxes, (0, 0, 128, 128)], dtype=np.int32))


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[_Search]:
    """A stand-in for OpenCV with its contributed modules; gives the searches that were made."""
    made: list[_Search] = []

    def create_search() -> _Search:
        made.append(_Search())
        return made[-1]

    def resize(src: np.ndarray, dsize: tuple[int, int]) -> np.ndarray:
        width, height = dsize
        rows, columns = (np.arange(n) * m // n for n, m in ((height, src.shape[0]), (width, src.shape[1])))
        return src[rows][:, columns]

    cv2, ximgproc, segmentation = (ModuleType(name) for name in ("cv2", "cv2.ximgproc", "cv2.ximgproc.segmentation"))
    vars(segmentation)["createSelectiveSearchSegmentation"] = create_search
    vars(ximgproc)["segmentation"] = segmentation
    vars(cv2).update(ximgproc=ximgproc, resize=resize)
    for module in (cv2, ximgproc, segmentation):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


class TestSelectiveSearch:
    def test_boxes_come_in_the_same_order_whatever_order_opencv_gives(self, searches: list[_Search]) -> None:
        images = torch.rand(2, 3, 64, 128)
        method = create("selective_search")
        together = method.propose(features(8, 16, batch=2), images)
        [alone] = method.propose(features(8, 16), images[:1])
        assert torch.equal(together[0].masks, alone.masks)
        assert torch.equal(together[0].scores, alone.scores)
        assert len(alone) == 30
        assert alone.scores[0] == 1
        assert (alone.scores.diff() < 0).all()
        assert {call for search in searches for call in search.calls} == {"fast"}
        assert searches[0].image.shape == (128, 128, 3)

    def test_opencv_sees_blue_first(self, searches: list[_Search]) -> None:
        red = torch.zeros(1, 3, 16, 16)
        red[:, 0] = 1
        create("selective_search", mode="quality").propose(features(2, 2), red)
        assert searches[0].image[0, 0].tolist() == [0, 0, 255]
        assert searches[0].calls == ["quality"]

    def test_masks_are_filled_boxes_in_patches(self, searches: list[_Search]) -> None:
        [found] = create("selective_search", max_boxes=100).propose(features(8, 16), torch.rand(1, 3, 64, 128))
        assert len(found) == 65
        expected = torch.zeros(8, 16, dtype=torch.bool)
        expected[1:2, 2:5] = True  # x, y, width, height of 16, 16, 24, 12 in 128 x 128
        assert any(torch.equal(mask, expected) for mask in found.masks)
        sizes = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)
        assert torch.equal(sizes, found.masks.sum((1, 2)).float())

    def test_small_maps(self, searches: list[_Search]) -> None:
        for h, w in ((1, 1), (1, 30), (3, 1)):
            [found] = create("selective_search").propose(features(h, w), torch.rand(1, 3, 8 * h, 8 * w))
            assert found.masks.flatten(1).any(1).all()

    def test_without_opencv_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cv2", None)
        with pytest.raises(UsageError, match="not installed") as caught:
            create("selective_search").propose(features(2, 2), torch.rand(1, 3, 16, 16))
        assert caught.value.remedy == 'pip install "figureground[selective-search]"'
        with pytest.raises(UsageError, match="not installed"):
            label(np.zeros((32, 32, 3), np.uint8), "selective_search", size=32)
        # Settings can be listed and read all the same.
        assert LabellerConfig(method="selective_search").selective_search is not None

    def test_without_the_contributed_modules_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cv2", ModuleType("cv2"))
        with pytest.raises(UsageError, match="contributed modules"):
            SelectiveSearch.check_here(with_attention=True)

    def test_it_needs_the_pixels(self, searches: list[_Search]) -> None:
        with pytest.raises(ValueError, match="looks at pixels"):
            create("selective_search").propose(features(2, 2))


def test_what_needs_attention_is_refused_before_the_first_image() -> None:
    with pytest.raises(UsageError, match="CLS token"):
        METHODS["attention"].check_here(with_attention=False)
    METHODS["attention"].check_here(with_attention=True)
    with pytest.raises(UsageError, match="CLS token"):
        label(np.zeros((32, 32, 3), np.uint8), "attention", size=32)
