"""One image to its instances: backbone, discovery method and refinement put together."""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from pydantic import Field, field_validator, model_validator

from figureground import backbones
from figureground.backbones import Features, Precision, own
from figureground.config import Config, build, merge
from figureground.data.images import load_image
from figureground.data.resize import fit_size, resize_image, resize_on_device, shrink, to_unit_range
from figureground.errors import ImageError, UsageError
from figureground.ops.masks import masks_to_boxes, resize_masks
from figureground.proposals import METHODS, create
from figureground.proposals.attention import AttentionConfig
from figureground.proposals.background import BackgroundConfig
from figureground.proposals.baselines import CentredBoxConfig, WholeImageConfig
from figureground.proposals.found import FoundConfig
from figureground.proposals.freemask import FreeMaskConfig
from figureground.proposals.hac import HACConfig
from figureground.proposals.kmeans import KMeansConfig
from figureground.proposals.lost import LostConfig
from figureground.proposals.maskcut import MaskCutConfig
from figureground.proposals.promerge import ProMergeConfig
from figureground.proposals.selective_search import SelectiveSearchConfig
from figureground.proposals.tokencut import TokenCutConfig
from figureground.proposals.votecut import VoteCutConfig
from figureground.refine import RefineConfig, Refiner
from figureground.structures import Instances, PatchFeatures

# Images together on an accelerator: 3600 patches each then take some 4 GB at once.
_BATCH_SIZE = 32


class BackboneConfig(Config):
    """Which features an image is turned into."""

    name: str = Field(
        default="handcrafted",
        description="A backbone of the catalogue (`handcrafted` needs no weights), or a run of `pretrain` or `distil`.",
    )
    weights: str | None = Field(
        default=None, description="Local file with the official weights; none: the backbone's hub."
    )
    features: Features = Field(
        default="keys", description="Output of the last block that is used (TokenCut, MaskCut: keys)."
    )
    precision: Precision = Field(
        default="fp32",
        description="Arithmetic of the backbone; bf16 is 2-3x faster; auto: bf16 where the device has it.",
    )

    @field_validator("name")
    @classmethod
    def _absolute(cls, name: str) -> str:
        # A run can then be gone on with from any folder.
        return name if own.find_file(name) is None else os.path.abspath(os.path.expanduser(name))


