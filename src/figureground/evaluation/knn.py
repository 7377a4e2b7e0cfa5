"""k nearest neighbours: how well features tell classes apart, without anything to train."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional


def knn_accuracy(
    features: Float[Tensor, "N D"],
    labels: Int64[Tensor, "N"],
    queries: Float[Tensor, "Q D"],
    expected: Int64[Tensor, "Q"],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of the queries whose neighbours vote for the right class.

    Each of the ``k`` features of greatest cosine votes for its class with ``exp(cosine / temperature)``.

    Args:
        features: What is known.
        labels: Classes of these, from 0.
        queries: What is asked.
        expected: Classes of these.
        k: Neighbours; all that are known, where there are fewer.
        temperature: The lower, the more the nearest ones count.

    Reference:
        Wu et al., Unsupervised feature learning via non-parametric instance discrimination, CVPR 2018, section 3.4, as
        used by Caron et al., ICCV 2021, section 4.1.
    """
    known = functional.normalize(features.float(), dim=1)
    right = 0
    # A block at a time: the products of all with all may not fit into memory.
    for some, wanted in zip(queries.split(1024), expected.split(1024), strict=True):
        cosines, nearest = (functional.normalize(some.float(), dim=1) @ known.T).topk(min(k, len(known)), dim=1)
        votes = torch.zeros(len(some), int(labels.max()) + 1, device=cosines.device)
        votes.scatter_add_(1, labels[nearest], ((cosines - 1) / temperature).exp())
        right += int((votes.argmax(1) == wanted).sum())
    return right / len(queries)
