"""What every discovery method is: a configuration, presets, and ``propose``."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from figureground.errors import UsageError
from figureground.ops.masks import masks_to_boxes
from figureground.structures import Instances, PatchFeatures


class Method(ABC):
    """A discovery method.

    Attributes:
        PRESETS: Named configurations; ``default`` and ``reference`` always exist.
        NEEDS_IMAGES: Whether ``propose`` cannot do without the pixels.
        NEEDS_ATTENTION: Whether ``propose`` cannot do without ``features.cls_attention``; it then raises
            :class:`~figureground.errors.UsageError`.
        BASELINE: Whether it is a yardstick that knows nothing of objects: its boxes stay as they are, unrefined.
        PARTS: Whether its instances hold one another: the output then says which is part of which.
        config: The configuration in force.
    """

    PRESETS: ClassVar[Mapping[str, Any]]
    NEEDS_IMAGES: ClassVar[bool] = False
    NEEDS_ATTENTION: ClassVar[bool] = False
    BASELINE: ClassVar[bool] = False
    PARTS: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def check_here(cls, *, with_attention: bool) -> None:
        """Refuse before the first image what cannot run here.

        Args:
            with_attention: Whether the features come with CLS attention.

        Raises:
            UsageError: If the method cannot work here; it says what is missing.
        """
        if cls.NEEDS_ATTENTION and not with_attention:
            raise UsageError(
                f"{cls.__name__} needs a backbone with a CLS token.",
                "Choose a vision transformer, as --backbone dino_s16.",
            )

    def check_backbone(self, name: str, features: str, patch_size: int, width: int) -> None:  # noqa: B027 (may stay so)
        """Refuse a backbone that the method cannot work with; only one with weights of its own does.

        Args:
            name: Of the backbone, in the catalogue.
            features: Which of its features.
            patch_size: Side of a patch, in pixels.
            width: Length of a feature vector.

        Raises:
            WeightsError: If the method's weights were learned on other features.
        """

    @abstractmethod
    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """Find the objects of each image, masks and boxes at patch resolution.

        Args:
            features: Of a batch of images.
            images: The same images, RGB in [0, 1], where the method looks at pixels too.

        Returns:
            One entry per image, surest instance first; no instance where nothing was found.
        """


def to_instances(masks: Iterable[Bool[Tensor, "h w"]], scores: Iterable[float], like: Tensor) -> Instances:
    """Instances of one image from masks that are not empty, surest first (ties keep their order)."""
    found = list(masks)
    if not found:
        stacked = torch.zeros((0, *like.shape[-2:]), dtype=torch.bool, device=like.device)
        ranked = torch.zeros(0, device=like.device)
    else:
        ranked = torch.tensor(list(scores), dtype=torch.float32, device=like.device)
        ranked, order = ranked.sort(descending=True, stable=True)
        stacked = torch.stack(found)[order]
    labels = torch.ones(len(stacked), dtype=torch.int64, device=like.device)
    return Instances(masks=stacked, boxes=masks_to_boxes(stacked), scores=ranked, labels=labels)


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a name that does not exist: the nearest one, and all there are.

    Example:
        >>> nearest("maskut", ["maskcut", "tokencut"])
        " Did you mean 'maskcut'? There are: maskcut, tokencut."
    """
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1)
    return (f" Did you mean {close[0]!r}?" if close else "") + f" There are: {', '.join(known)}."
