"""A linear layer learned on features that stay as they are, the epoch chosen on images held out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from figureground.config import Config

# Pixels at once where nothing is learned.
_PART = 65_536


class LinearProbeConfig(Config):
    """How the layer is learned."""

    epochs: int = Field(default=60, ge=1, le=10_000, description="Over the images that are learned from (paper: 60).")
    batch_size: int = Field(default=16, ge=1, le=10_000, description="Images (paper: 16).")
    rate: float = Field(default=0.1, gt=0, description="Of SGD with momentum 0.9 (paper: 0.1).")
    drop: int = Field(default=25, ge=1, description="Epoch from which on the rate is a tenth (paper: 25).")
    weight_decay: float = Field(default=1e-4, ge=0, description="Of SGD.")
    holdout: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the images that choose the epoch (paper: those of val do)."
    )


class PixelSamples:
    """Features of pixels, in half precision, with their labels; of each image in several views.

    Args:
        vectors: Features.
        labels: Classes.
        images: Of each pixel, from 0.
        views: Of each, from 0.

    Attributes:
        count: Of images.
    """

    def __init__(
        self,
        vectors: Float[Tensor, "N D"],
        labels: Int64[Tensor, "N"],
        images: Int64[Tensor, "N"],
        views: Int64[Tensor, "N"],
    ) -> None:
        self.vectors, self.labels = vectors.half(), labels
        self.count, self.views = int(images.max()) + 1, int(views.max()) + 1
        self._keys, order = (images * self.views + views).sort(stable=True)
        self._order = order

    def of(self, image: int, view: int) -> Int64[Tensor, "P"]:
        """Where the pixels of a view are."""
        key = torch.tensor([image * self.views + view, image * self.views + view + 1])
        first, last = torch.searchsorted(self._keys, key).tolist()
        return self._order[first:last]


@dataclass(frozen=True, slots=True, eq=False)
class LinearProbe:
    """A layer that was learned.

    Attributes:
        weight: Of features as they are.
        bias: Likewise.
        curve: Mean loss of each epoch, and the score of the images held out.
        epoch: From 1: the one that the layer is of.
        held_out: How many images chose it.
    """

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, "C"]
    curve: list[tuple[float, float]]
    epoch: int
    held_out: int


def learn(
    config: LinearProbeConfig,
    samples: PixelSamples,
    classes: int,
    measure: Callable[[Int64[Tensor, "N"], Int64[Tensor, "N"]], float],
    generator: torch.Generator,
) -> LinearProbe:
    """Learn a linear layer that tells classes.

    Args:
        config: How.
        samples: Of two images or more.
        classes: How many there are.
        measure: The score of predicted classes, given the true ones.
        generator: Decides which images are held out, the order, and the first weights.

    Returns:
        The layer of the epoch with the highest score, of several the first.

    Reference:
        Van Gansbeke et al., Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals, ICCV 2021, section
        4.2, and the published code. Deviates: the epoch is chosen on images held out of training, not on those that
        are measured; the features are standardised, which a linear layer can undo; a sample of pixels is learned from.
    """
    order = torch.randperm(samples.count, generator=generator).tolist()
    held = min(max(1, round(config.holdout * samples.count)), samples.count - 1)
    chosen = torch.cat([samples.of(image, 0) for image in order[:held]])
    train = order[held:]
    mean, std = _moments(samples, torch.cat([samples.of(at, view) for at in train for view in range(samples.views)]))
    weight = 0.01 * torch.randn(classes, len(mean), generator=generator)
    weight, bias = weight.requires_grad_(), torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.SGD([weight, bias], config.rate, momentum=0.9, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [config.drop])

    def logits(places: Int64[Tensor, "P"]) -> Float[Tensor, "P C"]:
        return functional.linear((samples.vectors[places].float() - mean) / std, weight, bias)

    curve: list[tuple[float, float]] = []
    best: tuple[int, Tensor, Tensor] | None = None
    for epoch in range(1, config.epochs + 1):
        losses = []
        shuffled = [train[index] for index in torch.randperm(len(train), generator=generator).tolist()]
        views = torch.randint(samples.views, (len(train),), generator=generator).tolist()
        for first in range(0, len(train), config.batch_size):
            batch = slice(first, first + config.batch_size)
            places = torch.cat([samples.of(*pair) for pair in zip(shuffled[batch], views[batch], strict=True)])
            if not len(places):
                # Views of which nothing counts.
                continue
            loss = functional.cross_entropy(logits(places), samples.labels[places])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        schedule.step()
        with torch.no_grad():
            found = torch.cat([logits(part).argmax(1) for part in chosen.split(_PART)])
        score = measure(found, samples.labels[chosen])
        if best is None or score > max(held_out for _, held_out in curve):
            best = epoch, weight.detach().clone(), bias.detach().clone()
        curve.append((sum(losses) / max(len(losses), 1), score))
    assert best is not None
    # Of features as they are.
    folded = best[1] / std
    return LinearProbe(folded, best[2] - folded @ mean, curve, best[0], held)


def _moments(samples: PixelSamples, places: Int64[Tensor, "P"]) -> tuple[Float[Tensor, "D"], Float[Tensor, "D"]]:
    """Mean and deviation; a feature that never changes has the deviation 1."""
    total, squares = torch.zeros(2, samples.vectors.shape[1], dtype=torch.float64)
    for part in places.split(_PART):
        values = samples.vectors[part].double()
        total += values.sum(0)
        squares += values.square().sum(0)
    mean = total / len(places)
    std = (squares / len(places) - mean**2).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-6, std, 1).float()
