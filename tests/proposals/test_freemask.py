import torch

from figureground.proposals import create
from figureground.proposals.freemask import maskness, query_maps
from figureground.structures import PatchFeatures


def test_queries_of_every_scale() -> None:
    values = torch.randn(9, 13, 5, generator=torch.Generator().manual_seed(0))
    maps = query_maps(values, (1.0, 0.5, 0.25))
    assert len(maps) == 9 * 13 + 4 * 6 + 2 * 3
    assert maps.min() == 0
    assert maps.max() == 1
    # A query at full scale is itself a key: nothing is more like it.
    assert (maps[: 9 * 13].flatten(1).diagonal() == 1).all()
    # Too small a map has no such scale; a map of one row has the full one alone.
    assert len(query_maps(values[:3, :3], (1.0, 0.5, 0.25))) == 9 + 1
    assert len(query_maps(values[:1], (0.5,))) == 0


def test_queries_are_made_smaller_before_they_are_normalised() -> None:
    long, short = torch.tensor([10.0, 0.0]), torch.tensor([0.0, 1.0])
    values = torch.stack([long, short, long, short]).reshape(2, 2, 2)
    [query] = query_maps(values, (0.5,))
    assert query[0, 0] == 1
    assert query[0, 1] == 0


def test_maskness_is_the_mean_inside() -> None:
    soft = torch.tensor([[[0.6, 0.8, 0.1]], [[0.2, 0.2, 0.2]]])
    assert torch.allclose(maskness(soft, soft > 0.5), torch.tensor([0.7, 0.0]))


def test_each_filter_takes_out_what_it_says() -> None:
    # Two boxes: a strip over the whole width at the bottom, and a spot at the top.
    values = torch.zeros(1, 10, 10, 3)
    values[..., 0] = 1
    values[0, 8:, :] = torch.tensor([0.0, 1, 0])
    values[0, 0:2, 4:6] = torch.tensor([0.0, 0, 1])
    features = PatchFeatures(values, 8, (80, 80))
    off = {"min_maskness": 0.0, "max_width": 2.0, "min_centre_y": -1.0, "scales": (1.0,)}

    def boxes(**config) -> set[tuple[float, ...]]:
        [found] = create("freemask", "reference", **{**off, **config}).propose(features)
        return {tuple(box) for box in found.boxes.tolist()}

    strip, spot, rest = (0, 8, 10, 10), (4, 0, 6, 2), (0, 0, 10, 8)
    assert boxes(max_masks=100) == {strip, spot, rest}
    assert boxes(max_masks=100, max_width=0.95) == {spot}
    assert boxes(max_masks=100, min_centre_y=0.2) == {strip, rest}
    assert len(boxes(max_masks=1)) == 1
    # Before the suppression the strip and the rest do not take the spot's places either.
    assert boxes(max_masks=1, max_width=0.95, filter_first=True) == {spot}
    assert boxes(max_masks=1, max_width=0.95) == set()


def test_a_map_without_structure_gives_no_mask() -> None:
    for values in (torch.ones(1, 6, 6, 4), torch.zeros(1, 6, 6, 4), torch.full((1, 6, 6, 3), 0.1)):
        [found] = create("freemask", "reference", min_maskness=0.0).propose(PatchFeatures(values, 8, (48, 48)))
        assert len(found) == 0
