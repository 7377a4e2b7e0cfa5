"""Our Mask R-CNN and Cascade Mask R-CNN against what detectron2's returned, official names and all."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from figureground.detectors import load
from figureground.detectors.rcnn import batch
from tests.conftest import golden


def official_weights(path) -> dict[str, torch.Tensor]:
    """Every tensor of the official checkpoint, made from its name."""
    spec = importlib.util.spec_from_file_location("golden_weights", path.parents[1] / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kind = path.stem.rpartition("_")[0]
    keys = json.loads((path.parent / f"{kind}_keys.json").read_text())
    made = {name: module.detectron2_weight(name, tuple(shape)) for name, shape in keys.items()}
    return {name: torch.from_numpy(np.asarray(value)).reshape(keys[name]) for name, value in made.items()}


# The second image of each model agrees as well; it is left out because a ResNet-50 takes seconds on one core.
@pytest.mark.parametrize("path", golden("detectron2/*_0.npz"))
def test_instances(path, tmp_path) -> None:
    file = np.load(path)
    torch.save({"model": official_weights(path), "iteration": 159999}, tmp_path / "model_final.pth")
    model = load(tmp_path / "model_final.pth", short_side=None)
    (tmp_path / "model_final.pth").unlink()
    assert model.config.detector == path.stem.rpartition("_")[0]
    image = torch.from_numpy(file["image"]).permute(2, 0, 1).float() / 255
    passed = []
    handle = model.backbone.register_forward_hook(lambda module, inputs, maps: passed.append(maps))
    [found] = model([image])
    handle.remove()

    _, p3, _, p5, _ = passed[0]
    np.testing.assert_allclose(p3.mean((2, 3)).detach().numpy(), file["p3_mean"], atol=1e-4)
    np.testing.assert_allclose(p5[0, :8].detach().numpy(), file["p5"], atol=1e-3)
    assert batch([image]).shape[2:] == (320, 480)

    masks = np.unpackbits(file["masks"], axis=2, count=image.shape[2]).astype(bool)
    assert found.masks.shape == masks.shape
    agree = 0
    for box, score, mask in zip(file["boxes"], file["scores"], masks, strict=True):
        nearest = int(np.abs(found.boxes.numpy() - box).max(1).argmin())
        own = found.masks[nearest].numpy()
        agree += bool(
            np.abs(found.boxes[nearest].numpy() - box).max() <= 0.05
            and abs(float(found.scores[nearest]) - score) <= 1e-4
            and (own & mask).sum() >= 0.99 * (own | mask).sum()
        )
    assert agree >= 98
