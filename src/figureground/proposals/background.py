"""Background: what is hard to reach from the border of the picture is an object. Needs no learned features.

Wei, Wen, Zhu, Sun: Geodesic saliency using background priors. ECCV 2012. Written from the paper; what is added to it
stands in the class.
"""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional

from figureground.config import Config
from figureground.ops.components import split_components
from figureground.ops.filters import gaussian_blur, otsu_threshold, to_unit_range
from figureground.ops.masks import mask_iou
from figureground.proposals.interface import Method, to_instances
from figureground.proposals.learned_figure import LearnedFigure
from figureground.refine import fill_holes
from figureground.saliency.colour import patch_lab
from figureground.saliency.geodesic import geodesic_distance
from figureground.saliency.robust import robust_background
from figureground.spectral import biased_cut
from figureground.structures import Instances, PatchFeatures


class BackgroundConfig(Config):
    """How figure is told from ground, and which further regions are proposed."""

    prior: Literal["geodesic", "robust"] = Field(
        default="geodesic",
        description="Background is near the border by geodesic distance (Wei et al.), or spread along it (Zhu et al.).",
    )
    feature_weight: float = Field(
        default=25.0,
        ge=0,
        description="Length of a feature vector beside colour, in Lab units (paper: 0, colour alone).",
    )
    blurs: tuple[float, ...] = Field(
        default=(1.0, 2.0),
        min_length=1,
        description="Smoothing before distances are measured, in patches; they are added.",
    )
    bottom: float = Field(
        default=0.3,
        ge=0,
        description="Toll for starting at the lower border, as a share of the largest distance (paper: 0).",
    )
    min_contrast: float = Field(
        default=10.0, ge=0, description="Largest distance, in Lab units, below which an image holds no object at all."
    )
    strength: float | None = Field(
        default=0.5,
        gt=0,
        description="Weight of the distances against the cut that sharpens them; null: no cut (paper).",
    )
    spatial_sigma: float = Field(
        default=0.25, gt=0, description="Reach of the cut's edges, as a share of the long side."
    )
    colour_sigma: float = Field(
        default=0.35,
        gt=0,
        description="Colour tolerance of the cut's edges, as a share of the median colour difference.",
    )
    learned: str | None = Field(
        default="embedded",
        description="Backbone and head whose figure joins the distances: `embedded`, which is in the package, or a run "
        "of `distil`; null: none, nothing learned at all (paper).",
    )
    learned_weight: float = Field(default=0.5, ge=0, description="How much that counts; the distances count 1.")
    threshold: float = Field(
        default=1.15, gt=0, description="Figure is what is above this multiple of Otsu's threshold."
    )
    regions: tuple[int, ...] = Field(
        default=(4, 8, 12),
        description="Further proposals: pieces of this many clusters of colour and place (paper: none).",
    )
    max_masks: int = Field(default=10, ge=1, le=1000, description="Objects an image at most (paper: 1).")
    min_score: float = Field(default=0.2, ge=0, le=1, description="Drop what is less sure, but for the main object.")
    max_overlap: float = Field(default=0.7, gt=0, le=1, description="IoU above which the less sure of two is dropped.")
    min_area: float = Field(default=0.004, ge=0, lt=1, description="Smallest object, as a share of the patches.")


_PAPER = BackgroundConfig(
    feature_weight=0,
    blurs=(0.0,),
    bottom=0,
    strength=None,
    learned=None,
    threshold=1,
    regions=(),
    max_masks=1,
    min_contrast=0,
)


