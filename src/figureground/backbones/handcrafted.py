"""Hand-made patch features, for when there are no weights: colour, orientation and texture of a patch and around it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from figureground.structures import PatchFeatures

_ORIENTATIONS = 8
_RANKS = 9
# Windows, in patches: the patch itself and its surroundings.
_WINDOWS = (1, 3)
# A spread of features below this is noise, not structure: a fraction of the range of colour, or of a histogram.
_FLOOR = 0.02


class Handcrafted(nn.Module):
    """Features of colour, orientation and texture; no weights, nothing random, nothing learned.

    For each patch, and for the window of 3 x 3 patches around it: mean and standard deviation of opponent colour,
    histogram of gradient orientation with the gradient's energy, and a histogram of how many of its 8 neighbours each
    pixel outshines. Each of the three groups is centred and scaled to unit variance per image, so that each weighs
    the same in a cosine.

    Args:
        patch_size: Side of a patch, in pixels.

    Attributes:
        patch_size: Side of a patch, in pixels.
        width: Length of a feature vector.
        name: ``"handcrafted"``, as in the catalogue of backbones.

    Reference:
        Colour: Geusebroek et al., PAMI 2001 (Gaussian opponent colour model). Orientation: Dalal and Triggs, CVPR 2005.
        Texture: the rotation-invariant part of Ojala et al., PAMI 2002 (local binary patterns), as ranks.
    """

    name = "handcrafted"

    def __init__(self, patch_size: int = 8) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size is positive, got {patch_size}.")
        self.patch_size = patch_size
        self.width = len(_WINDOWS) * (6 + _ORIENTATIONS + 1 + _RANKS)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> PatchFeatures:
        """Describe the patches of a batch of images.

        Args:
            images: RGB in [0, 1]; height and width are multiples of the patch size.

        Returns:
            Features of zero mean over each image; all zero where the image is constant.

        Raises:
            ValueError: If there are no pixels, or a side is not a multiple of the patch size.
        """
        height, width = images.shape[2:]
        if 0 in images.shape or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"Handcrafted features need sides that are multiples of {self.patch_size} px, got {height}x{width}: "
                "resize or pad the images first."
            )
        opponent = _opponent(images.float())
        groups = (self._colour(opponent), self._orientation(opponent), self._texture(opponent[:, :1]))
        values = torch.cat([_standardise(group) for group in groups], dim=1)
        return PatchFeatures(values.permute(0, 2, 3, 1).contiguous(), self.patch_size, (height, width))

    def _colour(self, opponent: Tensor) -> Tensor:
        moments = self._windows(torch.cat([opponent, opponent.square()], dim=1))
        means = [window[:, :3] for window in moments]
        spreads = [(window[:, 3:] - window[:, :3].square()).clamp(min=1e-12).sqrt() for window in moments]
        return torch.cat([*means, *spreads], dim=1)

    def _orientation(self, opponent: Tensor) -> Tensor:
        padded = functional.pad(opponent, (1, 1, 1, 1), mode="replicate")
        across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
        down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
        # The double angle makes opposite directions one orientation, and lets the channels add up (structure tensor).
        energy = (across.square() + down.square()).sum(dim=1)
        cosine = (across.square() - down.square()).sum(dim=1)
        sine = 2 * (across * down).sum(dim=1)
        position = torch.atan2(sine, cosine) * (_ORIENTATIONS / (2 * torch.pi)) % _ORIENTATIONS
        magnitude = energy.sqrt()
        bins = torch.arange(_ORIENTATIONS, device=opponent.device).view(1, -1, 1, 1)
        offset = (position[:, None] - bins).abs()
        share = (1 - torch.minimum(offset, _ORIENTATIONS - offset)).clamp(min=0)
        parts = []
        for window in self._windows(torch.cat([share * magnitude[:, None], magnitude[:, None]], dim=1)):
            total = window[:, -1:]
            # An edge strength of 0.01 is noise; the square root evens out strong and weak bins (Hellinger).
            parts += [(window[:, :-1] / (total + 0.01)).sqrt(), (total + 0.01).log() / 4]
        return torch.cat(parts, dim=1)

    def _texture(self, luminance: Tensor) -> Tensor:
        height, width = luminance.shape[2:]
        padded = functional.pad(luminance, (1, 1, 1, 1), mode="replicate")
        rank = torch.zeros_like(luminance)
        for i in range(3):
            for j in range(3):
                if (i, j) != (1, 1):
                    # A margin of one grey level keeps flat regions at one rank.
                    rank += luminance > padded[:, :, i : i + height, j : j + width] + 1 / 255
        ranks = torch.arange(_RANKS, device=luminance.device).view(1, -1, 1, 1)
        return torch.cat([window.sqrt() for window in self._windows((rank == ranks).float())], dim=1)

    def _windows(self, maps: Tensor) -> list[Tensor]:
        patches = functional.avg_pool2d(maps, self.patch_size)
        return [
            functional.avg_pool2d(patches, side, stride=1, padding=side // 2, count_include_pad=False)
            for side in _WINDOWS
        ]


def _opponent(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Luminance, blue-yellow and red-green of the gamma-coded image, spanning 1, 2 and 2."""
    red, green, blue = images.clamp(0, 1).unbind(dim=1)
    return torch.stack([(red + green + blue) / 3, (red + green) / 2 - blue, red - green], dim=1)


def _standardise(group: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
    """Zero mean per dimension, and a mean squared length of 1 per image, over the patches."""
    centred = group - group.mean(dim=(2, 3), keepdim=True)
    length = centred.square().sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True).sqrt()
    return centred / length.clamp(min=_FLOOR)
