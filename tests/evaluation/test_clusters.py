import math

import numpy as np
import pytest
import torch

from figureground.data.coco_fields import AnnotatedImage
from figureground.data.truth import Annotation
from figureground.evaluation.clusters import match_objects, normalised_mutual_information, purity
from figureground.ops.rle import encode
from tests.reference import semantic as slow

IMAGE = AnnotatedImage(1, "a.jpg", 10, 12)


def rectangle(top: int, left: int, height: int, width: int, with_mask: bool = True) -> Annotation:
    mask = torch.zeros(1, 10, 12, dtype=torch.bool)
    mask[0, top : top + height, left : left + width] = True
    bbox = (float(left), float(top), float(width), float(height))
    return Annotation(1, IMAGE, bbox, height * width, encode(mask)[0] if with_mask else None)


def test_purity_is_the_slow_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        clusters = rng.integers(4, size=15).tolist()
        classes = [str(name) for name in rng.integers(3, size=15)]
        assert purity(clusters, classes) == pytest.approx(slow.purity(clusters, classes))


def test_mutual_information() -> None:
    assert normalised_mutual_information([0, 0, 1, 1], ["a", "a", "b", "b"]) == pytest.approx(1)
    assert normalised_mutual_information([0, 1, 0, 1], ["a", "a", "b", "b"]) == pytest.approx(0, abs=1e-9)
    # Three clusters for two classes: ln 2 over the mean of ln 2 and 1.5 ln 2.
    found = normalised_mutual_information([0, 1, 2, 2], ["a", "a", "b", "b"])
    assert found == pytest.approx(math.log(2) / (1.25 * math.log(2)))


@pytest.mark.parametrize("with_mask", [True, False])
def test_objects_of_instances(with_mask: bool) -> None:
    instances = [rectangle(0, 0, 4, 4), rectangle(0, 0, 4, 8), rectangle(6, 6, 2, 2), rectangle(1, 0, 4, 4)]
    objects = [rectangle(5, 5, 5, 5, with_mask), rectangle(0, 0, 4, 4, with_mask)]
    # Exactly a half is enough; a seventh is not.
    assert match_objects(instances, objects) == [1, 1, None, 1]
    assert match_objects(instances, []) == [None] * 4
    assert match_objects([], objects) == []
