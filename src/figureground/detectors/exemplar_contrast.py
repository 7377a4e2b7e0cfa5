"""Exemplar-FreeSOLO's contrast: what an instance is like is drawn to the exemplars it resembles, and from the others.

Ishtiak, En, Guo: Exemplar-FreeSOLO: Enhancing unsupervised instance segmentation with exemplars. CVPR 2023, the
exemplar embedding contrastive module. No code of it has been published.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from figureground.config import Config


class ExemplarContrastConfig(Config):
    """The contrast and its weight; of the total loss' others, gamma is ``weak.average`` and mu ``embedding_weight``.

    The thresholds were chosen by the cosines of 929 objects of 128 photographs of COCO, by their handcrafted features,
    to the centres of 20 clusters of them: seven of ten objects have a positive, of these each two on the average, and
    three of four pairs are negative.
    """

    weight: float = Field(default=1.3, ge=0, description="Of the loss, lambda in the paper (paper: 1.3, its best).")
    alpha: float = Field(
        default=0.7,
        ge=-1,
        le=1,
        description="Exemplars whose cosine is above this are positives (paper: not published; chosen here).",
    )
    beta: float = Field(
        default=0.5,
        ge=-1,
        le=1,
        description="Exemplars whose cosine is below this are negatives (paper: not published; chosen here).",
    )
    tau: float = Field(default=0.1, gt=0, description="Temperature (paper: not published; chosen here).")
    reduction: Literal["sum", "mean"] = Field(
        default="mean",
        description="Over the embeddings: the `mean` of those that have a positive, or their `sum`, which grows with "
        "the batch and drowns the other losses (paper: sum).",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "ExemplarContrastConfig":
        if self.beta > self.alpha:
            raise ValueError(
                f"Configuration key 'beta' is {self.beta:g} and 'alpha' is {self.alpha:g}: an exemplar in between "
                "would be both a negative and a positive. Choose beta no greater than alpha."
            )
        return self


def exemplar_contrast(
    embeddings: Float[Tensor, "N D"], pool: Float[Tensor, "K D"], config: ExemplarContrastConfig
) -> Float[Tensor, ""]:
    """L_eec: minus the logarithm of the share of a positive exemplar beside the mean of the negative ones.

    Args:
        embeddings: Of the instances that are learned; of any length.
        pool: The exemplars, one pivot for each hidden category; of any length.
        config: Which exemplars are positive and negative. Its weight is not in the result.

    Returns:
        In float32 or better, whatever the arithmetic around. An embedding without a positive is left out; one without a
        negative has nothing to be told from and costs nothing. Where nothing counts 0, still connected.

    Reference:
        Ishtiak et al., CVPR 2023, L_eec: sum over n of -log(pos / (pos + neg)), where pos = exp(<I_n, I_pos> / tau) and
        neg is the mean over the negatives of exp(<I_n, I_e> / tau). Chosen here, for it is not published: the mean of
        the log-ratios over the positives where there are several; <,> and sim are both the cosine. Deviates: by default
        the mean over n.
    """
    # Mixed precision would round the logits, which are up to 1 / tau.
    with torch.autocast(embeddings.device.type, enabled=False):
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        similarity = functional.normalize(embeddings.to(dtype)) @ functional.normalize(pool.to(dtype)).T
        positive, negative = similarity > config.alpha, similarity < config.beta
        logits = similarity / config.tau
        # So low that it counts for nothing, and finite, so that its gradient is 0 where there is no negative.
        lowest = torch.finfo(dtype).min / 4
        others = logits.masked_fill(~negative, lowest).logsumexp(1) - negative.sum(1).clamp(min=1).log()
        # -log(pos / (pos + neg)) = log(1 + neg / pos).
        each = torch.where(positive, functional.softplus(others[:, None] - logits), 0.0)
        count = positive.sum(1)
        total = (each.sum(1) / count.clamp(min=1)).sum()
        return total if config.reduction == "sum" else total / (count > 0).sum().clamp(min=1)