class Background(Method):
    """Geodesic saliency, sharpened by a normalised cut that it biases, and colour regions for the smaller objects.

    Reference:
        Wei et al., ECCV 2012, section 3. ``reference`` is the paper's saliency on patches, thresholded by Otsu's rule,
        best component; ``robust`` the same on the saliency of Zhu et al., CVPR 2014. ``default`` adds to the first,
        each by measurement: patch features beside colour; two blurs; a toll at the lower border, where photographed
        objects reach out of the picture; a biased normalised cut (Maji et al., CVPR 2011); what a small ViT takes for
        figure that has learned from such maps of other pictures (``unlearned``: all but this); and pieces of colour
        clusters, ranked by how they stand out from the ring around them and the ground.
    """

    PRESETS: ClassVar = {
        "default": BackgroundConfig(),
        "unlearned": BackgroundConfig(learned=None),
        "reference": _PAPER,
        "robust": _PAPER.replace(prior="robust"),
    }
    NEEDS_IMAGES: ClassVar = True
    config: BackgroundConfig

    def __init__(self, config: BackgroundConfig) -> None:
        super().__init__(config)
        self._learned = LearnedFigure(config.learned) if config.learned is not None and config.learned_weight else None

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`.

        Raises:
            ValueError: If ``images`` is not given.
        """
        if images is None:
            raise ValueError("The method `background` looks at pixels: give `images` beside the features.")
        h, w = features.values.shape[1:3]
        padded = functional.pad(
            images, (0, w * features.patch_size - images.shape[3], 0, h * features.patch_size - images.shape[2])
        )
        lab = patch_lab(padded, features.patch_size)
        figure = self._figure(padded, lab, features)
        bright = figure > (self.config.threshold * otsu_threshold(figure))[:, None, None]
        return [self._instances(*one) for one in zip(figure, bright, lab, strict=True)]

    def _figure(
        self, images: Float[Tensor, "B 3 H W"], lab: Float[Tensor, "B 3 h w"], features: PatchFeatures
    ) -> Float[Tensor, "B h w"]:
        """How much each patch is figure, in [0, 1]."""
        config = self.config
        if config.prior == "robust":
            # Its cost grows with the square of the patches: twice as large ones, a sixteenth of it.
            coarse = 1 - robust_background(images, 2 * features.patch_size)
            size = (lab.shape[2], lab.shape[3])
            figure = to_unit_range(functional.interpolate(coarse[:, None], size=size, mode="bilinear")[:, 0])
        else:
            figure = self._geodesic(lab, features.values.float())
        if config.strength is not None:
            figure = to_unit_range(to_unit_range(self._sharpened(figure, lab)) + figure)
        if self._learned is None:
            return figure
        known = functional.interpolate(self._learned(images)[:, None], size=figure.shape[1:], mode="bilinear")[:, 0]
        mixed = (figure + config.learned_weight * known) / (1 + config.learned_weight)
        # Where nothing stands out from the border at all there is no figure, whatever was learned.
        return torch.where(figure.amax((1, 2), keepdim=True) > 0, mixed, figure)

    def _geodesic(self, lab: Float[Tensor, "B 3 h w"], values: Float[Tensor, "B h w D"]) -> Float[Tensor, "B h w"]:
        """Distance from the border, over all blurs, in [0, 1]."""
        config = self.config
        channels = lab
        if config.feature_weight:
            centred = values - values.mean((1, 2), keepdim=True)
            length = centred.square().sum(-1, keepdim=True).mean((1, 2), keepdim=True).sqrt()
            scaled = centred * (config.feature_weight / length.clamp(min=1e-6))
            channels = torch.cat([lab, scaled.permute(0, 3, 1, 2)], 1)
        distances = [geodesic_distance(gaussian_blur(channels, blur), config.bottom) for blur in config.blurs]
        figure = to_unit_range(torch.stack([to_unit_range(distance) for distance in distances]).sum(0))
        # Where even the farthest patch is near, there is noise and no figure.
        return torch.where(distances[0].amax((1, 2), keepdim=True) >= config.min_contrast, figure, 0.0)

    def _sharpened(self, figure: Float[Tensor, "B h w"], lab: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B h w"]:
        """The biased cut of a graph of colour and place, on blocks of 2 x 2 patches: a sixteenth of the edges."""
        h, w = figure.shape[1:]
        both = torch.cat([lab, figure[:, None]], 1)
        blocks = functional.avg_pool2d(both, 2, ceil_mode=True, count_include_pad=False)
        rows, columns = blocks.shape[2:]
        flat = blocks.flatten(2).mT
        colour = torch.cdist(flat[..., :3], flat[..., :3], compute_mode="donot_use_mm_for_euclid_dist")
        place = _places(rows, columns, max(rows, columns), flat)
        tolerance = self.config.colour_sigma * colour.flatten(1).median(1).values
        affinity = torch.exp(
            -colour.square() / (2 * tolerance.clamp(min=1)[:, None, None] ** 2)
            - torch.cdist(place, place).square() / (2 * self.config.spatial_sigma**2)
        )
        cut = biased_cut(affinity, flat[..., 3], self.config.strength or 1.0)
        large = functional.interpolate(cut.reshape(-1, 1, rows, columns), scale_factor=2, mode="bilinear")
        return large[:, 0, :h, :w]

    def _instances(
        self, figure: Float[Tensor, "h w"], bright: Bool[Tensor, "h w"], lab: Float[Tensor, "3 h w"]
    ) -> Instances:
        least = max(1.0, self.config.min_area * figure.numel())
        masks, _ = split_components(bright[None], least)
        if len(masks) == 0 and not bool(figure.any()):
            return to_instances([], [], figure)  # nothing stands out from the border
        if len(masks) == 0:
            masks = (figure >= figure.amax())[None]
        masks = fill_holes(masks)
        # The one with most figure in it is the object of the picture: surer than all others, whatever their contrast.
        main = (masks * figure).sum((1, 2)).argmax()
        scores = 0.5 * self._contrast(masks, figure[None])
        scores[main] += 0.5
        if self.config.regions:
            pieces = fill_holes(self._pieces(lab, least))
            ranks = (0.4 * self._stands_out(pieces, lab) * _means(pieces, figure[None])[:, 0]).clamp(max=0.5)
            masks, scores = torch.cat([masks, pieces]), torch.cat([scores, ranks])
        kept: list[int] = []
        overlaps = mask_iou(masks, masks)
        for index in scores.argsort(descending=True, stable=True).tolist():
            apart = bool((overlaps[index, kept] <= self.config.max_overlap).all())
            sure = index == int(main) or float(scores[index]) >= self.config.min_score
            if len(kept) < self.config.max_masks and apart and sure:
                kept.append(index)
        return to_instances(list(masks[kept]), scores[kept].tolist(), figure)

    def _pieces(self, lab: Float[Tensor, "3 h w"], least: float) -> Bool[Tensor, "M h w"]:
        """Connected pieces of clusters of smoothed colour and place."""
        h, w = lab.shape[1:]
        smooth = gaussian_blur(lab[None], 1.0)[0].flatten(1).T / 10
        points = torch.cat([smooth, 2 * _places(h, w, 1, smooth) / torch.tensor([h, w], device=lab.device)], 1)
        rows = points.cpu().double().numpy()
        maps = []
        for count in self.config.regions:
            if count <= len(rows):
                start: Any = _spread(points, count).cpu().double().numpy()
                fitted: Any = KMeans(count, init=start, max_iter=10).fit(rows)
                labels = torch.from_numpy(fitted.labels_).to(lab.device).reshape(h, w)
                maps.append(labels[None] == torch.arange(count, device=lab.device)[:, None, None])
        if not maps:
            return torch.zeros((0, h, w), dtype=torch.bool, device=lab.device)
        return split_components(torch.cat(maps), least)[0]

    @staticmethod
    def _contrast(masks: Bool[Tensor, "M h w"], figure: Float[Tensor, "1 h w"]) -> Float[Tensor, "M"]:
        """Mean of the figure inside less its mean in the ring around, at least 0."""
        inside, around = (_means(area, figure)[:, 0] for area in (masks, _rings(masks)))
        return (inside - around).clamp(0, 1)

    @staticmethod
    def _stands_out(masks: Bool[Tensor, "M h w"], lab: Float[Tensor, "3 h w"]) -> Float[Tensor, "M"]:
        """Difference of mean colour to the ring around, against the spread of both, in [0, 2]."""
        means, spreads = [], []
        for area in (masks, _rings(masks)):
            mean = _means(area, lab)
            means.append(mean)
            spreads.append((_means(area, lab.square()) - mean.square()).clamp(min=0).sum(1).sqrt())
        return ((means[0] - means[1]).norm(dim=1) / (5 + spreads[0] + spreads[1])).clamp(max=2)


def _places(h: int, w: int, unit: float, like: Tensor) -> Float[Tensor, "N 2"]:
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([rows.flatten(), columns.flatten()], 1).to(like) / unit


def _spread(points: Float[Tensor, "N D"], count: int) -> Float[Tensor, "K D"]:
    """Points far from each other, the first nearest to the mean: a start without chance."""
    centres = [points[(points - points.mean(0)).square().sum(1).argmin()]]
    nearest = (points - centres[0]).square().sum(1)
    for _ in range(count - 1):
        centres.append(points[nearest.argmax()])
        nearest = torch.minimum(nearest, (points - centres[-1]).square().sum(1))
    return torch.stack(centres)


def _rings(masks: Bool[Tensor, "M h w"]) -> Bool[Tensor, "M h w"]:
    """What surrounds each mask, 0.3 of the side of a square of its area wide; the mask itself where nothing does."""
    rings = torch.zeros_like(masks)
    widths = (0.3 * masks.flatten(1).sum(1).sqrt()).round().clamp(min=1).long()
    for width in widths.unique().tolist():
        chosen = widths == width
        grown = masks[chosen][:, None].float()
        for kernel, padding in (((2 * width + 1, 1), (width, 0)), ((1, 2 * width + 1), (0, width))):
            grown = functional.max_pool2d(grown, kernel, stride=1, padding=padding)
        rings[chosen] = (grown[:, 0] > 0) & ~masks[chosen]
    return torch.where(rings.flatten(1).any(1)[:, None, None], rings, masks)


def _means(areas: Bool[Tensor, "M h w"], maps: Float[Tensor, "C h w"]) -> Float[Tensor, "M C"]:
    flat = areas.flatten(1).to(maps.dtype)
    return flat @ maps.flatten(1).T / flat.sum(1, keepdim=True).clamp(min=1)
