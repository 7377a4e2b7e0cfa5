"""FOUND's trained head: one 1x1 convolution on patch features, and the file it is kept in.

Siméoni et al.: Unsupervised object localization: observing the background to discover objects. CVPR 2023, section 3.2.
Written from the paper.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from figureground.config import differences
from figureground.errors import WeightsError
from figureground.storage.atomic import write_bytes

VERSION = 1
_KEY = "figureground_found_head"
_REMEDY = "A head is made by `figureground found-head PHOTOS --out RUN`: give RUN/head.safetensors."


@dataclass(frozen=True, slots=True)
class FeatureKind:
    """Which features a head reads.

    Attributes:
        backbone: Its name in the catalogue.
        features: ``keys``, ``queries``, ``values`` or ``tokens``.
        patch_size: Side of a patch, in pixels.
        width: Length of a feature vector.
    """

    backbone: str
    features: str
    patch_size: int
    width: int


class FoundHead(nn.Module):
    """One logit per patch: above 0 it is an object's.

    Args:
        kind: The features it reads.
        generator: Draws the first weights, uniformly within 1 / sqrt(width), as convolutions usually begin.

    Reference:
        Siméoni et al., CVPR 2023, section 3.2. One output, as in the published code (385 parameters for ViT-S); the
        paper counts 770.
    """

    def __init__(self, kind: FeatureKind, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.kind = kind
        bound = kind.width**-0.5
        draws = torch.rand(kind.width + 1, generator=generator or torch.Generator().manual_seed(0)) * 2 - 1
        self.weight = nn.Parameter(draws[:-1] * bound)
        self.bias = nn.Parameter(draws[-1] * bound)

    def forward(self, values: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        """Logits of patches, in float32, on the device of the features."""
        return values.float() @ self.weight.to(values.device) + self.bias.to(values.device)

    def check(self, kind: FeatureKind) -> None:
        """Compare the features that there are with those the head has learned to read.

        Raises:
            WeightsError: If they are others; the message lists what differs.
        """
        changed = differences(asdict(self.kind), asdict(kind))
        if changed:
            raise WeightsError(
                "The head of found was learned on other features:\n  " + "\n  ".join(changed),
                f"Use --backbone {self.kind.backbone} with backbone.features={self.kind.features}, "
                "or learn a head on these features with `figureground found-head`.",
            )

    def save(self, path: Path) -> None:
        """Write the weights, and what they were learned on, atomically."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        # One entry: safetensors writes several in an order that changes, and the same head is to be the same bytes.
        metadata = {_KEY: json.dumps({"version": VERSION, **asdict(self.kind)})}
        write_bytes(path, safetensors.torch.save(weights, metadata))


def load_head(path: str | os.PathLike[str]) -> FoundHead:
    """Read what :meth:`FoundHead.save` wrote.

    Raises:
        WeightsError: If there is no such file, it is no head, or of a version that this program does not know.
    """
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except Exception as error:  # damaged bytes make the reader raise what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{os.fspath(path)} cannot be read as a head of found ({reason}).", _REMEDY) from error
    if _KEY not in metadata:
        raise WeightsError(f"{os.fspath(path)} holds weights, but they are no head of found.", _REMEDY)
    try:
        facts = json.loads(metadata[_KEY])
        version = facts.pop("version")
        if version != VERSION:
            raise WeightsError(
                f"{os.fspath(path)} is a head of version {version}; this program reads version {VERSION}.",
                "Learn it again, or use the version of figureground that made it.",
            )
        head = FoundHead(FeatureKind(**facts))
        head.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{os.fspath(path)} does not hold what it says ({reason}).", _REMEDY) from error
    return head.requires_grad_(False)
