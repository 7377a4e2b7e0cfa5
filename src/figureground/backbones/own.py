"""Backbones of our own: what `figureground pretrain` learns, in one file that says how to build it.

``backbone.safetensors`` holds weights in timm's names and, under the one metadata key ``figureground_backbone``, a JSON
object: the fields of :class:`Shape`, ``mean`` and ``std`` of the RGB images in [0, 1] that it takes, ``version``, and
where it comes from. Torch and timm are imported only to build; reading what a file says needs neither.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from figureground.errors import WeightsError

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
FILE = "backbone.safetensors"
# The run of `figureground distil` that comes with the package: its backbone and its head.
EMBEDDED = Path(__file__).parent / "embedded"
_KEY = "figureground_backbone"
_REMEDY = "A backbone is made by `figureground pretrain PHOTOS --out RUN`: give RUN, or RUN/backbone.safetensors."

Stem = Literal["patch", "conv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A vision transformer: one CLS token, no registers, learned positions.

    Attributes:
        patch_size: Side of a patch, px.
        image_size: Side of the images that positions are learned for, px.
        width: Length of a token.
        depth: Blocks.
        heads: Of attention; they divide the width.
        stem: How patches become tokens: one convolution, or a few of stride 2 (Xiao et al., NeurIPS 2021).
    """

    patch_size: int
    image_size: int
    width: int
    depth: int
    heads: int
    stem: Stem = "patch"

    def build(self, drop_path: float = 0.0) -> "nn.Module":
        """Timm's model, without a classifier, for images of any size in whole patches.

        Positions are brought to other sizes bicubically and antialiased. First weights are drawn from torch's own
        generator.

        Raises:
            ValueError: If the sizes do not fit together.
        """
        from timm.models.vision_transformer import VisionTransformer

        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} does not divide among {self.heads} heads")
        stem: dict[str, Any] = {"embed_layer": _conv_stem} if self.stem == "conv" else {}
        return VisionTransformer(
            img_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            num_classes=0,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
            **stem,
        )


def _conv_stem(*, patch_size: int, img_size: int, embed_dim: int, **embedding: Any) -> "nn.Module":
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.models.vision_transformer_hybrid import ConvStem
    from torch import nn

    depth = patch_size.bit_length() - 1
    if patch_size != 2**depth or depth < 2:
        raise ValueError(f"a stem of convolutions halves the side: patches are 4, 8, 16 ... px, not {patch_size}")
    channels = tuple(embed_dim >> (depth - 1 - level) for level in range(depth))
    stem: Any = ConvStem(depth=depth, channels=channels, stride=(2,) * depth, padding=1, act_layer=nn.GELU)
    side = img_size // patch_size
    # timm would ask the stem for its width and size; it has no words for them.
    stem.num_features = embed_dim
    return HybridEmbed(
        stem,
        img_size=img_size,
        feature_size=(side, side),
        feature_ratio=patch_size,
        embed_dim=embed_dim,
        proj=False,
        **embedding,
    )


@dataclass(frozen=True, slots=True)
class OwnBackbone:
    """What a file says of itself.

    Attributes:
        path: The file.
        shape: How to build it.
        mean: Of the RGB images it takes, in [0, 1].
        std: Of the same.
        facts: Everything in its metadata: recipe, steps, images, licence ...
        digest: First 12 digits of the SHA-256 of the file: its name, and what a head that reads its features knows.
    """

    path: Path
    shape: Shape
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    facts: dict[str, Any]
    digest: str


def find_file(name: str) -> Path | None:
    """The file that a name means, if it is a path: of weights, or of a run that has them."""
    path = Path(os.path.expanduser(name))
    if path.suffix == ".safetensors":
        return path
    return path / FILE if (path / FILE).is_file() else None


@cache
def read(path: Path) -> OwnBackbone:
    """What a file of weights says of itself; the weights themselves are not read.

    Raises:
        WeightsError: If there is no such file, or it is not what `figureground pretrain` writes.
    """
    import safetensors

    if not path.is_file():
        raise WeightsError(f"No backbone at {path}.", _REMEDY)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    except Exception as error:  # damaged bytes make the reader raise what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{path} cannot be read as a backbone ({reason}).", _REMEDY) from error
    if _KEY not in metadata:
        raise WeightsError(f"{path} holds weights, but does not say how to build their backbone.", _REMEDY)
    try:
        facts = json.loads(metadata[_KEY])
        if facts["version"] != VERSION:
            raise WeightsError(
                f"{path} is a backbone of version {facts['version']}; this program reads version {VERSION}.",
                "Use the version of figureground that made it.",
            )
        shape = Shape(**{field.name: facts[field.name] for field in fields(Shape)})
        return OwnBackbone(path, shape, _three(facts["mean"]), _three(facts["std"]), facts, digest)
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} does not say how to build its backbone ({reason}).", _REMEDY) from error


def describe(shape: Shape, facts: dict[str, Any]) -> dict[str, str]:
    """The metadata of a file.

    Args:
        shape: How to build it.
        facts: ``mean``, ``std`` and where it comes from; plain values.
    """
    # One entry: safetensors writes several in an order that changes, and the same weights are to be the same bytes.
    return {_KEY: json.dumps({"version": VERSION, **asdict(shape), **facts})}


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
