"""One image and its instances as a page shows them."""

import base64
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image

from figureground.errors import FiguregroundError
from figureground.ops import rle

THUMBNAIL_SIDE = 480
"""Longest side of an image on the page, in pixels."""


def thumbnail_size(size: tuple[int, int]) -> tuple[int, int]:
    """Size of an image on the page, from its ``(height, width)``: never larger, never nothing.

    Example:
        >>> thumbnail_size((1000, 2000))
        (240, 480)
    """
    scale = min(1.0, THUMBNAIL_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def picture(image: dict[str, Any], load_image: Callable[[str], np.ndarray]) -> tuple[str | None, str | None]:
    """A thumbnail as a data URI; or nothing, and the reason.

    Args:
        image: An entry of a COCO file.
        load_image: Reads it; see :func:`figureground.viewer.write_report`.
    """
    width, height = image["width"], image["height"]
    try:
        pixels = load_image(image.get("path") or image["file_name"])
        # A JPEG may come decoded at a half, a quarter or an eighth.
        if pixels.shape[:2] in [(-(-height // scale), -(-width // scale)) for scale in (1, 2, 4, 8)]:
            return data_uri(pixels, thumbnail_size((height, width))), None
    except (FiguregroundError, OSError, ValueError) as error:
        return None, str(error) or type(error).__name__
    return None, (
        f"The file has changed since the run: it was {width} by {height} pixels, "
        f"now it is {pixels.shape[1]} by {pixels.shape[0]}."
    )


def data_uri(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> str:
    """A WebP thumbnail as text."""
    buffer = io.BytesIO()
    thumbnail = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS, reducing_gap=3.0)
    thumbnail.save(buffer, "WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def instance(annotation: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """One instance in the pixels of the thumbnail; ``share`` and ``area`` stay those of the full image.

    Args:
        annotation: An entry of a COCO file; one without a mask is shown by its box.
        image: Its image, likewise.
    """
    x, y, box_width, box_height = annotation["bbox"]
    width, height = image["width"], image["height"]
    rows, columns = thumbnail_size((height, width))
    scale_x, scale_y = columns / width, rows / height
    mask, area = thumbnail_mask(annotation, image), float(annotation["area"])
    return {
        "id": annotation["id"],
        "score": score_of(annotation),
        "area": round(area),
        "share": area / (width * height),
        "box": [round(value, 1) for value in (x * scale_x, y * scale_y, box_width * scale_x, box_height * scale_y)],
        "mask": None if mask is None else rle.encode(torch.from_numpy(mask)[None])[0]["counts"],
    }


def thumbnail_mask(annotation: dict[str, Any], image: dict[str, Any]) -> Bool[np.ndarray, "h w"] | None:
    """The mask of an instance at the thumbnail's size; ``None`` where there is none."""
    if annotation.get("segmentation") is None:
        return None
    size = thumbnail_size((image["height"], image["width"]))
    return _shrink(rle.decode([annotation["segmentation"]])[0].numpy(), size)


def _shrink(mask: Bool[np.ndarray, "H W"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The mask at the thumbnail's size: pixels covered by half or more, and never nothing of something."""
    if mask.shape == size:
        return mask
    covered = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((size[1], size[0]), Image.Resampling.BOX))
    return covered >= (128 if (covered >= 128).any() else max(1, covered.max()))


def score_of(instance: dict[str, Any]) -> float | None:
    """The score, or ``None`` where there is none (annotations made by people)."""
    score = instance.get("score")
    return round(float(score), 4) if score is not None and math.isfinite(score) else None
