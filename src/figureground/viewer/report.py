"""The report of a run: one self-contained page with every image, its masks and what was done."""

import base64
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from markupsafe import Markup
from PIL import Image

from figureground.errors import FiguregroundError, RunError
from figureground.ops import rle
from figureground.storage.atomic import write_bytes

THUMBNAIL_SIDE = 480
"""Longest side of an image on the page, in pixels."""

FAILURES_SHOWN = 200
"""Failures listed on the page; the rest stay in ``failures.jsonl``."""

BARS = 20
"""Most bars in a histogram."""


def thumbnail_size(size: tuple[int, int]) -> tuple[int, int]:
    """Size of an image on the page, from its ``(height, width)``: never larger, never nothing.

    Example:
        >>> thumbnail_size((1000, 2000))
        (240, 480)
    """
    scale = min(1.0, THUMBNAIL_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def write_report(run: Path, *, load_image: Callable[[str], np.ndarray], max_images: int = 200) -> Path:
    """Write ``report.html`` from what a run directory holds.

    The page needs nothing but itself: images, style and script are inside. It replaces an older one only when it is
    whole.

    Args:
        run: A directory with ``annotations.json`` and, where they exist, ``result.json``, ``environment.json``,
            ``config.json`` and ``failures.jsonl``.
        load_image: Reads one image as uint8 RGB of shape (H, W, 3), EXIF orientation applied, given its ``path`` in the
            annotations, or its ``file_name`` where they have no path; at full size, or at a half, a quarter or an
            eighth of it. An image for which it raises FiguregroundError, OSError or ValueError becomes a card that
            says so.
        max_images: Images on the page; of a longer run, as many spread evenly over it.

    Returns:
        The path of the report.

    Raises:
        RunError: If ``annotations.json`` is missing, a file of the run cannot be understood, or the report cannot be
            written.
    """
    report = run / "report.html"
    page = _render(_gather(run, load_image, max_images))
    # A file name that is not UTF-8 arrives with lone surrogates; they are written as "\udcff", readable and harmless.
    write_bytes(report, page.encode("utf-8", errors="backslashreplace"))
    return report


def _gather(run: Path, load_image: Callable[[str], np.ndarray], max_images: int) -> dict[str, Any]:
    """Everything the template shows."""
    annotations = _read_annotations(run)
    images = annotations["images"]
    instances_of = defaultdict(list)
    for instance in annotations["annotations"]:
        instances_of[instance["image_id"]].append(instance)

    counts = [len(instances_of[image["id"]]) for image in images]
    scores = [score for instance in annotations["annotations"] if (score := _score(instance)) is not None]
    result = _read_json(run / "result.json") or {}
    failures = _read_failures(run / "failures.jsonl")
    chosen = [images[i] for i in _spread(len(images), max_images)]
    return {
        "name": run.resolve().name,
        "stage": result.get("stage"),
        "facts": _facts(result, counts, len(failures)),
        "timing": _timing(result.get("stage_seconds") or {}),
        "cards": [_card(image, instances_of[image["id"]], load_image) for image in chosen],
        "images": len(images),
        "score_bars": _score_bars(scores),
        "count_bars": _count_bars(counts),
        "settings": _sections(_read_json(run / "config.json") or {}),
        "environment": _sections(_read_json(run / "environment.json") or {}),
        "failures": failures[:FAILURES_SHOWN],
        "failures_left_out": max(0, len(failures) - FAILURES_SHOWN),
    }


def _render(context: dict[str, Any]) -> str:
    """The page; the policy in its head forbids every request and every script but its own."""
    folder = resources.files("figureground.viewer")
    template, style, script = (
        folder.joinpath(name).read_text("utf-8") for name in ("report.html.j2", "report.css", "report.js")
    )
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    # `tojson` escapes <, >, & and ' and all that is not ASCII, which makes it safe inside a script element.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(template).render(
        context, style=Markup(style), script=Markup(script), script_sha256=digest
    )


# One image and its instances.


