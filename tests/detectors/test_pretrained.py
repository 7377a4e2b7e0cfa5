"""Backbones under everybody's names."""

import argparse
import pickle
import time

import pytest
import torch
from safetensors.torch import save_file

from figureground.detectors import configure, create, load_backbone, save
from figureground.errors import WeightsError
from tests.detectors.official import SMALL, detectron2_state, small


@pytest.fixture(scope="module")
def trunk():
    """The tensors of a ResNet under torchvision's names, which are timm's and DINO's."""
    return small(seed=1).backbone.trunk.state_dict()


def filled(path, trunk):
    """Whether a file gives its values to the backbone, and to nothing else."""
    model = create(configure("mask_rcnn", **SMALL))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_backbone(model, path)
    for name, value in model.state_dict().items():
        inner = name.removeprefix("backbone.trunk.")
        expected = before[name] if inner == name else trunk[inner]
        assert torch.equal(value, expected), name


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


FC = {"fc.weight": torch.ones(3, 512), "fc.bias": torch.ones(3)}


def moco(trunk):
    other = {name: torch.zeros_like(value) for name, value in trunk.items()}
    state = prefixed("module.encoder_k.", other) | prefixed("module.encoder_q.", trunk | FC)
    return {"epoch": 200, "arch": "resnet18", "state_dict": state | {"module.queue": torch.ones(3, 3)}}


def dino(trunk):
    student = prefixed("module.backbone.", {name: torch.zeros_like(value) for name, value in trunk.items()})
    teacher = prefixed("backbone.", trunk) | {"head.mlp.0.weight": torch.ones(2)}
    return {"student": student, "teacher": teacher, "epoch": 3, "args": argparse.Namespace(lr=0.1)}


def without_counts(trunk):
    return {name: value for name, value in trunk.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "content",
    [lambda t: t, lambda t: t | FC, moco, dino, lambda t: prefixed("module.", t), lambda t: {"state_dict": t}],
    ids=["plain", "classifier", "moco", "dino", "wrapped", "nested"],
)
def test_a_checkpoint(content, trunk, tmp_path):
    torch.save(content(trunk), tmp_path / "a.pth.tar")
    filled(tmp_path / "a.pth.tar", trunk)


def test_an_old_file_without_counts_of_batches(trunk, tmp_path):
    torch.save(without_counts(trunk), tmp_path / "a.pth")
    filled(tmp_path / "a.pth", trunk | {name: torch.zeros(()) for name in trunk.keys() - without_counts(trunk).keys()})


def test_safetensors_in_half_precision(trunk, tmp_path):
    halves = {name: value.half() if value.is_floating_point() else value for name, value in trunk.items()}
    save_file(halves, tmp_path / "a.safetensors")
    filled(str(tmp_path / "a.safetensors"), {name: value.float() for name, value in halves.items()})


def test_backbones_of_detectron2(trunk, tmp_path):
    state = detectron2_state(small(seed=1))
    bottom_up = {name: value.numpy() for name, value in state.items() if "bottom_up" in name}
    bare = {name.removeprefix("backbone.bottom_up."): value for name, value in bottom_up.items()}
    bare |= {"stem.fc.weight": FC["fc.weight"].numpy(), "stem.fc.bias": FC["fc.bias"].numpy()}
    for content in (bottom_up, bare):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": content, "matching_heuristics": True}))
        filled(tmp_path / "a.pkl", trunk)
    torch.save({"model": state}, tmp_path / "detector.pth")
    filled(tmp_path / "detector.pth", trunk)


def test_a_detector_of_our_own(trunk, tmp_path):
    save(tmp_path / "a.safetensors", small(seed=1))
    filled(tmp_path / "a.safetensors", trunk)


def test_a_transformer(tmp_path):
    tiny = {"patch_size": 16, "width": 48, "depth": 2, "heads": 3}
    source = create(configure("vitdet", "tiny", backbone=tiny), torch.Generator().manual_seed(1))
    trunk = source.backbone.trunk.state_dict()
    assert {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.1.attn.qkv.bias",
        "norm.weight",
    } <= trunk.keys()
    model = create(configure("vitdet", "tiny", backbone=tiny))
    torch.save(
        {"teacher": prefixed("backbone.", trunk) | {"head.last_layer.weight_g": torch.ones(1)}}, tmp_path / "a.pth"
    )
    load_backbone(model, tmp_path / "a.pth")
    assert all(torch.equal(value, trunk[name]) for name, value in model.backbone.trunk.state_dict().items())


class TestFailures:
    def fails(self, source):
        model = create(configure("mask_rcnn", **SMALL))
        with pytest.raises(WeightsError) as caught:
            load_backbone(model, source)
        fresh = create(configure("mask_rcnn", **SMALL)).state_dict()
        assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())
        return str(caught.value)

    def test_names_that_do_not_fit(self, trunk, tmp_path):
        wrong = {name: value for name, value in trunk.items() if not name.startswith("layer4.1.conv")}
        wrong |= {"layer9.weight": torch.ones(1), "conv1.weight": torch.ones(64, 3, 3, 3)}
        torch.save(wrong, tmp_path / "wrong.pth")
        message = self.fails(tmp_path / "wrong.pth")
        assert "wrong.pth does not fit: missing: layer4.1.conv1.weight, layer4.1.conv2.weight;" in message
        assert "unexpected: layer9.weight" in message
        assert "conv1.weight (64, 3, 3, 3) instead of (64, 3, 7, 7)" in message
        assert "dino_resnet50_pretrain.pth" in message

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [([1], "no named tensors but a list"), ({"epoch": 3}, "but epoch"), ({"model": {}}, "but nothing")],
    )
    def test_something_else(self, content, complaint, tmp_path):
        torch.save(content, tmp_path / "a.pth")
        assert complaint in self.fails(tmp_path / "a.pth")

    def test_a_missing_file(self, tmp_path):
        assert "No file of weights at" in self.fails(tmp_path / "nowhere.pth")
        assert "No file of weights at resnet50" in self.fails("resnet50")

    @pytest.fixture
    def no_hub(self, monkeypatch, tmp_path):
        """Nothing cached, and an address where nobody listens."""
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")

    def test_an_unreachable_hub(self, no_hub):
        started = time.monotonic()
        assert "No weights timm/resnet50.a1_in1k on the hub: " in self.fails("timm/resnet50.a1_in1k")
        assert "No weights for dino_s16" in self.fails("dino_s16")
        assert time.monotonic() - started < 20

    def test_the_cache_is_used_without_asking_the_hub(self, no_hub, trunk, tmp_path):
        repository = tmp_path / "models--timm--resnet18.a1_in1k"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
        (repository / "snapshots" / "abc").mkdir(parents=True)
        save_file(trunk | FC, repository / "snapshots" / "abc" / "model.safetensors")
        filled("timm/resnet18.a1_in1k", trunk)
