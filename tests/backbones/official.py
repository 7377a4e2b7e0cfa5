"""Random weights under the official names, made without the published code."""

import torch

from figureground.backbones.catalogue import Row

DEPTH = 12
GRID = {"dino": 224, "dinov2": 518}


def official_state(row: Row, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor of the official file of `row`, random, with activations that stay near one."""
    generator = torch.Generator().manual_seed(seed)
    width = row.width

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return mean + scale * torch.randn(*shape, generator=generator)

    def linear(prefix: str, out: int, *inner: int) -> dict[str, torch.Tensor]:
        fan_in = torch.Size(inner).numel()
        return {f"{prefix}.weight": normal(out, *inner, scale=fan_in**-0.5), f"{prefix}.bias": normal(out, scale=0.02)}

    def norm(prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}.weight": normal(width, scale=0.1, mean=1.0), f"{prefix}.bias": normal(width, scale=0.02)}

    state = {"cls_token": normal(1, 1, width, scale=0.2)}
    if row.family in GRID:
        count = (GRID[row.family] // row.patch_size) ** 2
        state["pos_embed"] = normal(1, 1 + count, width, scale=0.2)
    if row.family == "dinov2":
        state["mask_token"] = torch.zeros(1, width)
        if row.registers:
            state["register_tokens"] = normal(1, row.registers, width, scale=0.2)
    if row.family == "dinov3":
        state["mask_token"] = torch.zeros(1, width)
        state["storage_tokens"] = normal(1, row.registers, width, scale=0.2)
        state["rope_embed.periods"] = (100 ** (torch.arange(16) / 16)).bfloat16()
    state |= linear("patch_embed.proj", width, 3, row.patch_size, row.patch_size)
    for i in range(DEPTH):
        block = f"blocks.{i}"
        state |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        state |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        state |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
        if row.family == "dinov3":
            mask = torch.ones(3 * width)
            mask[width : 2 * width] = 0
            state[f"{block}.attn.qkv.bias_mask"] = mask
        if row.family != "dino":
            state[f"{block}.ls1.gamma"] = normal(width, scale=0.1, mean=0.5)
            state[f"{block}.ls2.gamma"] = normal(width, scale=0.1, mean=0.5)
    return state | norm("norm")
