"""MaskContrast's losses: pixels against the prototypes of objects, and the saliency of pixels."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

# From the tensor of this process to those of all processes, one after another along the first dimension.
Gather = Callable[[Tensor], Tensor]


def alone(tensor: Tensor) -> Tensor:
    """What a process by itself gathers."""
    return tensor


class PrototypeQueue(nn.Module):
    """The prototypes of earlier batches, the oldest replaced first; saved with the model.

    Any number may be added at once: the queue wraps around, and of more than it holds the last ones stay.

    Args:
        size: Prototypes held (MaskContrast: 128 at a batch of 64, 256 at 128).
        width: Length of a prototype.
        generator: Draws the unit vectors that it begins with.

    Attributes:
        prototypes: Of unit length.
        position: Where the next one goes.

    Reference:
        Van Gansbeke et al., ICCV 2021, section 3.3; the queue is MoCo's. Deviates: the published code needs a size that
        every batch divides.
    """

    prototypes: Float[Tensor, "K D"]
    position: Tensor

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        first = functional.normalize(torch.randn(size, width, generator=generator), dim=1)
        self.register_buffer("prototypes", first)
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, keys: Float[Tensor, "N D"]) -> None:
        """Take in the keys of a batch, of all processes; zeros, which stand for no object, are passed over.

        Args:
            keys: The same on every process, so that the queues stay the same.
        """
        size = len(self.prototypes)
        found = keys[keys.any(1)]
        places = (self.position + torch.arange(len(found), device=found.device)) % size
        self.prototypes[places[-size:]] = found[-size:].to(self.prototypes.dtype)
        self.position.copy_((self.position + len(found)) % size)


@torch.no_grad()
def prototypes_of(embedding: Float[Tensor, "B D H W"], masks: Bool[Tensor, "B H W"]) -> Float[Tensor, "B D"]:
    """The prototype of the object of each image: the direction of the sum of its pixels' directions.

    Returns:
        Of unit length; zeros where a mask is empty.
    """
    directions = functional.normalize(embedding, dim=1)
    return functional.normalize(torch.einsum("bdhw,bhw->bd", directions, masks.to(directions.dtype)), dim=1)


def contrastive_loss(
    query: Float[Tensor, "B D H W"],
    masks: Bool[Tensor, "B H W"],
    keys: Float[Tensor, "N D"],
    queue: Float[Tensor, "K D"],
    temperature: float = 0.5,
    gather: Gather = alone,
    rank: int = 0,
) -> Float[Tensor, ""]:
    """Tell for each pixel of an object which prototype is that of its own image.

    The classes are all keys and the queue. Each is weighted by ``1 / log(1.02 + p)`` where ``p`` is its share of all
    pixels, so that large objects do not drown small ones.

    Args:
        query: Embeddings of the pixels of this process' images.
        masks: Their objects.
        keys: Prototypes of the other view of the images of all processes, in their order; zeros: no object. These are
            no class, and the pixels of their images are left out.
        queue: Prototypes of other images.
        temperature: Of the softmax (MaskContrast: 0.5).
        gather: Brings the processes together.
        rank: Place of this process among them, from 0.

    Returns:
        Its mean over the processes is the loss of their images taken together. Without any pixel, 0.

    Reference:
        Van Gansbeke et al., Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals, ICCV 2021,
        equations 2 and 4; the weights are those of the published code (Paszke et al., ENet, 2016). Deviates: keys and
        shares are those of all processes, not of one GPU; a view without an object is no class.
    """
    batch, count = len(query), len(keys)
    own = slice(rank * batch, (rank + 1) * batch)
    there = keys.any(1)
    used = masks & there[own, None, None]
    pixels = functional.normalize(query, dim=1).permute(0, 2, 3, 1)[used]
    labels = torch.arange(own.start, own.stop, device=query.device)[:, None, None].expand_as(used)[used]

    logits = pixels @ torch.cat([keys, queue]).to(pixels.dtype).T / temperature
    absent = functional.pad(~there, (0, len(queue)), value=False)
    logits = logits.masked_fill(absent, -torch.inf)

    counts = gather(used.flatten(1).sum(1)).to(logits.dtype)
    weights = 1 / torch.log(1.02 + counts / counts.sum().clamp(min=1))
    # Only keys are ever right; a class of the queue needs no weight.
    each = weights[labels] * functional.cross_entropy(logits, labels, reduction="none")
    return each.sum() / (weights * counts).sum().clamp(min=1e-6) * (count / batch)


def saliency_loss(
    logits: Float[Tensor, "B H W"], masks: Bool[Tensor, "B H W"], gather: Gather = alone
) -> Float[Tensor, ""]:
    """Binary cross-entropy in which object and background weigh the same, the mean over pixels.

    A pixel of an object counts with the share of background in the whole batch, and the other way round.

    Args:
        logits: Of being an object.
        masks: The objects.
        gather: Brings the processes together; all have as many images.

    Returns:
        Its mean over the processes is the loss of their images taken together.

    Reference:
        Van Gansbeke et al., ICCV 2021, section 3.4, as published; the balance is that of Xie and Tu, HED, ICCV 2015.
    """
    share = gather(masks.to(logits.dtype).mean((1, 2))).mean()
    each = functional.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none")
    return (torch.where(masks, 1 - share, share) * each).mean()
