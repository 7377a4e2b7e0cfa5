"""Every backbone there is, one row each. Text only: neither torch nor timm is imported here.

A new backbone of a known family is one more row. The licence is that of the weights, read from the repository that
publishes them; the project ships those of ``embedded`` alone.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from figureground.backbones import own
from figureground.errors import UsageError

# What `figureground.backbones.load` can return, and how precisely; here for configurations, which do not import torch.
Features = Literal["keys", "queries", "values", "tokens"]
Precision = Literal["fp32", "bf16", "auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One backbone.

    Attributes:
        name: What a person types.
        family: Whose weights and whose rule for positions: names the conversion in ``weights``.
        timm_id: timm's definition of the architecture; ``None`` for a backbone without weights.
        patch_size: Side of a patch, in pixels.
        width: Length of a feature vector.
        heads: Attention heads; 0 where there is no attention.
        registers: Register tokens beside the CLS token.
        mean: Of the RGB images it was trained on, in [0, 1].
        std: Of the same.
        licence: Of the weights.
        paper: Where it was published.
        file: Name of the official file of weights; the path of one of our own.
        url: Where a person gets that file.
        hub_id: Repository on the Hugging Face hub with the same weights in timm's names; ``None`` where there is none.
        hub_revision: Commit of that repository. ``None``, its newest, in every row: the hub could not be reached from
            where this catalogue was written, and a commit that nobody looked up is not a pin.
        sha256: First digits of the SHA-256 of ``file``, or all of them. The official DINO and DINOv2 names carry none;
            DINOv3's end in it, by the convention of ``torch.hub``.
        features: Which of its features measured best here; what is used unless others are asked for.
    """

    name: str
    family: Literal["dino", "dinov2", "dinov3", "own", "handcrafted"]
    timm_id: str | None = None
    patch_size: int
    width: int
    heads: int = 0
    registers: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    licence: str = "Apache-2.0"
    paper: str
    file: str | None = None
    url: str | None = None
    hub_id: str | None = None
    hub_revision: str | None = None
    sha256: str | None = None
    features: Features = "keys"

    @property
    def learned(self) -> bool:
        """Whether it needs weights."""
        return self.family != "handcrafted"


_SIZES = {"small": ("s", 384, 6), "base": ("b", 768, 12)}


def _dino(name: str, size: str, patch_size: int, stem: str, on_hub: bool = True) -> Row:
    _, width, heads = _SIZES[size]
    timm_id = f"vit_{size}_patch{patch_size}_224.dino"
    return Row(
        name=name,
        family="dino",
        timm_id=timm_id,
        patch_size=patch_size,
        width=width,
        heads=heads,
        paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021",
        file=f"{stem}.pth",
        url=f"https://dl.fbaipublicfiles.com/dino/{stem}/{stem}.pth",
        hub_id=f"timm/{timm_id}" if on_hub else None,
    )


def _dinov2(size: str, registers: int) -> Row:
    letter, width, heads = _SIZES[size]
    paper = "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024"
    if registers:
        paper += "; registers: Darcet et al., Vision Transformers Need Registers, ICLR 2024"
    reg = f"_reg{registers}" if registers else ""
    timm_id = f"vit_{size}_patch14{reg}_dinov2.lvd142m"
    file = f"dinov2_vit{letter}14{reg}_pretrain.pth"
    return Row(
        name=f"dinov2_{letter}14" + ("_reg" if registers else ""),
        family="dinov2",
        timm_id=timm_id,
        patch_size=14,
        width=width,
        heads=heads,
        registers=registers,
        paper=paper,
        file=file,
        url=f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{letter}14/{file}",
        hub_id=f"timm/{timm_id}",
    )


def _dinov3(size: str, sha256: str) -> Row:
    letter, width, heads = _SIZES[size]
    # timm publishes each model twice; "qkvb" is the one that keeps the biases of the official file.
    timm_id = f"vit_{size}_patch16_dinov3_qkvb.lvd1689m"
    return Row(
        name=f"dinov3_{letter}16",
        family="dinov3",
        timm_id=timm_id,
        patch_size=16,
        width=width,
        heads=heads,
        registers=4,
        licence="DINOv3 License",
        paper="Siméoni et al., DINOv3, arXiv 2508.10104, 2025",
        file=f"dinov3_vit{letter}16_pretrain_lvd1689m-{sha256}.pth",
        # Behind a form: the address of the file itself is sent by mail.
        url="https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/",
        hub_id=f"timm/{timm_id}",
        sha256=sha256,
    )


_ROWS = (
    _dino("dino_s16", "small", 16, "dino_deitsmall16_pretrain"),
    # Two ViT-S/8 are in circulation. HASSOD uses the first; CutLER, FOUND, CuVLER and ProMerge the second.
    _dino("dino_s8", "small", 8, "dino_deitsmall8_pretrain"),
    _dino("dino_s8_300ep", "small", 8, "dino_deitsmall8_300ep_pretrain", on_hub=False),
    _dino("dino_b16", "base", 16, "dino_vitbase16_pretrain"),
    _dino("dino_b8", "base", 8, "dino_vitbase8_pretrain"),
    _dinov2("small", registers=0),
    _dinov2("small", registers=4),
    _dinov2("base", registers=0),
    _dinov2("base", registers=4),
    _dinov3("small", "08c60483"),
    _dinov3("base", "73cec8be"),
    Row(
        name="embedded",
        family="own",
        patch_size=8,
        width=192,
        heads=3,
        paper="docs/embedded.md: a small ViT that learned from the masks of `background`",
        file=str(own.EMBEDDED / own.FILE),
        sha256="2c6ca7d06ecccd7b81c5c732b4d78bb646382ffde5a3d512a5cf0ca085a3432c",
        features="tokens",
    ),
    Row(
        name="handcrafted",
        family="handcrafted",
        patch_size=8,
        width=48,
        licence="none needed: there are no weights",
        paper="figureground.backbones.handcrafted names the papers of its descriptors",
    ),
)

CATALOGUE: dict[str, Row] = {row.name: row for row in _ROWS}


def find(name: str) -> Row:
    """Return the row of a backbone: of the catalogue, or of the file that `figureground pretrain` wrote.

    Args:
        name: A row's, or a path: of a ``backbone.safetensors``, or of a run that has one.

    Raises:
        UsageError: If there is none of that name; the message holds the nearest one and all of them.
        WeightsError: If it is a path, and no such backbone is there.

    Example:
        >>> find("dino_s16").patch_size
        16
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    file = own.find_file(name)
    if file is None:
        near = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"Unknown backbone {name!r}.{hint}",
            f"Backbones: {', '.join(CATALOGUE)}; or the run of a `figureground pretrain`.",
        )
    return _own(own.read(file))


def _own(backbone: own.OwnBackbone) -> Row:
    return Row(
        name=f"own-{backbone.digest}",
        family="own",
        patch_size=backbone.shape.patch_size,
        width=backbone.shape.width,
        heads=backbone.shape.heads,
        mean=backbone.mean,
        std=backbone.std,
        licence=str(backbone.facts.get("licence", "not stated")),
        paper="Caron et al., ICCV 2021; see figureground.training.dino",
        file=str(backbone.path),
    )
