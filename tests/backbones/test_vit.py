import importlib.util

import numpy as np
import pytest
import torch

from figureground.backbones import CATALOGUE, find, load
from figureground.backbones.vit import ViT, _onednn_float32, define
from figureground.backbones.weights import CONVERSIONS
from figureground.structures import PatchFeatures
from tests.backbones.official import official_state
from tests.conftest import SHARED, golden
from tests.reference.vit import last_block

GOLDEN_ROWS = {"small16": "dino_s16", "small8": "dino_s8", "base16": "dino_b16"}


def build(row, state, features="keys", precision="fp32"):
    """A backbone from official weights in memory, without the detour over a file."""
    model = define(row)
    model.load_state_dict(CONVERSIONS[row.family](state), assign=True)
    return ViT(model, row, features, precision)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def error(got, expected):
    """Largest difference relative to the largest value."""
    expected = torch.as_tensor(expected).double()
    return float((got.double() - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def golden_state():
    """Official weights by row, as the golden outputs were made with."""
    spec = importlib.util.spec_from_file_location("golden_weights", SHARED / "golden" / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = {}

    def make(name):
        if name not in made:
            shapes = {key: tuple(value.shape) for key, value in define(find(name)).state_dict().items()}
            made[name] = {
                key: torch.from_numpy(module.dino_weight(key, shape)).float() for key, shape in shapes.items()
            }
        return made[name]

    return make


@pytest.mark.parametrize("file", golden("dino/*.npz"))
def test_agrees_with_the_published_code(file, golden_state):
    row = find(GOLDEN_ROWS[file.stem.split("_")[2]])
    expected = np.load(file)
    batch = torch.from_numpy(expected["image"]).permute(2, 0, 1)[None].float() / 255
    for features in ("keys", "queries", "values"):
        made = build(row, golden_state(row.name), features)(batch)
        columns = expected[features].shape[1]
        assert error(made.values[0].flatten(0, 1)[:, :columns], expected[features]) < 1e-4
        assert error(made.cls_attention[0], expected["cls_attention"]) < 1e-4
    backbone = build(row, golden_state(row.name), "tokens")
    tokens, rope, _ = backbone._trunk(batch)
    assert error(backbone._final_tokens(tokens, rope)[0, 0], expected["cls_token"]) < 1e-4


@pytest.mark.parametrize("file", golden("dino/dino_vit_small*.npz"))
def test_bf16_is_close_to_the_published_code(file, golden_state):
    row = find(GOLDEN_ROWS[file.stem.split("_")[2]])
    expected = np.load(file)
    batch = torch.from_numpy(expected["image"]).permute(2, 0, 1)[None].float() / 255
    made = build(row, golden_state(row.name), precision="bf16")(batch)
    assert made.values.dtype == torch.float32
    assert error(made.values[0].flatten(0, 1), expected["keys"]) < 0.02


@pytest.mark.parametrize("name", ["dino_s16", "dinov2_s14", "dinov2_s14_reg", "dinov3_s16"])
def test_agrees_with_the_slow_reference(name):
    row = find(name)
    state = official_state(row)
    photo = images(3, 4 * row.patch_size, 6 * row.patch_size)
    expected = last_block(state, photo, row.patch_size, row.heads, eps=1e-5 if row.family == "dinov3" else 1e-6)
    for features in ("keys", "queries", "values", "tokens"):
        made = build(row, state, features)(photo[None])
        assert error(made.values[0].flatten(0, 1), expected[features]) < 1e-4
        assert error(made.cls_attention[0], expected["cls_attention"]) < 1e-4
    made = build(row, state, precision="bf16")(photo[None])
    assert error(made.values[0].flatten(0, 1), expected["keys"]) < 0.02


@pytest.mark.parametrize("name", ["dino_s16", "dinov3_s16"])
def test_agrees_with_timm_on_the_trained_size(name):
    import timm

    row = find(name)
    converted = CONVERSIONS[row.family](official_state(row))
    model = timm.create_model(row.timm_id, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    model.load_state_dict(converted)
    side = {"dino": 224, "dinov3": 96}[row.family]
    batch = images(1, 3, side, side)
    with torch.no_grad():
        normed = (batch - torch.tensor(row.mean)[:, None, None]) / torch.tensor(row.std)[:, None, None]
        expected = model.forward_features(normed)[0, model.num_prefix_tokens :]
    made = build(row, official_state(row), "tokens")(batch)
    assert error(made.values[0].flatten(0, 1), expected) < 1e-4


@pytest.mark.parametrize("name", [name for name, row in CATALOGUE.items() if row.learned])
def test_every_learned_backbone_keeps_the_contract(name):
    row = find(name)
    backbone = load(name) if row.family == "own" else build(row, official_state(row))
    batch = images(2, 3, 3 * row.patch_size, 2 * row.patch_size)
    made = backbone(batch)
    assert (backbone.name, backbone.patch_size, backbone.width) == (name, row.patch_size, row.width)
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert isinstance(made, PatchFeatures)
    assert made.values.shape == (2, 3, 2, row.width)
    assert made.values.dtype == torch.float32
    assert made.image_size == (3 * row.patch_size, 2 * row.patch_size)
    assert made.cls_attention.shape == (2, row.heads, 6)
    assert float(made.cls_attention.min()) >= 0
    assert float(made.cls_attention.sum(-1).max()) < 1
    for i in range(2):
        single = backbone(batch[i : i + 1])
        assert error(made.values[i], single.values[0]) < 1e-5
        assert error(made.cls_attention[i], single.cls_attention[0]) < 1e-4


def test_the_handcrafted_backbone_keeps_its_row():
    row, backbone = find("handcrafted"), load("handcrafted")
    assert (backbone.name, backbone.patch_size, backbone.width) == (row.name, row.patch_size, row.width)
    assert backbone(images(1, 3, 32, 40)).values.shape == (1, 4, 5, row.width)


def test_other_sizes_are_padded_right_and_bottom_with_normalised_zeros():
    row = find("dino_s16")
    backbone = build(row, official_state(row))
    batch = images(1, 3, 37, 50)
    made = backbone(batch)
    assert made.values.shape == (1, 3, 4, 384)
    assert made.image_size == (37, 50)
    # Zero after normalisation is the mean colour before it.
    padded = torch.tensor(row.mean).view(1, 3, 1, 1).expand(1, 3, 48, 64).clone()
    padded[:, :, :37, :50] = batch
    assert error(made.values, backbone(padded).values) < 1e-5


def test_smaller_than_a_patch():
    row = find("dino_s16")
    assert build(row, official_state(row))(images(1, 3, 1, 5)).values.shape == (1, 1, 1, 384)


@pytest.mark.parametrize(
    "batch", [torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 9, 9).double(), torch.zeros(0, 3, 32, 32)]
)
def test_images_of_another_kind_are_refused(batch):
    row = find("dino_s16")
    with pytest.raises(ValueError, match="float32"):
        build(row, official_state(row))(batch)


def test_the_precision_of_products_is_put_back():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), _onednn_float32(torch.device("cpu")):
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_no_random_number_is_drawn():
    before = torch.get_rng_state()
    row = find("dinov3_s16")
    build(row, official_state(row))(images(1, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_backbone_moves_and_travels_whole(tmp_path):
    row = find("dinov3_s16")
    backbone = build(row, official_state(row))
    batch = images(1, 3, 32, 48)
    expected = backbone(batch)
    torch.save(backbone, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(again(batch).values, expected.values)
    assert {tensor.device.type for tensor in (*again.parameters(), *again.buffers())} == {"cpu"}
