"""First weights, all drawn from one generator."""

import functools
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.nn.modules.batchnorm import _NormBase

# What a weight is drawn from, by the name of its module; the first rule that fits. The constants are those of the
# papers: Faster R-CNN (0.01), SOLO (0.01), Fast R-CNN (0.01 and 0.001), Mask R-CNN, and He et al., ICCV 2015, for all
# else.
_RULES: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    (r"^rpn\.|^cells\.|^features\.", functools.partial(init.normal_, std=0.01)),
    (r"^boxes\..*\.scores$", functools.partial(init.normal_, std=0.01)),
    (r"^boxes\..*\.deltas$", functools.partial(init.normal_, std=0.001)),
    (r"^masks\.predictor$", functools.partial(init.normal_, std=0.001)),
    (r"^boxes\.|^backbone\.pyramid\.", functools.partial(init.kaiming_uniform_, a=1)),
    (r"^backbone\.trunk\.(patch_embed|blocks)\.", functools.partial(init.trunc_normal_, std=0.02)),
    (r"", functools.partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu")),
)


def initialise(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give a model that was made on the ``meta`` device its first weights, on the CPU.

    Args:
        model: Of convolutions, linear layers and norms; what else it has as a parameter is an embedding.
        generator: Of every draw; none: of seed 0.
    """
    generator = generator or torch.Generator().manual_seed(0)
    model.to_empty(device="cpu")
    done = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            rule = next(rule for pattern, rule in _RULES if re.search(pattern, name))
            rule(module.weight, generator=generator)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
            module.reset_parameters()
        else:
            continue
        done.update(id(tensor) for tensor in module.parameters(recurse=False))
    for parameter in model.parameters():
        if id(parameter) not in done:
            init.trunc_normal_(parameter, std=0.02, generator=generator)
