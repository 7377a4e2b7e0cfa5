"""A moving average of a model that is trained: DINO's teacher, or a detector steadier than its last step."""

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema(nn.Module):
    """The exponential moving average of another module's parameters; its buffers are those of the last update.

    The average is all of its state, so that it lives in the checkpoints of whatever model holds it. The module that is
    averaged is only referred to: it belongs to that model, not to the average.

    Args:
        source: What is averaged; the average starts as a copy of it.

    Attributes:
        module: The average, without gradients; of the kind of ``source``.

    Reference:
        Caron et al.: Emerging properties in self-supervised vision transformers. ICCV 2021, section 3.1 (the teacher).
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False)
        # Inside a tuple it is no submodule: neither saved nor counted twice.
        self._source = (source,)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move the average to ``momentum`` of itself and the rest of the source as it is now.

        Args:
            momentum: In [0, 1]; 1 leaves the parameters as they are, 0 copies the source's.
        """
        [source] = self._source
        get_ema_multi_avg_fn(momentum)(tuple(self.module.parameters()), tuple(source.parameters()), None)
        for own, other in zip(self.module.buffers(), source.buffers(), strict=True):
            own.copy_(other)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the average makes of its input."""
        return self.module(*args, **kwargs)
