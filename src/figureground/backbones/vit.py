"""The one adapter of timm's vision transformers: patch features of DINO, DINOv2 and DINOv3, fast on a CPU."""

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from figureground.backbones import own
from figureground.backbones.catalogue import Row
from figureground.structures import PatchFeatures

_QKV = {"queries": 0, "keys": 1, "values": 2}
# Rows of the attention matrix at a time, in bfloat16 on a CPU: a slice of all heads then stays in the cache.
_CHUNK = 256
_ROPE_BASE = 100.0


def define(row: Row) -> nn.Module:
    """Make timm's model of a row, without values: they come from a file, and no random number is drawn."""
    import timm

    with torch.device("meta"):
        if row.family == "own":
            assert row.file is not None, f"{row.name} has no file"
            return own.read(Path(row.file)).shape.build()
        assert row.timm_id is not None, f"{row.name} has no weights"
        return timm.create_model(row.timm_id, pretrained=False, num_classes=0)


class ViT(nn.Module):
    """Patch features of the last block of a vision transformer, from RGB images in [0, 1].

    Images whose sides are not multiples of the patch size are padded with zeros, right and bottom, after normalisation,
    as LOST and TokenCut do; the padded patches are part of the map. Only what the features need is computed: for keys
    the last block costs one linear layer. The CLS attention is one row a head, its softmax over all tokens, with the
    rotary positions of DINOv3.

    In ``bf16`` the linear layers and the attention of all blocks but the last run in bfloat16; the residual stream, the
    norms, the last block and the features stay float32.

    Args:
        model: timm's, filled with weights; its blocks are taken over, not copied.
        row: Its row in the catalogue.
        features: ``keys``, ``queries``, ``values`` or ``tokens``.
        precision: ``fp32`` or ``bf16``.

    Attributes:
        name: As in the catalogue.
        patch_size: Side of a patch, in pixels.
        width: Length of a feature vector.

    Reference:
        Caron et al., ICCV 2021; Oquab et al., TMLR 2024; Darcet et al., ICLR 2024; Siméoni et al., 2025; with the
        positions of each one's published code. Deviates for DINOv3: rotary positions are computed in float32, where the
        published code rounds periods and angles to bfloat16.
    """

    mean: Tensor
    std: Tensor
    cls_position: Tensor | None
    positions: Tensor | None
    blocks: Any  # timm's two families name the parts of a block alike

    def __init__(self, model: nn.Module, row: Row, features: str, precision: str) -> None:
        super().__init__()
        timm_model: Any = model
        self.name, self.patch_size, self.width = row.name, row.patch_size, row.width
        self._row = row
        self._features = features
        self._prefix = 1 + row.registers
        embedding = timm_model.patch_embed
        # A stem of convolutions is the whole of its embedding.
        self.patch_embed = getattr(embedding, "backbone", embedding.proj)
        self.cls_token = timm_model.cls_token
        self.register_tokens = timm_model.reg_token
        cls_position, positions = _split_positions(timm_model.pos_embed, row)
        self.register_buffer("cls_position", cls_position, persistent=False)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = timm_model.blocks
        self.norm = timm_model.norm
        for block in self.blocks:
            _merge_bias(block.attn)
        if precision == "bf16":
            for layer in self.blocks[:-1].modules():
                if isinstance(layer, nn.Linear):
                    layer.to(torch.bfloat16)
        self.register_buffer("mean", torch.tensor(row.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(row.std).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> PatchFeatures:
        """Describe the patches of a batch of images.

        Args:
            images: RGB in [0, 1], float32, three channels.

        Returns:
            A map of ``ceil(H / patch_size)`` by ``ceil(W / patch_size)`` features, float32.

        Raises:
            ValueError: If the images are not float32 of three channels, or empty.
        """
        if images.dtype != torch.float32 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"Images are float32 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}.")
        with _onednn_float32(images.device):
            tokens, rope, (h, w) = self._trunk(images)
            normed = self.blocks[-1].norm1(tokens)
            keys = self._project(normed, "keys")
            attention = self._cls_attention(self._project(normed[:, :1], "queries"), keys, rope)
            if self._features == "tokens":
                values = self._final_tokens(tokens, rope)
            elif self._features == "keys":
                values = keys
            else:
                values = self._project(normed, self._features)
        height, width = images.shape[2:]
        return PatchFeatures(
            values[:, self._prefix :].unflatten(1, (h, w)), self.patch_size, (height, width), attention
        )

    def _trunk(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None, tuple[int, int]]:
        """Run all blocks but the last: tokens, the prefix first; the sines and cosines of DINOv3; the map's size."""
        height, width = images.shape[2:]
        images = (images - self.mean) / self.std
        images = functional.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        patches = self.patch_embed(images)
        h, w = patches.shape[2:]
        tokens = patches.flatten(2).transpose(1, 2)
        cls_token = self.cls_token
        if self.positions is not None:
            tokens = tokens + self._resample(self.positions, h, w)
        if self.cls_position is not None:
            cls_token = cls_token + self.cls_position
        prefix = [cls_token] if self.register_tokens is None else [cls_token, self.register_tokens]
        tokens = torch.cat([*(token.expand(len(tokens), -1, -1) for token in prefix), tokens], dim=1)
        rope = None
        if self._row.family == "dinov3":
            rope = _rotary(h, w, self.width // self._row.heads, self._prefix, tokens.device)
        for block in self.blocks[:-1]:
            tokens = self._run(block, tokens, rope)
        return tokens, rope, (h, w)

    def _resample(self, positions: Tensor, h: int, w: int) -> Tensor:
        """Resample the learned positions to a map of ``h`` by ``w``, by the rule of each published code.

        DINO, and DINOv2 without registers, scale by ``(h + 0.1) / g``, the scale used as it is given; with registers,
        and in backbones of our own, by size and with antialiasing. The trained map itself is not resampled.
        """
        side = math.isqrt(positions.shape[1])
        if h == w == side:
            return positions
        grid = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if self._row.registers or self._row.family == "own":
            grid = functional.interpolate(grid, size=(h, w), mode="bicubic", antialias=True)
        else:
            scale = ((h + 0.1) / side, (w + 0.1) / side)
            grid = functional.interpolate(grid, scale_factor=scale, mode="bicubic")
        return grid.flatten(2).transpose(1, 2)

    def _run(self, block: Any, tokens: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        dtype = block.attn.qkv.weight.dtype
        qkv = block.attn.qkv(block.norm1(tokens).to(dtype))
        q, k, v = self._heads(qkv, 3)
        if rope is not None:
            q, k = _rotate(q, rope), _rotate(k, rope)
        mixed = block.attn.proj(_attend(q, k, v).transpose(1, 2).flatten(2))
        tokens = tokens + _layer_scale(block, 1, mixed)
        return tokens + _layer_scale(block, 2, block.mlp(block.norm2(tokens).to(dtype)))

    def _final_tokens(self, tokens: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        return self.norm(self._run(self.blocks[-1], tokens, rope))

    def _project(self, normed: Tensor, which: str) -> Tensor:
        """One third of the last block's qkv layer, before attention."""
        qkv, third = self.blocks[-1].attn.qkv, _QKV[which]
        return functional.linear(normed, qkv.weight.chunk(3)[third], qkv.bias.chunk(3)[third])

    def _cls_attention(self, cls_query: Tensor, keys: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        (query,), (key,) = self._heads(cls_query, 1), self._heads(keys, 1)
        if rope is not None:  # which leaves the CLS token itself as it is
            key = _rotate(key, rope)
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return logits.softmax(-1)[:, :, 0, self._prefix :]

    def _heads(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """Split ``(B, T, count * D)`` into ``count`` tensors of ``(B, heads, T, D / heads)``."""
        return x.unflatten(2, (count, self._row.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _split_positions(positions: Tensor | None, row: Row) -> tuple[Tensor | None, Tensor | None]:
    """Positions of the CLS token, none where there are registers, and of the patches, none for DINOv3."""
    if positions is None:
        return None, None
    positions = positions.detach()
    return (None, positions) if row.registers else (positions[:, :1], positions[:, 1:])


def _merge_bias(attention: Any) -> None:
    """Give timm's Eva attention (DINOv3) the one bias of its qkv layer; its keys have none."""
    if attention.qkv.bias is None:
        bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
        attention.qkv.bias = nn.Parameter(bias)
        attention.q_bias = attention.k_bias = attention.v_bias = None


def _layer_scale(block: Any, which: int, branch: Tensor) -> Tensor:
    """Scale a branch; timm keeps the factors as a module in its ViT and as a parameter in Eva, and DINO has none."""
    if hasattr(block, f"gamma_{which}"):
        return branch * getattr(block, f"gamma_{which}")
    return getattr(block, f"ls{which}")(branch)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention. torch's fused one is slow in bfloat16 on a CPU; there a few rows are taken at a time."""
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return functional.scaled_dot_product_attention(q, k, v)
    # Contiguous: strided products take half as long again.
    q, k, v = (q * q.shape[-1] ** -0.5).contiguous(), k.contiguous().transpose(-1, -2), v.contiguous()
    rows = [(part @ k).softmax(-1) @ v for part in q.split(_CHUNK, dim=2)]
    return torch.cat(rows, dim=2)


def _rotary(h: int, w: int, head_width: int, prefix: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sines and cosines of DINOv3's rotary positions, ``(prefix + h * w, head_width)``; the prefix is not rotated."""
    rows = (torch.arange(h, device=device) + 0.5) / h * 2 - 1
    columns = (torch.arange(w, device=device) + 0.5) / w * 2 - 1
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    count = head_width // 4
    periods = _ROPE_BASE ** (torch.arange(count, device=device) / count)
    angles = (2 * math.pi * places[:, :, None] / periods).flatten(1).tile(2)
    angles = functional.pad(angles, (0, 0, prefix, 0))
    return angles.sin(), angles.cos()


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    sin, cos = rope
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


@contextlib.contextmanager
def _onednn_float32(device: torch.device) -> Iterator[None]:
    """Let oneDNN multiply float32 matrices on a CPU: twice as fast as MKL on AMD, and as exact where this is used.

    torch offers it only as the process-wide precision ``"medium"``, so it is set around the forward pass and put back;
    while it lasts, another thread's float32 products on a GPU would be TF32.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has set precisions backend by backend: leave them
        before = None
    if device.type != "cpu" or before is None or not _medium_is_exact():
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def _medium_is_exact() -> bool:
    """Whether this CPU keeps float32 accuracy at precision ``"medium"``: with AMX units it would round to bfloat16."""
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        error = (a @ b).double() - a.double() @ b.double()
    finally:
        torch.set_float32_matmul_precision(before)
    return bool(error.abs().max() < 1e-3)  # float32 is some 1e-5 off, bfloat16 some 1e-1
