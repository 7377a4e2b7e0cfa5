"""A vision transformer in float64, written from the papers on the official names of weights: slow and plain.

The reference for `figureground.backbones.vit` and for the conversions in `figureground.backbones.weights`.
"""

import math

import torch
from torch.nn import functional

MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)


def last_block(weights: dict, image: torch.Tensor, patch: int, heads: int, eps: float) -> dict[str, torch.Tensor]:
    """Queries, keys, values, tokens and CLS attention of one image (3, H, W), patches only, from official weights."""
    weights = {name: value.double() for name, value in weights.items()}
    x = (image.double() - MEAN[:, None, None]) / STD[:, None, None]
    h, w = x.shape[1] // patch, x.shape[2] // patch
    kernel = weights["patch_embed.proj.weight"].flatten(1)
    patches = torch.stack(
        [
            kernel @ x[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].flatten()
            for i in range(h)
            for j in range(w)
        ]
    )
    x = torch.cat([weights["cls_token"][0], patches + weights["patch_embed.proj.bias"]])
    if "pos_embed" in weights:
        x = x + positions(weights["pos_embed"][0], h, w, registers="register_tokens" in weights)
    for name in ("register_tokens", "storage_tokens"):
        if name in weights:
            x = torch.cat([x[:1], weights[name][0], x[1:]])
    prefix = len(x) - h * w
    angles = rotary_angles(h, w, x.shape[1] // heads) if "storage_tokens" in weights else None

    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for i in range(depth):
        block = {n.removeprefix(f"blocks.{i}."): v for n, v in weights.items() if n.startswith(f"blocks.{i}.")}
        y = functional.layer_norm(x, x.shape[1:], block["norm1.weight"], block["norm1.bias"], eps)
        bias = block["attn.qkv.bias"]
        if "attn.qkv.bias_mask" in block:
            bias = bias * block["attn.qkv.bias_mask"]
        q, k, v = (y @ block["attn.qkv.weight"].T + bias).chunk(3, dim=1)
        mixed, attention = [], []
        for head in range(heads):
            part = slice(head * q.shape[1] // heads, (head + 1) * q.shape[1] // heads)
            qh, kh = q[:, part], k[:, part]
            if angles is not None:
                qh, kh = rotate(qh, angles, prefix), rotate(kh, angles, prefix)
            weight = (qh @ kh.T / math.sqrt(qh.shape[1])).softmax(dim=1)
            mixed.append(weight @ v[:, part])
            attention.append(weight[0, prefix:])
        y = torch.cat(mixed, dim=1) @ block["attn.proj.weight"].T + block["attn.proj.bias"]
        x = x + y * block.get("ls1.gamma", 1.0)
        y = functional.layer_norm(x, x.shape[1:], block["norm2.weight"], block["norm2.bias"], eps)
        y = functional.gelu(y @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"])
        y = y @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
        x = x + y * block.get("ls2.gamma", 1.0)
    tokens = functional.layer_norm(x, x.shape[1:], weights["norm.weight"], weights["norm.bias"], eps)
    features = {"queries": q, "keys": k, "values": v, "tokens": tokens}
    return {name: value[prefix:] for name, value in features.items()} | {"cls_attention": torch.stack(attention)}


def positions(table: torch.Tensor, h: int, w: int, registers: bool) -> torch.Tensor:
    """Official rules: scale (h + 0.1) / g without registers; size and antialiasing with them. In float32, as there."""
    side = math.isqrt(len(table) - 1)
    if h == w == side:
        return table
    grid = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    if registers:
        grid = functional.interpolate(grid, (h, w), mode="bicubic", antialias=True)
    else:
        grid = functional.interpolate(grid, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic")
    return torch.cat([table[:1], grid[0].permute(1, 2, 0).reshape(h * w, -1).double()])


def rotary_angles(h: int, w: int, width: int) -> torch.Tensor:
    """DINOv3: (h * w, width / 2) angles, of the row and then of the column, with periods 100^(2n / (width / 2))."""
    angles = []
    for i in range(h):
        for j in range(w):
            row, column = 2 * (i + 0.5) / h - 1, 2 * (j + 0.5) / w - 1
            periods = [100 ** (2 * n / (width / 2)) for n in range(width // 4)]
            angles.append([2 * math.pi * place / period for place in (row, column) for period in periods])
    return torch.tensor(angles, dtype=torch.float64)


def rotate(x: torch.Tensor, angles: torch.Tensor, prefix: int) -> torch.Tensor:
    """Rotate the pairs (n, n + width / 2) of every patch; the first `prefix` tokens stay."""
    a, b = x[prefix:].chunk(2, dim=1)
    turned = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=1)
    return torch.cat([x[:prefix], turned])
