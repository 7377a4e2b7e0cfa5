import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from figureground.backbones import CATALOGUE, find, load, multiplies_bfloat16
from figureground.backbones.vit import define
from figureground.errors import UsageError

# Of others: what they are is for timm to say.
LEARNED = [row for row in CATALOGUE.values() if row.timm_id is not None]


def test_the_backbones_on_offer():
    assert list(CATALOGUE) == [
        "dino_s16",
        "dino_s8",
        "dino_s8_300ep",
        "dino_b16",
        "dino_b8",
        "dinov2_s14",
        "dinov2_s14_reg",
        "dinov2_b14",
        "dinov2_b14_reg",
        "dinov3_s16",
        "dinov3_b16",
        "embedded",
        "handcrafted",
    ]


@pytest.mark.parametrize("row", LEARNED, ids=lambda row: row.name)
def test_a_row_says_what_timm_says(row):
    model = define(row)
    cfg = model.pretrained_cfg
    assert model.patch_embed.patch_size == (row.patch_size, row.patch_size)
    assert model.embed_dim == row.width
    assert model.blocks[0].attn.num_heads == row.heads
    assert model.num_prefix_tokens == 1 + row.registers
    assert (cfg["mean"], cfg["std"]) == (row.mean, row.std)
    assert cfg["license"].replace("-", " ") == row.licence.lower().replace("-", " ")
    if row.hub_id is not None:
        assert cfg["hf_hub_id"] == row.hub_id
        assert cfg["url"] in ("", row.url)


@pytest.mark.parametrize("row", LEARNED, ids=lambda row: row.name)
def test_the_weights_are_named_with_their_licence(row):
    text = (Path(__file__).parents[2] / "THIRD_PARTY.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if f"`{row.file}`" in line)
    assert f"`{row.name}`" in line
    assert row.licence in line


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        find("dino_s16").width = 3


def test_an_unknown_name_gets_the_nearest_one_and_all():
    with pytest.raises(UsageError) as caught:
        load("dino_vits16")
    assert "Did you mean 'dino_s16'?" in str(caught.value)
    assert all(name in str(caught.value) for name in CATALOGUE)
    with pytest.raises(UsageError, match=r"Unknown backbone '\?'") as caught:
        load("?")
    assert "Did you mean" not in str(caught.value)


def test_arguments_that_make_no_sense():
    with pytest.raises(UsageError, match="'key' is none of keys, queries, values, tokens"):
        load("dino_s16", features="key")
    with pytest.raises(UsageError, match="'fp16' is none of fp32, bf16"):
        load("dino_s16", precision="fp16")
    with pytest.raises(UsageError, match=r"handcrafted has no weights to load, got 'w.pth'"):
        load("handcrafted", "w.pth")


def test_names_are_listed_without_torch():
    script = "import sys, figureground.backbones.catalogue; print({'torch', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_auto_is_bfloat16_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for capabilities, expected in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=capabilities: known, raising=False)
        assert multiplies_bfloat16("cpu") == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not multiplies_bfloat16("cpu")
