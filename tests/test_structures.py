import pytest
import torch

from figureground.structures import ImageRecord, Instances, PatchFeatures


def test_features_are_validated() -> None:
    PatchFeatures(torch.ones(1, 2, 3, 4), 8, (16, 24))
    PatchFeatures(torch.ones(1, 2, 3, 4), 8, (13, 24), torch.ones(1, 6, 6))
    with pytest.raises(ValueError, match="NaN"):
        PatchFeatures(torch.full((1, 2, 3, 4), float("nan")), 8, (16, 24))
    with pytest.raises(ValueError, match="does not fit an image"):
        PatchFeatures(torch.ones(1, 2, 3, 4), 8, (24, 24))
    with pytest.raises(ValueError, match="CLS attention"):
        PatchFeatures(torch.ones(1, 2, 3, 4), 8, (16, 24), torch.ones(1, 6, 5))
    with pytest.raises(ValueError, match="shape"):
        PatchFeatures(torch.ones(1, 0, 3, 4), 8, (1, 24))


def test_instances_are_validated() -> None:
    masks = torch.ones((1, 2, 2), dtype=torch.bool)
    boxes, ones = torch.tensor([[0.0, 0, 2, 2]]), torch.ones(1)
    labels = torch.ones(1, dtype=torch.int64)
    assert len(Instances(masks, boxes, ones, labels)) == 1
    with pytest.raises(ValueError, match="Scores"):
        Instances(masks, boxes, ones * 2, labels)
    with pytest.raises(ValueError, match="Scores"):
        Instances(masks, boxes, ones * float("nan"), labels)
    with pytest.raises(ValueError, match="Boxes"):
        Instances(masks, boxes * 0, ones, labels)
    with pytest.raises((ValueError, TypeError)):
        Instances(masks, boxes.repeat(2, 1), ones, labels)


def test_image_record_is_validated() -> None:
    ImageRecord(1, "a.jpg", 2, 3)
    with pytest.raises(ValueError, match="positive"):
        ImageRecord(0, "a.jpg", 2, 3)
