"""A pool of exemplars on disk: cut-outs that a person can prune and add to, and what a backbone sees in them."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from figureground import backbones
from figureground.data.images import decode
from figureground.data.listing import list_images
from figureground.data.resize import resize_image
from figureground.errors import ConfigError, ImageError, UsageError
from figureground.ops.rle import encode
from figureground.stages.detecting import digest_of
from figureground.stages.instance_features import InstanceEmbedder, View, pack, unpack
from figureground.stages.labeller import BackboneConfig
from figureground.storage.shards import fingerprint

POOL_FILE = "pool.json"
"""What is known of the pictures of a pool."""
PICTURES = "exemplars"
"""Folder of the pictures of a pool: one folder for each hidden category."""
# Around the extent of an object, of its sides; and the longest side of a picture, in pixels.
_MARGIN, _LONGEST = 0.5, 1024
# Grey levels between the darkest and the brightest pixel of a picture that shows something.
_FLAT = 3
_REMEDY = "Make it with `figureground exemplars IMAGES --out POOL`."


@dataclass(frozen=True, slots=True, eq=False)
class ExemplarPool:
    """D_P of Exemplar-FreeSOLO: one pivot for each hidden category.

    Attributes:
        path: Its folder.
        embeddings: The pivots, on the CPU: the mean of what a backbone sees in the exemplars of a category, of unit
            length.
        names: Of the categories, sorted.
        counts: Exemplars of each.
        backbone: What saw them, as text; two embedders of one text see alike. See :func:`identify`.
        config: Of that backbone.
        view: What it looked at.
        size: Of what it looked at, as :class:`~figureground.stages.instance_features.InstanceEmbedder` takes it.
        skipped: Pictures that cannot be used, and why not.
    """

    path: Path
    embeddings: Float[Tensor, "K D"]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    backbone: str
    config: BackboneConfig
    view: View
    size: int
    skipped: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """A short name of the pivots: what a run that goes on compares."""
        return fingerprint([self.backbone, *self.names, self.embeddings.numpy().tobytes().hex()])

    def make_embedder(self, device: str = "cpu") -> InstanceEmbedder:
        """What sees other instances as it saw the exemplars."""
        return make_embedder(self.config, self.view, self.size, device)


@dataclass(frozen=True, slots=True, eq=False)
class Exemplar:
    """A picture of a pool.

    Attributes:
        name: Path below the folder of the pictures.
        category: Its folder there; of a picture that is in none, its own name.
        digest: SHA-256 of the file, which knows it wherever it is moved to.
        vector: What the backbone sees, of unit length.
    """

    name: str
    category: str
    digest: str
    vector: Float[np.ndarray, "D"]


def load_pool(path: Path, device: str = "cpu") -> ExemplarPool:
    """The pool as its pictures are now.

    The vectors of pictures that `figureground exemplars` has seen are in ``pool.json``, by digest; a deleted picture is
    no longer there, and one that was added or changed is looked at here. Nothing is written.

    An object is where a picture is opaque; one without transparency is an object as a whole. The cut-outs made by
    `figureground exemplars` hide, under full transparency, what is around the object. Where the backbone looks at the
    ``crop``, a picture is all that it needs, and a cut-out gives what the photograph gave. Where it looks at the whole
    ``image``, vectors of cut-outs made from photographs are those of the photographs, while those of added pictures
    stand by what is around the object in them.

    Args:
        path: The folder.
        device: Where pictures are looked at.

    Raises:
        UsageError: If there is no pool, or it has no picture that can be used.
        ConfigError: If what is known of it is damaged.
        WeightsError: If there are pictures to look at and the weights of the backbone cannot be had.
    """
    known = read_known(path)
    config, view, size = known["embedder"]
    embedder = cache(lambda: make_embedder(config, view, size, device))
    exemplars, skipped = read_exemplars(path, known["pictures"], lambda *cutout: embed_cutout(embedder(), *cutout))
    names, pivots, counts = pivots_of(exemplars)
    return ExemplarPool(path, pivots, names, counts, known["backbone"], config, view, size, tuple(skipped))


def check_backbone(pool: ExemplarPool, identity: str) -> None:
    """Refuse a pool whose embeddings are not of the space that instances are embedded in.

    Args:
        pool: Loaded.
        identity: Of the embedder of the instances, by :func:`identify`.

    Raises:
        ConfigError: If it is another.
    """
    if pool.backbone != identity:
        raise ConfigError(
            f"The exemplars of {pool.path} were looked at by {pool.backbone}, but instances by {identity}: their "
            "vectors cannot be compared.",
            "Make the pool again with the backbone, view and size of the training, or train with those of the pool.",
        )


def identify(config: BackboneConfig, view: View, size: int) -> str:
    """What decides the vectors of an embedder, as a text; the precision of its arithmetic does not.

    Raises:
        UsageError: If there is no such backbone, or its file of weights cannot be read.
        WeightsError: If it is a path, and no backbone is there.

    Example:
        >>> identify(BackboneConfig(name="dino_s16"), "crop", 224)
        'dino_s16 keys, crop of 224 px'
        >>> identify(BackboneConfig(), "image", 480)
        'handcrafted, image of 480 px'
    """
    row = backbones.find(config.name)
    seen = f"{row.name} {config.features}" if row.learned else row.name
    if config.weights is not None and Path(config.weights).name != row.file:
        # Not the official file, whose digest is checked when it is read: these may be another training's.
        seen += f" of {digest_of(Path(config.weights))[:12]}"
    return f"{seen}, {view} of {size} px"


def make_embedder(config: BackboneConfig, view: View, size: int, device: str) -> InstanceEmbedder:
    """The embedder of these settings."""
    backbone = backbones.load(config.name, config.weights, config.features, precision=config.precision, device=device)
    return InstanceEmbedder(backbone, view, size, device)


def read_known(path: Path) -> dict[str, Any]:
    """``pool.json``, its ``embedder`` as backbone, view and size.

    Raises:
        UsageError: If there is none.
        ConfigError: If it is damaged.
    """
    file = path / POOL_FILE
    if not file.is_file():
        raise UsageError(f"There is no pool of exemplars at {path}: it has no {POOL_FILE}.", _REMEDY)
    try:
        known = json.loads(file.read_text("utf-8"))
        embedder = known["embedder"]
        config = BackboneConfig.model_validate(embedder["backbone"])
        if not isinstance(known["backbone"], str) or not isinstance(known["pictures"], dict):
            raise TypeError("a field is of another kind")
        if embedder["view"] not in ("crop", "image"):
            raise ValueError(f"view {embedder['view']!r}")
        return {**known, "embedder": (config, embedder["view"], int(embedder["size"]))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is damaged: {reason}.", "Move it away and make the pool again.") from None


def read_exemplars(
    path: Path, known: Mapping[str, Mapping[str, Any]], look: Any
) -> tuple[list[Exemplar], list[tuple[str, str]]]:
    """The pictures of a pool, sorted by name, and those that cannot be used with the reason.

    Args:
        path: Of the pool.
        known: ``vector``, packed, of the pictures that need not be looked at, by digest.
        look: From pixels and mask of another one to its vector; an :class:`ImageError` leaves it out.

    Raises:
        UsageError: If no picture can be used.
    """
    folder = path / PICTURES
    remedy = f"Put cut-out pictures into folders in {folder}, one folder a category, or make the pool again."
    try:
        names = list_images([folder]).names
    except UsageError:
        raise UsageError(f"The pool of exemplars {path} is empty: {folder} has no picture.", remedy) from None
    exemplars, skipped = [], []
    for name in names:
        category = name.partition("/")[0] if "/" in name else Path(name).stem
        try:
            content = _read(folder / name)
            digest = hashlib.sha256(content).hexdigest()
            # Rounded either way: a pool stays what it is when the vectors of pictures that were added become known.
            packed = known[digest]["vector"] if digest in known else pack(look(*read_cutout(content))[None])
            [vector] = unpack(packed, 1)
        except ImageError as error:
            skipped.append((f"{PICTURES}/{name}", error.message))
            continue
        exemplars.append(Exemplar(name, category, digest, vector / np.linalg.norm(vector)))
    if not exemplars:
        first, reason = skipped[0]
        raise UsageError(
            f"None of the {len(skipped)} pictures of the pool of exemplars {path} can be used. The first: {first}: "
            f"{reason}",
            remedy,
        )
    return exemplars, skipped


def pivots_of(exemplars: list[Exemplar]) -> tuple[tuple[str, ...], Float[Tensor, "K D"], tuple[int, ...]]:
    """The categories, their pivots, and how many exemplars each has."""
    members: dict[str, list[np.ndarray]] = {}
    for exemplar in exemplars:
        members.setdefault(exemplar.category, []).append(exemplar.vector)
    names = tuple(sorted(members))
    means = np.stack([np.mean(members[name], axis=0) for name in names])
    pivots = functional.normalize(torch.from_numpy(means).float(), dim=1)
    return names, pivots, tuple(len(members[name]) for name in names)


def embed_cutout(
    embedder: InstanceEmbedder, pixels: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "D"]:
    """What an embedder sees in a picture.

    Raises:
        ImageError: If it sees nothing.
    """
    check_not_flat(pixels)
    [vector] = embedder.embed(pixels, encode(torch.from_numpy(mask)[None]))
    if not has_direction(vector):
        raise ImageError("The backbone sees nothing in it.")
    return vector


def has_direction(vector: Float[np.ndarray, "D"]) -> bool:
    """Whether a vector that should have unit length is not 0 or undefined instead."""
    return bool(np.linalg.norm(vector) > 0.5)


def check_not_flat(pixels: UInt8[np.ndarray, "H W 3"]) -> None:
    """Raise :class:`ImageError` where all pixels are of one colour: what is seen in them is the noise of rounding."""
    if int(np.ptp(pixels, axis=(0, 1)).max()) < _FLAT:
        raise ImageError("It is of one colour, so that no object can be told in it.")


def cut_out(pixels: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> bytes:
    """A PNG of an object; what is around it is there too, but fully transparent.

    Args:
        pixels: The image.
        mask: Not empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = []
    for places, most in ((rows, len(mask)), (columns, mask.shape[1])):
        low, high = int(places[0]), int(places[-1]) + 1
        margin = round((high - low) * _MARGIN)
        window.append(slice(max(0, low - margin), min(most, high + margin)))
    part, inside = np.ascontiguousarray(pixels[tuple(window)]), mask[tuple(window)]
    alpha = Image.fromarray(inside.astype(np.uint8) * 255)
    scale = min(1.0, _LONGEST / max(inside.shape))
    if scale < 1:
        size = max(1, round(inside.shape[0] * scale)), max(1, round(inside.shape[1] * scale))
        part, alpha = resize_image(part, size), alpha.resize((size[1], size[0]), Image.Resampling.BOX)
    picture = Image.fromarray(part)
    picture.putalpha(alpha)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def read_cutout(content: bytes) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """Pixels of a picture, hidden ones included, and where it is at least half opaque.

    Raises:
        ImageError: If it cannot be decoded, or is transparent everywhere.
    """
    pixels, _ = decode(content)
    with Image.open(io.BytesIO(content)) as image:
        # `decode` has found it sound. It lays it over white, but what is hidden around an object is wanted here.
        if image.mode not in ("RGBA", "LA") and "transparency" not in image.info:
            return pixels, np.ones(pixels.shape[:2], dtype=bool)
        both = np.asarray(image.convert("RGBA"))
    mask = both[..., 3] >= 128
    if not mask.any():
        raise ImageError("It is transparent everywhere, so that no object is in it.")
    return np.ascontiguousarray(both[..., :3]), mask


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"The file cannot be read ({error.strerror or error}).") from None
