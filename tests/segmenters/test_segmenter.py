"""The network and its file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18, resnet50

from figureground.errors import WeightsError
from figureground.segmenters.checkpoint import load, save
from figureground.segmenters.maskcontrast import Segmenter, SegmenterConfig, TransformerConfig

TRANSFORMER = TransformerConfig(patch_size=8, image_size=32, width=24, depth=2, heads=2)
VIT = SegmenterConfig(arch="vit", vit=TRANSFORMER, width=4)
ODD = TRANSFORMER.replace(patch_size=6, stem="conv")
RESNET = SegmenterConfig(arch="resnet18", rates=(1, 2), width=4)
IMAGES = torch.rand(2, 3, 36, 44, generator=torch.Generator().manual_seed(0))


def test_large_resnets_are_dilated_as_torchvision_does() -> None:
    ours = Segmenter(SegmenterConfig(width=4)).trunk
    theirs = resnet50(replace_stride_with_dilation=[False, True, True])
    convolutions = [
        {name: str(layer) for name, layer in trunk.named_modules() if isinstance(layer, nn.Conv2d)}
        for trunk in (ours, theirs)
    ]
    assert convolutions[0] == convolutions[1]


@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_only_looks_at_more_places(stride: int) -> None:
    """At every second or fourth place of the map stands what the network of stride 32 finds, to the bit of rounding."""
    segmenter = Segmenter(RESNET.replace(stride=stride)).eval()
    whole = resnet18().eval()
    whole.load_state_dict(segmenter.trunk.state_dict() | {"fc.weight": whole.fc.weight, "fc.bias": whole.fc.bias})
    maps = []
    for trunk in (segmenter.trunk, whole):
        trunk.layer4.register_forward_hook(lambda module, given, made: maps.append(made))
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedding, saliency = segmenter(images)
        whole((images - segmenter.mean) / segmenter.std)
    assert (embedding.shape, saliency.shape) == ((1, 4, 64, 96), (1, 64, 96))
    every = 32 // stride
    assert maps[0].shape[2:] == (64 // stride, 96 // stride)
    torch.testing.assert_close(maps[0][:, :, ::every, ::every], maps[1], rtol=1e-4, atol=1e-5)


def test_a_transformer_takes_images_of_any_size_and_pads_them() -> None:
    segmenter = Segmenter(VIT).eval()
    with torch.no_grad():
        embedding, saliency = segmenter(IMAGES)
        assert (embedding.shape, saliency.shape) == ((2, 4, 36, 44), (2, 36, 44))
        assert segmenter.features(IMAGES).shape == (2, 256, 5, 6)
        # Padded with what the mean of all images is.
        grey = segmenter.mean[None].expand(2, 3, 40, 48).clone()
        grey[:, :, :36, :44] = IMAGES
        torch.testing.assert_close(segmenter(grey)[0][:, :, :36, :44], embedding)


@pytest.mark.parametrize("config", [VIT, RESNET.replace(mean=(0.1, 0.2, 0.3))], ids=["vit", "resnet"])
def test_a_file_gives_back_what_was_saved(config: SegmenterConfig, tmp_path: Path) -> None:
    segmenter = Segmenter(config).eval()
    save(tmp_path / "segmenter.safetensors", segmenter, {"steps": 3})
    save(tmp_path / "again.safetensors", segmenter, {"steps": 3})
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "segmenter.safetensors").read_bytes()
    with safe_open(tmp_path / "again.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["figureground_segmenter"])["facts"] == {"steps": 3}
    # By the folder of a run, too.
    for path in (tmp_path, tmp_path / "again.safetensors"):
        loaded = load(path)
        assert not loaded.training
        assert loaded.config == config
        with torch.no_grad():
            for one, other in zip(loaded(IMAGES), segmenter(IMAGES), strict=True):
                assert torch.equal(one, other)


class TestFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        save(tmp_path / "one.safetensors", Segmenter(VIT))
        return tmp_path / "one.safetensors"

    def rewrite(self, file: Path, **changes: object) -> None:
        with safe_open(file, framework="pt") as opened:
            said = json.loads(opened.metadata()["figureground_segmenter"])
        weights = load(file).state_dict()
        save_file(weights, file, {"figureground_segmenter": json.dumps({**said, **changes})})

    def test_none_there(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="No segmenter at"):
            load(tmp_path)

    def test_damaged(self, file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(WeightsError, match="cannot be read as a segmenter"):
            load(file)

    def test_of_something_else(self, file: Path) -> None:
        save_file({"a": torch.ones(1)}, file)
        with pytest.raises(WeightsError, match="not those of a segmenter"):
            load(file)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"version": 2}, "version 2"),
            ({"config": {"arch": "vgg"}}, "does not say how to build"),
            ({"config": {**VIT.model_dump(), "width": 5}}, "does not hold the weights"),
            (
                {"config": {**VIT.model_dump(), "vit": {**TRANSFORMER.model_dump(), "patch_size": 6, "stem": "conv"}}},
                "6",
            ),
        ],
    )
    def test_of_another_kind(self, file: Path, changes: dict[str, object], message: str) -> None:
        self.rewrite(file, **changes)
        with pytest.raises(WeightsError, match=message):
            load(file)