def _card(
    image: dict[str, Any], instances: list[dict[str, Any]], load_image: Callable[[str], np.ndarray]
) -> dict[str, Any]:
    """One image as the page shows it; ``picture`` is a data URI, or ``None`` with the reason in ``problem``."""
    width, height = image["width"], image["height"]
    rows, columns = thumbnail_size((height, width))
    size_wh = columns, rows
    picture, problem = None, None
    try:
        pixels = load_image(image.get("path") or image["file_name"])
        # A JPEG may come decoded at a half, a quarter or an eighth.
        if pixels.shape[:2] in [(-(-height // scale), -(-width // scale)) for scale in (1, 2, 4, 8)]:
            picture = _data_uri(pixels, size_wh)
        else:
            problem = (
                f"The file has changed since the run: it was {width} by {height} pixels, "
                f"now it is {pixels.shape[1]} by {pixels.shape[0]}."
            )
    except (FiguregroundError, OSError, ValueError) as error:
        problem = str(error) or type(error).__name__
    return {
        "name": image["file_name"],
        "picture": picture,
        "problem": problem,
        "data": {
            "name": image["file_name"],
            "size": [width, height],
            "thumbnail": list(size_wh),
            "instances": [_instance(instance, width, height, size_wh) for instance in instances],
        },
    }


def _data_uri(pixels: UInt8[np.ndarray, "H W 3"], size_wh: tuple[int, int]) -> str:
    """A WebP thumbnail as text."""
    buffer = io.BytesIO()
    thumbnail = Image.fromarray(pixels).resize(size_wh, Image.Resampling.LANCZOS, reducing_gap=3.0)
    thumbnail.save(buffer, "WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _instance(instance: dict[str, Any], width: int, height: int, size_wh: tuple[int, int]) -> dict[str, Any]:
    """One instance in the pixels of the thumbnail; ``share`` and ``area`` stay those of the full image."""
    x, y, box_width, box_height = instance["bbox"]
    scale_x, scale_y = size_wh[0] / width, size_wh[1] / height
    mask = _shrink(rle.decode([instance["segmentation"]])[0].numpy(), size_wh)
    area = float(instance["area"])
    return {
        "id": instance["id"],
        "score": _score(instance),
        "area": round(area),
        "share": area / (width * height),
        "box": [round(value, 1) for value in (x * scale_x, y * scale_y, box_width * scale_x, box_height * scale_y)],
        "mask": rle.encode(torch.from_numpy(mask)[None])[0]["counts"],
    }


def _shrink(mask: Bool[np.ndarray, "H W"], size_wh: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The mask at the thumbnail's size: pixels covered by half or more, and never nothing of something."""
    if mask.shape == size_wh[::-1]:
        return mask
    covered = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size_wh, Image.Resampling.BOX))
    return covered >= (128 if (covered >= 128).any() else max(1, covered.max()))


def _score(instance: dict[str, Any]) -> float | None:
    """The score, or ``None`` where there is none (annotations made by people)."""
    score = instance.get("score")
    return round(float(score), 4) if score is not None and math.isfinite(score) else None


# The run as a whole.


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` indices below ``count``, evenly spread, the first and the last among them.

    Example:
        >>> _spread(10, 4), _spread(3, 200)
        ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _facts(result: dict[str, Any], counts: list[int], failures: int) -> list[tuple[str, str, str]]:
    """What was found: name, number and, where it needs one, a remark."""
    total, images = sum(counts), len(counts)
    facts = [
        ("images", f"{images:,}", ""),
        ("objects", f"{total:,}", f"{total / images:.1f} an image" if images else ""),
    ]
    if empty := counts.count(0):
        facts.append(("without objects", f"{empty:,}", f"{empty / images:.0%} of the images"))
    for key, remark in (("skipped", ""), ("resumed", "done before"), ("ignored", "not images")):
        if number := result.get(key):
            facts.append((key, f"{number:,}", remark))
    facts.append(("failed", f"{result.get('failed') or failures:,}", ""))
    if (seconds := result.get("seconds")) is not None:
        speed = result.get("images_per_s")
        facts.append(("time", _duration(seconds), f"{speed:,.2g} images/s" if speed else ""))
    return facts


def _timing(stage_seconds: dict[str, float | int]) -> list[tuple[str, str, float]]:
    """Steps with their time and their share of the whole."""
    whole = sum(stage_seconds.values())
    return [(step, _duration(seconds), seconds / whole) for step, seconds in stage_seconds.items() if seconds > 0]


def _duration(seconds: float | int) -> str:
    """Seconds as a person says them.

    Example:
        >>> _duration(0.042), _duration(12.34), _duration(125), _duration(7384)
        ('0.04 s', '12.3 s', '2 min 5 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours:,} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def _score_bars(scores: list[float]) -> list[dict[str, Any]]:
    """Histogram of the scores."""
    return _bars(scores, np.arange(BARS + 1) / BARS, lambda low, high: f"{low:.2f} to {high:.2f}")


def _count_bars(counts: list[int]) -> list[dict[str, Any]]:
    """Histogram of the objects per image: as narrow as BARS bars allow."""
    most = max(counts, default=0)
    step = most // BARS + 1
    edges = np.arange(0, most + step + 1, step).astype(float)
    return _bars(counts, edges, lambda low, high: f"{low:.0f}" if step == 1 else f"{low:.0f} to {high - 1:.0f}")


def _bars(
    values: list[float] | list[int], edges: Float[np.ndarray, "edges"], label: Callable[[float, float], str]
) -> list[dict[str, Any]]:
    """Each bar with its half-open range, its name, its count and its share of the highest."""
    if not values:
        return []
    counts = np.histogram(values, edges)[0].tolist()
    return [
        {"low": low, "high": high, "label": label(low, high), "count": count, "share": count / max(counts)}
        for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)
    ]


def _sections(tree: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A tree of settings as one section per branch, with the dotted keys that ``--set`` takes; plain values first.

    Example:
        >>> _sections({"maskcut": {"tau": 0.15, "crf": {"steps": 10}}, "device": "cpu"})
        [('', [('device', 'cpu')]), ('maskcut', [('maskcut.tau', '0.15'), ('maskcut.crf.steps', '10')])]
    """
    plain = [row for key, value in tree.items() if not isinstance(value, dict) for row in _rows(key, value)]
    branches = [(key, _rows(key, value)) for key, value in tree.items() if isinstance(value, dict)]
    return [(title, rows) for title, rows in [("", plain), *branches] if rows]


def _rows(key: str, value: object) -> list[tuple[str, str]]:
    """The leaves under ``key``."""
    if isinstance(value, dict):
        return [row for name, below in value.items() for row in _rows(f"{key}.{name}", below)]
    return [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


# Files.


def _read_annotations(run: Path) -> dict[str, Any]:
    """The COCO file of the run."""
    path = run / "annotations.json"
    annotations = _read_json(path)
    if annotations is None:
        raise RunError(
            f"{run} has no annotations.json, so there is nothing to show.",
            "Run the stage to its end (the same command goes on where it stopped), then write the report again.",
        )
    if not all(isinstance(annotations.get(key), list) for key in ("images", "annotations")):
        raise RunError(f"{path} is not a COCO file: it needs the lists 'images' and 'annotations'.")
    return annotations


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or ``None`` where there is no file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}.", "Remove it and run the stage again.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no JSON object.", "Remove it and run the stage again.")
    return content


def _read_failures(path: Path) -> list[tuple[str, str]]:
    """Path and error of each image that failed; a line cut short by a kill is shown as it is."""
    if not path.exists():
        return []
    failures = []
    # Split at "\n" only: str.splitlines would cut a file name at U+2028.
    for line in filter(str.strip, path.read_text("utf-8", errors="replace").split("\n")):
        try:
            failure = json.loads(line)
            failures.append((str(failure["path"]), str(failure["error"])))
        except (ValueError, KeyError, TypeError):
            failures.append(("", line))
    return failures
