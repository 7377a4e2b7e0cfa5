import argparse
import dataclasses
import time

import pytest
import torch
from safetensors.torch import save_file

from figureground.backbones import find, load
from figureground.backbones.vit import define
from figureground.backbones.weights import CONVERSIONS, download, fill
from figureground.errors import WeightsError
from tests.backbones.official import official_state
from tests.reference.vit import last_block

ROW = find("dino_s16")
IMAGE = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def state():
    return official_state(ROW)


@pytest.fixture(scope="module")
def expected(state):
    return last_block(state, IMAGE, ROW.patch_size, ROW.heads, eps=1e-6)["keys"].float()


def keys(path, name="dino_s16"):
    return load(name, path)(IMAGE[None]).values[0].flatten(0, 1)


def wrapped(state, prefix):
    head = prefix.replace("backbone.", "head.mlp.0.weight")
    return {f"{prefix}{name}": value for name, value in state.items()} | {head: torch.ones(2)}


def test_the_official_file(state, expected, tmp_path):
    torch.save(state, tmp_path / "official.pth")
    torch.testing.assert_close(keys(tmp_path / "official.pth"), expected, rtol=0, atol=1e-3)


def test_safetensors_in_half_precision(state, expected, tmp_path):
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "half.safetensors")
    got = keys(str(tmp_path / "half.safetensors"))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone."])
def test_a_full_checkpoint_gives_its_teacher(state, expected, prefix, tmp_path):
    student = {f"module.backbone.{name}": torch.zeros(1) for name in state}
    checkpoint = {"student": student, "teacher": wrapped(state, prefix), "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(checkpoint, tmp_path / "full.pth")
    torch.testing.assert_close(keys(tmp_path / "full.pth"), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["dinov2_s14", "dinov2_s14_reg", "dinov3_s16"])
def test_official_and_converted_files_are_the_same_backbone(name, tmp_path):
    row = find(name)
    state = official_state(row)
    torch.save(state, tmp_path / "official.pth")
    converted = {key: value.contiguous() for key, value in CONVERSIONS[row.family](state).items()}
    assert converted.keys() == define(row).state_dict().keys()
    save_file(converted, tmp_path / "timm.safetensors")
    assert torch.equal(keys(tmp_path / "official.pth", name), keys(tmp_path / "timm.safetensors", name))


def test_dinov3_without_biases_gets_zeros():
    row = find("dinov3_s16")
    state = {name: value for name, value in official_state(row).items() if "qkv.bias" not in name}
    converted = CONVERSIONS["dinov3"](state)
    assert converted.keys() == define(row).state_dict().keys()
    assert not converted["blocks.0.attn.q_bias"].any()


def test_a_conversion_leaves_its_input_alone():
    for name in ("dino_s16", "dinov2_s14_reg", "dinov3_s16"):
        row = find(name)
        state = official_state(row)
        names = list(state)
        CONVERSIONS[row.family](state)
        assert list(state) == names


def fails(path, name="dino_s16"):
    with pytest.raises(WeightsError) as caught:
        load(name, path)
    return str(caught.value)


def test_a_missing_file(tmp_path):
    message = fails(tmp_path / "nowhere.pth")
    assert "nowhere.pth" in message
    assert "dino_deitsmall16_pretrain.pth" in message


def test_a_directory(tmp_path):
    assert "No file of weights" in fails(tmp_path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"<html>404</html>" * 99])
def test_a_damaged_file(suffix, damage, tmp_path):
    path = tmp_path / f"damaged.{suffix}"
    small = {"cls_token": torch.ones(1, 1, 384), "norm.weight": torch.ones(384)}
    torch.save(small, path) if suffix == "pth" else save_file(small, path)
    path.write_bytes(damage(path.read_bytes()))
    message = fails(path)
    assert f"damaged.{suffix} cannot be read as weights" in message
    assert "dino_s16 expects" in message


class Forbidden:
    """Not a tensor: what an unpickler must not make."""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1, 2], "holds no named tensors but a list"),
        ({"epoch": 3, "student": {}}, "holds no named tensors but epoch, student"),
        ({}, "holds no named tensors but nothing"),
        (Forbidden(), "cannot be read as weights (UnpicklingError"),
    ],
)
def test_something_else_in_the_file(content, complaint, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    assert complaint in fails(tmp_path / "other.pth")


def test_names_and_shapes_that_do_not_fit(state, tmp_path):
    wrong = {name: value for name, value in state.items() if not name.startswith("blocks.11.")}
    wrong["head.weight"] = torch.ones(1)
    wrong["patch_embed.proj.weight"] = torch.ones(384, 3, 8, 8)
    torch.save(wrong, tmp_path / "wrong.pth")
    message = fails(tmp_path / "wrong.pth")
    assert "missing: blocks.11.norm1.weight" in message
    assert "and 8 more" in message
    assert "unexpected: head.weight" in message
    assert "patch_embed.proj.weight (384, 3, 8, 8) instead of (384, 3, 16, 16)" in message
    assert "wrong.pth does not fit dino_s16" in message


def test_another_family(state, tmp_path):
    torch.save(state, tmp_path / "dino.pth")
    assert "missing: reg_token" in fails(tmp_path / "dino.pth", "dinov3_s16")


def test_the_digest_of_a_file_with_the_official_name(state, tmp_path):
    row = dataclasses.replace(ROW, sha256="0123abcd", file="official.pth")
    for name in ("official.pth", "my_own.pth"):
        torch.save(state, tmp_path / name)
    fill(define(row), row, tmp_path / "my_own.pth")
    with pytest.raises(WeightsError, match="expected 0123abcd"):
        fill(define(row), row, tmp_path / "official.pth")


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Nothing cached, and an address where nobody listens."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def test_an_unreachable_hub_says_what_to_do_at_once_and_quietly(no_hub, capfd, caplog):
    started = time.monotonic()
    message = fails(None)
    assert time.monotonic() - started < 10
    assert "No weights for dino_s16: timm/vit_small_patch16_224.dino on the hub: " in message
    assert "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth" in message
    assert "handcrafted, which needs no weights" in message
    assert len(message.splitlines()) == 3
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_weights_that_are_on_no_hub():
    assert "dino_deitsmall8_300ep_pretrain.pth" in fails(None, "dino_s8_300ep")


def test_the_cache_is_used_without_asking_the_hub(no_hub, tmp_path):
    repository = tmp_path / "models--timm--vit_small_patch16_224.dino"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    cached = repository / "snapshots" / "abc" / "model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    assert download(ROW) == cached
