"""Copy-paste keeps its promises on thousands of random batches."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from figureground.config import build
from figureground.data.copy_paste import CopyPasteConfig, copy_paste, source_indices
from figureground.data.targets import Targets, targets_of
from figureground.errors import ConfigError
from tests.data.blobs import check_targets, copied, random_targets, same

Batch = tuple[list[torch.Tensor], list[Targets]]

CONFIGS = st.builds(
    lambda rate, copies, scale, max_occlusion: CopyPasteConfig(
        rate=rate, copies=copies, scale=(min(scale), max(scale)), max_occlusion=max_occlusion
    ),
    rate=st.sampled_from([1.0, 1.0, 1.0, 0.5]),
    copies=st.sampled_from(["random", "all", 1, 2]),
    scale=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    max_occlusion=st.sampled_from([0.1, 0.5, 0.5, 1.0]),
)
many = settings(deadline=None, max_examples=1000)


def colour(index: int, dtype: torch.dtype) -> float:
    return 20 * index + 10 if dtype == torch.uint8 else (20 * index + 10) / 256


def batch_of(seed: int, count: int, dtype: torch.dtype = torch.uint8, device: str = "cpu") -> Batch:
    """Images of one colour each, and instances whose labels say which image they belong to."""
    rng = np.random.default_rng(seed)
    sizes = [tuple(int(side) for side in rng.integers(4, 40, 2)) for _ in range(count)]
    images = [torch.full((3, *size), colour(i, dtype), dtype=dtype) for i, size in enumerate(sizes)]
    targets = [random_targets(rng, int(rng.integers(0, 6)), size, 100 * i + 1) for i, size in enumerate(sizes)]
    moved = [Targets(**{key: value.to(device) for key, value in entry.items()}) for entry in targets]
    return [image.to(device) for image in images], moved


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_image(before: Batch, after: Batch, index: int, config: CopyPasteConfig) -> None:
    source = source_indices(len(before[0]))[index]
    image, old = before[0][index], before[1][index]
    result, new = after[0][index], after[1][index]
    assert result.shape == image.shape
    assert result.dtype == image.dtype
    assert result.device == new["masks"].device == image.device
    check_targets(new, (image.shape[1], image.shape[2]))

    # No instance disappears; the pasted ones come after them, each at most once, as they are in the source.
    count = len(old["labels"])
    for key in ("labels", "weights"):
        assert torch.equal(new[key][:count], old[key])
    known = dict(zip(before[1][source]["labels"].tolist(), before[1][source]["weights"].tolist(), strict=True))
    labels = new["labels"][count:].tolist()
    assert len(set(labels)) == len(labels)
    assert all(known[label] == weight for label, weight in zip(labels, new["weights"][count:].tolist(), strict=True))
    assert not isinstance(config.copies, int) or len(labels) <= config.copies

    # Pasted masks are disjoint, and cut what is beneath; nobody loses too much.
    pasted = new["masks"][count:]
    assert int(pasted.sum(0).max() if len(pasted) else 0) <= 1
    union = pasted.any(0)
    assert torch.equal(new["masks"][:count], old["masks"] & ~union)
    for mask in old["masks"]:
        assert int((mask & union).sum()) < config.max_occlusion * int(mask.sum())

    # Pixels are the source's in the pasted masks, and unchanged elsewhere.
    assert torch.equal(result[:, ~union], image[:, ~union])
    expected = torch.full_like(result[:, union], colour(source, image.dtype))
    torch.testing.assert_close(result[:, union], expected, atol=0 if image.dtype == torch.uint8 else 1e-6, rtol=0)


@many
@given(st.integers(0, 2**32), st.integers(1, 5), CONFIGS, st.sampled_from([torch.uint8, torch.float32]))
def test_promises(seed: int, count: int, config: CopyPasteConfig, dtype: torch.dtype) -> None:
    before = batch_of(seed, count, dtype)
    original = [image.clone() for image in before[0]], [copied(entry) for entry in before[1]]
    after = copy_paste(*before, config, seeded(seed))
    for index in range(count):
        check_image(original, after, index, config)
        # The inputs are as they were, and the same seed gives the same again.
        assert torch.equal(before[0][index], original[0][index])
        assert same(before[1][index], original[1][index])
    again = copy_paste(*before, config, seeded(seed))
    assert all(torch.equal(left, right) for left, right in zip(after[0], again[0], strict=True))
    assert all(same(left, right) for left, right in zip(after[1], again[1], strict=True))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32), st.integers(2, 5), CONFIGS)
def test_only_the_source_matters(seed: int, count: int, config: CopyPasteConfig) -> None:
    images, targets = batch_of(seed, count)
    others = batch_of(seed + 1, count)
    after = copy_paste(images, targets, config, seeded(seed))
    for index, source in enumerate(source_indices(count)):
        keep = {index, source}
        mixed = copy_paste(
            [images[i] if i in keep else others[0][i] for i in range(count)],
            [targets[i] if i in keep else others[1][i] for i in range(count)],
            config,
            seeded(seed),
        )
        assert torch.equal(mixed[0][index], after[0][index])
        assert same(mixed[1][index], after[1][index])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_promises_on_an_accelerator(dtype: torch.dtype) -> None:
    config = CopyPasteConfig(copies="all")
    for seed in range(20):
        before = batch_of(seed, 4, dtype, "cuda")
        after = copy_paste(*before, config, seeded(seed))
        for index in range(4):
            check_image(before, after, index, config)


@pytest.mark.parametrize("count", range(1, 12))
def test_source(count: int) -> None:
    sources = source_indices(count)
    assert all(source != index for index, source in enumerate(sources)) or count == 1
    middle = count // 2 if count % 2 else None
    assert all(source == count - 1 - index for index, source in enumerate(sources) if index != middle)


def squares(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Targets:
    """Rectangles, xyxy."""
    masks = torch.zeros((len(boxes), *size), dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return targets_of(masks, torch.arange(1, len(boxes) + 1), torch.ones(len(boxes)))


def pasted_labels(source: Targets, target: Targets, seed: int, **settings: Any) -> list[int]:
    """Labels pasted from the second image of a batch of two on the first, in the order they were pasted."""
    images = [torch.zeros((3, *entry["masks"].shape[1:]), dtype=torch.uint8) for entry in (target, source)]
    _, after = copy_paste(images, [target, source], CopyPasteConfig(**settings), seeded(seed))
    return after[0]["labels"][len(target["labels"]) :].tolist()


THREE = squares((30, 30), (1, 1, 9, 9), (11, 11, 19, 19), (21, 21, 29, 29))
NONE = squares((30, 30))


def test_any_number_of_copies_is_drawn() -> None:
    numbers = Counter(len(pasted_labels(THREE, NONE, seed)) for seed in range(300))
    assert set(numbers) == {1, 2, 3}
    assert min(numbers.values()) > 60
    which = Counter(label for seed in range(300) for label in pasted_labels(THREE, NONE, seed, copies=1))
    assert set(which) == {1, 2, 3}
    assert min(which.values()) > 60


@pytest.mark.parametrize(("copies", "number"), [("all", 3), (1, 1), (2, 2), (7, 3)])
def test_a_fixed_number_of_copies(copies: Any, number: int) -> None:
    assert {len(pasted_labels(THREE, NONE, seed, copies=copies)) for seed in range(20)} == {number}


def test_rate() -> None:
    assert not any(pasted_labels(THREE, NONE, seed, rate=0) for seed in range(20))
    assert 100 < sum(bool(pasted_labels(THREE, NONE, seed, rate=0.5)) for seed in range(300)) < 200


def test_scale_and_place() -> None:
    """Sizes fill the range, proportions are kept, and the source comes to lie anywhere inside."""
    source = squares((20, 60), (0, 0, 60, 20))
    images = [torch.zeros((3, 100, 90), dtype=torch.uint8), torch.ones((3, 20, 60), dtype=torch.uint8)]
    boxes = []
    for seed in range(300):
        _, after = copy_paste(images, [squares((100, 90)), source], CopyPasteConfig(), seeded(seed))
        boxes.append(after[0]["boxes"][0].tolist())
    x1, y1, x2, y2 = np.array(boxes).T
    width, height = x2 - x1, y2 - y1
    assert np.abs(width / 3 - height).max() <= 1
    assert width.min() == pytest.approx(27, abs=1)
    assert width.max() == pytest.approx(90, abs=1)
    assert width.mean() == pytest.approx(0.65 * 90, abs=3)
    assert (y1.min(), y2.max()) == (0, 100)
    assert (x1.min(), x2.max()) == (0, 90)
    assert (y1 / (100 - height)).mean() == pytest.approx(0.5, abs=0.07)


def test_pasted_at_its_own_size_an_object_is_as_it_was() -> None:
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (3, 24, 32), dtype=np.uint8)) for _ in range(2)]
    targets = [random_targets(rng, 0, (24, 32)), random_targets(rng, 4, (24, 32))]
    config = CopyPasteConfig(scale=(1, 1), copies="all", max_occlusion=1)
    [after, _], [found, _] = copy_paste(images, targets, config, seeded(0))
    union = torch.zeros((24, 32), dtype=torch.bool)
    for mask, label in zip(found["masks"], found["labels"].tolist(), strict=True):
        assert torch.equal(mask, targets[1]["masks"][label - 1] & ~union)
        union |= mask
    assert torch.equal(after, torch.where(union, images[1], images[0]))


@pytest.mark.parametrize(
    ("target", "source", "pasted"),
    [
        ((10, 10, 14, 14), (5, 5, 25, 25), False),  # a large one would hide a small one
        ((5, 5, 25, 25), (10, 10, 14, 14), True),  # a small one hides little of a large one
        ((10, 10, 20, 20), (15, 10, 25, 20), False),  # just half of it
        ((10, 10, 20, 20), (16, 10, 26, 20), True),  # less than half
    ],
)
def test_what_would_hide_an_instance_is_not_pasted(target: Any, source: Any, pasted: bool) -> None:
    found = pasted_labels(squares((30, 30), source), squares((30, 30), target), 0, scale=(1, 1))
    assert found == ([1] if pasted else [])


def test_losses_add_up() -> None:
    """Each of three would hide 0.3 of an instance: one may."""
    source = squares((30, 30), (0, 0, 30, 3), (0, 3, 30, 6), (0, 6, 30, 9))
    target = squares((30, 30), (0, 0, 30, 10))
    found = [pasted_labels(source, target, seed, scale=(1, 1), copies="all") for seed in range(20)]
    assert {len(labels) for labels in found} == {1}
    assert {label for labels in found for label in labels} == {1, 2, 3}


def test_pasted_objects_do_not_hide_each_other() -> None:
    """A part and its whole: the part on the whole, or the whole alone."""
    source = squares((30, 30), (5, 5, 25, 25), (10, 10, 14, 14))
    found = {tuple(pasted_labels(source, NONE, seed, scale=(1, 1), copies="all")) for seed in range(20)}
    assert found == {(1,), (2, 1)}
    # One hides all of the other, which hides more than half of it: whichever comes first.
    source = squares((30, 30), (0, 0, 20, 20), (0, 0, 20, 12))
    found = {tuple(pasted_labels(source, NONE, seed, scale=(1, 1), copies="all")) for seed in range(20)}
    assert found == {(1,), (2,)}


def test_an_image_alone_takes_its_own_objects() -> None:
    images, targets = [torch.zeros((3, 30, 30), dtype=torch.uint8)], [squares((30, 30), (0, 0, 6, 6))]
    numbers = {len(copy_paste(images, targets, CopyPasteConfig(), seeded(seed))[1][0]["labels"]) for seed in range(20)}
    assert 2 in numbers


@pytest.mark.parametrize("values", [{"scale": (0, 1)}, {"scale": (0.5, 0.3)}, {"copies": 0}, {"copies": "some"}])
def test_wrong_configurations(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build(CopyPasteConfig, values)
