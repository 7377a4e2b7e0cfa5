from pathlib import Path

import numpy as np
import pytest

from figureground.evaluation.corloc import corloc
from tests.evaluation.scenes import coco128, jittered, random_scene, write
from tests.reference import evaluation as reference


@pytest.mark.parametrize(("seed", "levels"), [(0, 1000), (1, 2), (2, 1)])
def test_agrees_with_a_loop(seed: int, levels: int, tmp_path: Path) -> None:
    truth, detections = random_scene(seed, images=30, levels=levels)
    hits = corloc(*write(tmp_path, truth, detections))
    assert hits.tolist() == reference.corloc(truth, detections)
    assert 0 < hits.mean() < 1


def test_agrees_on_real_photographs(shared: Path, tmp_path: Path) -> None:
    content = coco128(shared)
    truth, _ = write(tmp_path, content, [])
    detections = jittered(truth, 0)
    hits = corloc(*write(tmp_path, content, detections))
    assert len(hits) == 126
    assert hits.tolist() == reference.corloc(content, detections)


def test_what_counts(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in range(5)]
    box = [0, 0, 40, 40]
    annotations = [
        {"id": 0, "image_id": 0, "bbox": box},
        {"id": 1, "image_id": 1, "bbox": box, "iscrowd": 1},
        {"id": 2, "image_id": 2, "bbox": box, "difficult": 1},
        {"id": 3, "image_id": 3, "bbox": box, "difficult": 1},
        {"id": 4, "image_id": 3, "bbox": [50, 50, 40, 40]},
        {"id": 5, "image_id": 4, "bbox": [10, 10, 0, 0]},
    ]
    found = [
        # Half of the box: just enough; the surer one of image 2 lies elsewhere.
        {"image_id": 0, "bbox": [0, 0, 20, 40], "score": 0.5},
        {"image_id": 1, "bbox": box, "score": 0.5},
        {"image_id": 2, "bbox": box, "score": 0.5},
        {"image_id": 3, "bbox": box, "score": 0.5},
        {"image_id": 4, "bbox": [10, 10, 0, 0], "score": 0.5},
    ]
    files = write(tmp_path, {"images": images, "annotations": annotations}, found)
    # Image 1 holds a crowd only and is left out.
    assert corloc(*files).tolist() == [1, 1, 1, 0]
    # Image 2 holds difficult objects only; of image 3 only the other object counts.
    assert corloc(*files, skip_difficult=True).tolist() == [1, 0, 0]
    assert corloc(*files, threshold=0.51).tolist() == [0, 1, 1, 0]
    nothing = write(tmp_path, {"images": images, "annotations": annotations}, [])
    assert corloc(*nothing).tolist() == [0, 0, 0, 0]
    assert corloc(*files).dtype == np.float64