class LabellerConfig(Config):
    """From an image to instances."""

    method: str = Field(
        default="background",
        description="Discovery method; unless it is set, `found` with a backbone of `distil`, `maskcut` with another "
        "learned one, else `background`.",
    )
    preset: str = Field(
        default="default", description="`default`: what measured best here; `reference`: the published code."
    )
    backbone: BackboneConfig = BackboneConfig()
    size: int = Field(
        default=480,
        ge=16,
        le=4096,
        description="Side in px of the square whose area an image is brought to (CutLER: 480).",
    )
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Images of one shape looked at together, within a shard; unset: 1 on a CPU, 32 on an accelerator.",
    )
    background: BackgroundConfig | None = Field(
        default=None, description="Settings of background, where it is the method."
    )
    maskcut: MaskCutConfig | None = Field(default=None, description="Settings of maskcut, where it is the method.")
    tokencut: TokenCutConfig | None = Field(default=None, description="Settings of tokencut, where it is the method.")
    attention: AttentionConfig | None = Field(
        default=None, description="Settings of attention, where it is the method."
    )
    found: FoundConfig | None = Field(default=None, description="Settings of found, where it is the method.")
    freemask: FreeMaskConfig | None = Field(default=None, description="Settings of freemask, where it is the method.")
    kmeans: KMeansConfig | None = Field(default=None, description="Settings of kmeans, where it is the method.")
    lost: LostConfig | None = Field(default=None, description="Settings of lost, where it is the method.")
    hac: HACConfig | None = Field(default=None, description="Settings of hac, where it is the method.")
    promerge: ProMergeConfig | None = Field(default=None, description="Settings of promerge, where it is the method.")
    votecut: VoteCutConfig | None = Field(default=None, description="Settings of votecut, where it is the method.")
    centred_box: CentredBoxConfig | None = Field(
        default=None, description="Settings of centred_box, where it is the method."
    )
    whole_image: WholeImageConfig | None = Field(
        default=None, description="Settings of whole_image, where it is the method."
    )
    selective_search: SelectiveSearchConfig | None = Field(
        default=None, description="Settings of selective_search, where it is the method."
    )
    refine: RefineConfig = RefineConfig()

    @model_validator(mode="before")
    @classmethod
    def _resolve_method(cls, values: dict) -> dict:
        """Fill the chosen method's settings from its preset; settings of other methods would do nothing."""
        values = dict(values)
        learned = is_learned(values.get("backbone"))
        if values.get("method") is None and (distilled := _distilled(values.get("backbone"))):
            given = {key: value for key, value in values.items() if value is not None}
            if isinstance(given["backbone"], BackboneConfig):
                given["backbone"] = given["backbone"].model_dump(exclude_unset=True)
            values = merge(distilled, given)
        if values.get("method") is None:
            # MaskCut stands on learned features; without them the classical background prior is the better guess.
            values["method"] = "maskcut" if learned else "background"
        if values.get("size") is None:
            values["size"] = 480 if learned else 368
        method = values["method"]
        preset = values.get("preset", cls.model_fields["preset"].default)
        for other in METHODS.keys() - {method}:
            if values.get(other) is not None:
                raise ValueError(f"{other}.* is set, but the method is {method!r}. Add --method {other}.")
        chosen = values.get(method) or {}
        if not isinstance(chosen, Config):
            try:
                values[method] = {**create(method, preset).config.model_dump(), **chosen}
            except UsageError as error:
                raise ValueError(str(error)) from None
        return values


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Images of one size as every method sees them.

    Attributes:
        images: RGB in [0, 1] at the working size.
        features: Of their patches.
        refiner: Draws coarse masks to the edges of the images; ``None`` where only baselines look.
    """

    images: Float[torch.Tensor, "B 3 H W"]
    features: PatchFeatures
    refiner: Refiner | None


class Labeller:
    """Finds the objects of images.

    Args:
        config: What to use.
        backbone: Of another labeller with the same settings, to share it; none: a new one.

    Raises:
        UsageError: If a name does not exist or the device is not there.
        WeightsError: If the weights of the backbone cannot be had, or those of the method do not fit it.
    """

    def __init__(self, config: LabellerConfig, backbone: torch.nn.Module | None = None) -> None:
        self.config = config
        check_device(config.device)
        choice = config.backbone
        METHODS[config.method].check_here(with_attention=backbones.find(choice.name).heads > 0)
        if backbone is None:
            backbone = backbones.load(
                choice.name,
                weights=choice.weights,
                features=choice.features,
                precision=choice.precision,
                device=config.device,
            )
        self.backbone: Any = backbone
        self.method = create(config.method, config.preset, **getattr(config, config.method).model_dump())
        self.method.check_backbone(self.backbone.name, choice.features, self.backbone.patch_size, self.backbone.width)
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def batch_size(self) -> int:
        """How many images are looked at together."""
        return self.config.batch_size or (1 if self.config.device == "cpu" else _BATCH_SIZE)

    def fitted_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size at which an image of ``size`` is looked at, in whole patches."""
        return fit_size(size, self.config.size, self.backbone.patch_size)

    def __call__(self, pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> Instances:
        """Find the objects of an image.

        Args:
            pixels: RGB; may be smaller than the image is on disk.
            size: ``(height, width)`` of the image on disk, which decides the size it is looked at.

        Returns:
            Instances at the working size (:meth:`fitted_size`), surest first, on the CPU.
        """
        return self.find(self.look(pixels, size))

    def many(
        self, pixels: Sequence[UInt8[np.ndarray, "..."]], sizes: Sequence[tuple[int, int]]
    ) -> list[Instances | ImageError]:
        """Find the objects of several images, those of one fitted size together, at most ``batch_size`` at once.

        Args:
            pixels: Of each, as of a call.
            sizes: Of each, as of a call.

        Returns:
            Of each what a call returns, or what is wrong with it: an image that fails does so alone.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            groups.setdefault(self.fitted_size(size), []).append(index)
        found: dict[int, Instances | ImageError] = {}
        for members in groups.values():
            for first in range(0, len(members), self.batch_size):
                batch = members[first : first + self.batch_size]
                fitted = [self.fit(pixels[index], sizes[index]) for index in batch]
                found.update(zip(batch, self.find_together(fitted), strict=True))
        return [found[index] for index in range(len(sizes))]

    def fit(self, pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[torch.Tensor, "h w 3"]:
        """An image at the size at which it is looked at, on the device, which resizes it; arguments as of a call."""
        fitted = self.fitted_size(size)
        if self.config.device == "cpu":
            with self.timed("decode"):
                return torch.from_numpy(np.array(resize_image(pixels, fitted)))
        with self.timed("resize"):
            shrunk = torch.from_numpy(np.array(shrink(Image.fromarray(pixels), fitted)))
            return resize_on_device(shrunk.to(self.config.device), fitted)

    def find_together(self, images: Sequence[UInt8[torch.Tensor, "h w 3"]]) -> list[Instances | ImageError]:
        """The objects of images of one size (:meth:`fit`), all at once; of one that fails, what is wrong."""
        try:
            return list(self.find_all(self.look_at(torch.stack(list(images)))))
        except (ValueError, torch.OutOfMemoryError) as error:
            if len(images) > 1:
                middle = len(images) // 2
                return self.find_together(images[:middle]) + self.find_together(images[middle:])
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return [ImageError(f"No features could be made of the image: {error}")]

    def look(self, pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> View:
        """The part of the work that does not depend on the method; arguments as of a call."""
        return self.look_at(self.fit(pixels, size)[None])

    def find(self, view: View) -> Instances:
        """The part that does: what is in the one image of a view.

        Args:
            view: Of a labeller with the same backbone, size and refinement.
        """
        [instances] = self.find_all(view)
        return instances

    @torch.inference_mode()
    def look_at(self, images: UInt8[torch.Tensor, "B H W 3"]) -> View:
        """View images that are at the working size and on the device."""
        with self.timed("features"):
            scaled = to_unit_range(images)
            features = self.backbone(scaled)
        with self.timed("refine"):
            refiner = None if self.method.BASELINE else Refiner(images, self.config.refine)
        return View(scaled, features, refiner)

    @torch.inference_mode()
    def find_all(self, view: View) -> list[Instances]:
        """The instances in each image of a view (:meth:`find`)."""
        with self.timed("propose"):
            found = self.method.propose(view.features, view.images)
        with self.timed("refine"):
            masks = resize_masks(torch.cat([one.masks for one in found]), (view.images.shape[2], view.images.shape[3]))
            counts = [len(one) for one in found]
            keep = masks.flatten(1).any(1)
            if view.refiner is not None and not self.method.BASELINE:
                owners = torch.arange(len(found)).repeat_interleave(torch.tensor(counts)).to(masks.device)
                masks, accepted = view.refiner(masks, owners)
                keep = accepted & masks.flatten(1).any(1)
            kept = zip(found, masks.cpu().split(counts), keep.cpu().split(counts), strict=True)
            return [_chosen(one, own, chosen) for one, own, chosen in kept]

    @contextmanager
    def timed(self, part: str, *, on_device: bool = True) -> Iterator[None]:
        """Add the time of a block to ``seconds[part]``; any thread may.

        Args:
            part: Of the work.
            on_device: Whether the block is over only when the device has done what it was told.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            if on_device and self.config.device != "cpu":
                torch.cuda.synchronize(self.config.device)
            with self._lock:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def label(
    image: str | os.PathLike[str] | Image.Image | UInt8[np.ndarray, "H W 3"],
    method: str | None = None,
    backbone: str | Mapping[str, Any] = "handcrafted",
    **config: Any,
) -> Instances:
    """Find the objects of one image.

    Args:
        image: A path, a Pillow image, or RGB pixels.
        method: Discovery method; ``None`` takes ``maskcut`` where the backbone is learned, else ``background``.
        backbone: A backbone of the catalogue (``handcrafted`` needs no weights), a run of `pretrain` or `distil`, or
            fields of :class:`BackboneConfig`.
        config: Further fields of :class:`LabellerConfig`.

    Returns:
        Instances at the size of the image, surest first.

    Raises:
        ImageError: If the image cannot be decoded.
        UsageError: If a name does not exist.

    Example:
        >>> pixels = np.zeros((64, 64, 3), np.uint8)
        >>> pixels[20:44, 20:44] = (200, 60, 30)
        >>> tuple(label(pixels, size=128).masks.shape[1:])
        (64, 64)
    """
    if isinstance(image, Image.Image):
        pixels = np.asarray(image.convert("RGB"))
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        pixels = load_image(image)
    chosen = {"name": backbone} if isinstance(backbone, str) else dict(backbone)
    tree = {"method": method, "backbone": chosen, **config}
    size = (pixels.shape[0], pixels.shape[1])
    found = Labeller(build(LabellerConfig, tree))(pixels, size)
    masks = resize_masks(found.masks, size)
    return _chosen(found, masks, masks.flatten(1).any(1))


def _chosen(instances: Instances, masks: Bool[torch.Tensor, "M H W"], keep: Bool[torch.Tensor, " M"]) -> Instances:
    """Some of the instances with other masks, none of them empty, on the device of these."""
    masks = masks[keep]
    scores, labels = instances.scores.to(masks.device), instances.labels.to(masks.device)
    return Instances(masks, masks_to_boxes(masks), scores[keep], labels[keep])


def is_learned(backbone: Any) -> bool:
    """Whether a backbone, as a configuration gives it (none: the default), has weights; an unknown one is taken so."""
    given = backbone.model_dump() if isinstance(backbone, BackboneConfig) else backbone or {}
    row = backbones.CATALOGUE.get(given.get("name", BackboneConfig().name))
    return row is None or row.learned


def _distilled(backbone: Any) -> dict[str, Any]:
    """The settings for a backbone of `distil`: the head beside it knows figure from ground; empty for any other.

    Its patches are too much alike for cuts, and it has learned from whole photographs at one size.
    """
    given = backbone.model_dump() if isinstance(backbone, BackboneConfig) else backbone or {}
    row = backbones.CATALOGUE.get(str(given.get("name", "")))
    file = own.find_file(str(given.get("name", ""))) if row is None or row.file is None else Path(row.file)
    if file is None or not (file.parent / "head.safetensors").is_file():
        return {}
    return {
        "method": "found",
        "found": {**create("found", "default").config.model_dump(), "head": str(file.parent / "head.safetensors")},
        "backbone": {"features": "tokens"},
        "size": own.read(file).shape.image_size,
    }


def check_device(name: str) -> None:
    """Raise :class:`UsageError` if there is no such device here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"There is no device {name!r}.", "Use cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"Device {name!r} is not supported.", "Use cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"Device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices.", "Use --device cpu."
        )
