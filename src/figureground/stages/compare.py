"""`figureground compare`: several methods on the same images, side by side."""

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from figureground import backbones
from figureground.config import Config, build, requested
from figureground.data.coco import CATEGORY, annotate, write_coco
from figureground.data.images import decode, read_size
from figureground.data.listing import ImageList, list_images
from figureground.data.truth import AnnotatedImage, AnnotationSet, match_images, read_predictions, read_truth
from figureground.errors import ImageError, UsageError
from figureground.evaluation.paired import as_per_cent, measure
from figureground.proposals import METHODS
from figureground.refine import RefineConfig
from figureground.runners import Runner, run_serial
from figureground.stages.labeller import BackboneConfig, Labeller, LabellerConfig
from figureground.stages.result import Progress, StageResult
from figureground.stages.sharding import File, Record, Sweep, describe_run, one_by_one, opened, prepare
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder, write_bytes, write_json
from figureground.viewer import thumbnail_size, write_comparison

# What may differ when a run goes on: where it computes, how much of the list it covers, what is measured at the end.
_FREE = ("device", "limit", "truth", "resamples", "seed")
_SHARED = ("backbone", "size", "refine", "device")
_ALL = "all"


class CompareConfig(Config):
    """Everything that decides what `compare` writes."""

    images: tuple[str, ...] = Field(default=(), description="Files and folders of images.")
    limit: int | None = Field(default=None, ge=1, description="Only the first images of the sorted list.")
    shard_size: int = Field(default=16, ge=1, le=10_000, description="Images a shard: what a kill can cost at most.")
    methods: tuple[str, ...] = Field(
        default=(_ALL,),
        description="Methods to compare, `name` or `name:preset`; `all`: every one that can run here.",
    )
    settings: dict[str, dict[str, Any]] = Field(
        default={}, description="Settings of each method by its name above; set one as `maskcut.tau=0.2`."
    )
    left_out: dict[str, str] = Field(
        default={}, description="Methods that `all` could not take, and what they lack; filled in, not set."
    )
    backbone: BackboneConfig = BackboneConfig()
    size: int = Field(
        default=480, ge=16, le=4096, description="Side in px of the square whose area an image is brought to."
    )
    refine: RefineConfig = Field(
        default=RefineConfig(method="none"),
        description="How the masks of every method but the baselines are refined; by default not at all, since methods "
        "are compared by what they find themselves, and a dense CRF takes longer than all of them together.",
    )
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")
    truth: str | None = Field(default=None, description="COCO file of the ground truth; its categories count as one.")
    resamples: int = Field(default=1000, ge=0, le=100_000, description="Of the bootstrap over images; 0: no intervals.")
    seed: int = Field(default=0, ge=0, description="Of the bootstrap.")

    @field_validator("images")
    @classmethod
    def _absolute(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        # A run can then be gone on with from any folder.
        return tuple(os.path.abspath(os.path.expanduser(path)) for path in images)

    @field_validator("truth")
    @classmethod
    def _absolute_truth(cls, truth: str | None) -> str | None:
        return os.path.abspath(os.path.expanduser(truth)) if truth else None

    @model_validator(mode="before")
    @classmethod
    def _resolve_methods(cls, values: dict) -> dict:
        """Name the methods that `all` stands for, and fill in the settings of each from its preset."""
        values = dict(values)
        backbone = build(BackboneConfig, values.get("backbone") or {})
        names, left_out = _expand(values.get("methods", (_ALL,)), backbone.name)
        if values.get("refine") is None:
            values["refine"] = cls.model_fields["refine"].default
        shared = {key: values[key] for key in _SHARED if values.get(key) is not None}
        before = values.get("settings") or {}
        settings = {}
        for name in names:
            given = {**before.get(name, {}), **(values.pop(name, None) or {})}
            settings[name] = resolved = _labeller_config(name, given, shared)
        for other in METHODS.keys() & values.keys():
            raise ValueError(f"{other}.* is set, but {other} is not among the methods: {', '.join(names)}.")
        values |= {key: getattr(resolved, key) for key in _SHARED}
        values |= {"methods": names, "left_out": left_out or values.get("left_out", {})}
        values["settings"] = {name: getattr(each, each.method).model_dump() for name, each in settings.items()}
        return values

    def labeller(self, name: str) -> LabellerConfig:
        """What one of the methods is run with."""
        return _labeller_config(name, self.settings[name], {key: getattr(self, key) for key in _SHARED})


def _expand(methods: Sequence[str], backbone: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The methods named, and those that `all` has to leave out."""
    names: list[str] = []
    left_out: dict[str, str] = {}
    with_attention = backbones.find(backbone).heads > 0
    for entry in methods:
        if entry != _ALL:
            names.append(entry.removesuffix(":default"))
            continue
        for name, method in METHODS.items():
            try:
                method.check_here(with_attention=with_attention)
                names.append(name)
            except UsageError as error:
                left_out[name] = error.message
    if not names:
        raise ValueError(f"No methods are named. There are: {', '.join(METHODS)}; `all` takes every one.")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice among the methods: {', '.join(methods)}.")
    return tuple(names), left_out


def _labeller_config(name: str, settings: dict[str, Any], shared: dict[str, Any]) -> LabellerConfig:
    method, _, preset = name.partition(":")
    return build(LabellerConfig, {**shared, "method": method, "preset": preset or "default", method: settings})


def configure(images: Sequence[str], assignments: Sequence[str] = (), **shorthands: Any) -> CompareConfig:
    """The configuration a command line asks for: ``--set``, then the shorthands over it.

    Args:
        images: Files and folders.
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key or a method does not exist, a value is out of range, or a method is named twice.
        UsageError: If there is no such backbone.
    """
    return build(CompareConfig, requested(assignments, shorthands, images))


def run(
    config: CompareConfig,
    out: Path,
    runner: Runner = run_serial,
    progress: Callable[[Progress], None] = lambda _: None,
) -> StageResult:
    """Run every method over every image, measure them where there is a truth, and write it all as a run.

    An image is decoded, resized and turned into features once, for all methods. Can be killed and called again like
    `label`. An image that one method fails on is left out for all: they are compared on the same images.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        runner: What applies the work to the shards.
        progress: Called after every image and once before the first.

    Raises:
        UsageError: If there is nothing to do, a name does not exist, a method cannot run here, or the truth is wrong or
            about other images.
        ConfigError: If ``out`` holds a run with another configuration.
        RunError: If the folder cannot be written or another process is writing it.
    """
    start = time.perf_counter()
    images = list_images(config.images, exclude=out)
    names = images.names[: config.limit]
    truth = _read_truth(Path(config.truth), images, names) if config.truth else None
    # Before the folder is made: a wrong name or missing weights leave nothing behind.
    work, _ = prepare(Panel, config, runner)
    with opened(out, config, _FREE):
        describe_run(out, config, config.device)
        sweep = Sweep(out, images, names, config.shard_size)
        sweep.run(work, runner, progress)
        result = _finish(config, images, sweep, truth, out, start)
        sweep.log("end", seconds=result.seconds)
    return result


class Panel:
    """All methods of a comparison, looking through the same eyes.

    Attributes:
        seconds: Spent in ``decode``, ``features`` and ``refine`` for all methods together (what of the refinement
            depends on the image alone), and in ``NAME/propose``, ``NAME/refine`` and ``NAME/write`` for each.
    """

    def __init__(self, config: CompareConfig) -> None:
        self.seconds: dict[str, float] = {}
        self._labellers: dict[str, Labeller] = {}
        backbone = None
        for name in config.methods:
            self._labellers[name] = Labeller(config.labeller(name), backbone)
            backbone = self._labellers[name].backbone
        # The view of a baseline has nothing to refine with.
        everyone = self._labellers.values()
        self._eyes = next((each for each in everyone if not each.method.BASELINE), next(iter(everyone)))

    def examine(self, files: Sequence[File]) -> Iterator[Record | ImageError]:
        """What every method finds in each image, or what is wrong with it."""
        return one_by_one(self._look, files)

    def _look(self, path: Path, name: str) -> Record:
        eyes = self._eyes
        with eyes.timed("decode"):
            pixels, size = decode(path, enough=eyes.fitted_size)
        try:
            view = eyes.look(pixels, size)
        except ValueError as error:
            raise ImageError(f"No features could be made of the image: {error}") from error
        finally:
            self._take(eyes, "")
        found = {}
        for contender, labeller in self._labellers.items():
            try:
                instances = labeller.find(view)
            except ValueError as error:
                raise ImageError(f"{contender} failed on the image: {error}") from error
            with labeller.timed("write"):
                parts = labeller.method.PARTS
                found[contender] = annotate(name, size, instances, parts)["annotations"]
            self._take(labeller, f"{contender}/")
        total = sum(len(annotations) for annotations in found.values())
        return {"file_name": name, "height": size[0], "width": size[1], "found": found, "instances": total}

    def _take(self, labeller: Labeller, prefix: str) -> None:
        for part, seconds in labeller.seconds.items():
            self.seconds[prefix + part] = self.seconds.get(prefix + part, 0.0) + seconds
        labeller.seconds.clear()


@dataclass(frozen=True, slots=True)
class _Truth:
    """The truth, and which of its images is which of the run's, by file name."""

    annotations: AnnotationSet
    images: dict[str, AnnotatedImage]


def _read_truth(path: Path, images: ImageList, names: Sequence[str]) -> _Truth:
    """Read the truth and match it before the work starts; files that cannot be read are passed over."""
    truth = read_truth(path)
    sizes = {name: read_size(images.path(name)) for name in names}
    listed = {
        number: AnnotatedImage(number, name, *size)
        for number, (name, size) in enumerate(sizes.items(), start=1)
        if size is not None
    }
    matched = match_images(tuple(listed.values()), images.root, truth)
    if listed and not any(not annotation.crowd for image in matched.values() for annotation in truth.of(image)):
        raise UsageError(f"{path} has no object in the {len(matched)} images: there is nothing to find.")
    return _Truth(truth, {listed[number].file_name: image for number, image in matched.items()})


def annotations_path(out: Path, name: str) -> Path:
    """Where the COCO file of a method is; a colon is no character for a file name."""
    return out / "annotations" / f"{name.replace(':', '-')}.json"


def _finish(
    config: CompareConfig, images: ImageList, sweep: Sweep, truth: _Truth | None, out: Path, start: float
) -> StageResult:
    make_folder(out / "annotations")
    counts = {name: _write_annotations(config, sweep, out, name) for name in config.methods}
    failures = sweep.failures()
    jsonlines.write(out / "failures.jsonl", failures)
    image_count = counts[config.methods[0]][0]
    comparison: dict[str, Any] = {
        "stage": "compare",
        "images": image_count,
        "unit": "ms an image; measures in per cent with 95 % bootstrap intervals over images; differences are paired",
        "methods": _describe_methods(config, sweep, counts),
        "left_out": config.left_out,
        "truth": None,
    }
    if truth is not None:
        comparison["truth"] = _measure(config, sweep, truth, out, comparison["methods"])
    else:
        (out / "truth.json").unlink(missing_ok=True)
    write_json(out / "comparison.json", comparison)
    write_bytes(out / "comparison.csv", _to_csv(comparison["methods"]).encode("utf-8"))
    seconds = time.perf_counter() - start
    result = StageResult(
        out=out,
        report=out / "report.html",
        images=image_count,
        instances=sum(count for _, count in counts.values()),
        failed=len(failures),
        ignored=images.ignored,
        resumed=sweep.total - sweep.fresh,
        seconds=round(seconds, 3),
        stage_seconds=_by_method(sweep.stage_seconds()),
    )
    facts = {key: value for key, value in asdict(result).items() if key not in ("out", "report")}
    rate = round(sweep.fresh / seconds, 3) if sweep.fresh else None
    write_json(out / "result.json", {"stage": "compare", **facts, "images_per_s": rate, "image_root": str(images.root)})
    write_comparison(out, load_image=lambda name: decode(images.path(name), enough=thumbnail_size)[0])
    return result


def _write_annotations(config: CompareConfig, sweep: Sweep, out: Path, name: str) -> tuple[int, int]:
    return write_coco(
        annotations_path(out, name),
        lambda: (
            {
                "file_name": record["file_name"],
                "height": record["height"],
                "width": record["width"],
                "annotations": record["found"][name],
            }
            for record in sweep.records()
        ),
        f"figureground compare, {name} on {config.backbone.name}",
    )


def _describe_methods(config: CompareConfig, sweep: Sweep, counts: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    spent = {part: 1000 * seconds / sweep.total for part, seconds in sweep.stage_seconds().items()}
    methods = []
    for name in config.methods:
        baseline = METHODS[name.partition(":")[0]].BASELINE
        # What the method would take by itself: the features, and what the refinement prepares, count for each.
        ms = {"shared": spent.get("decode", 0.0) + spent.get("features", 0.0)}
        ms |= {part: spent.get(f"{name}/{part}", 0.0) for part in ("propose", "refine")}
        ms["refine"] += 0.0 if baseline else spent.get("refine", 0.0)
        image_count, object_count = counts[name]
        methods.append(
            {
                "name": name,
                "baseline": baseline,
                "annotations": annotations_path(Path(), name).as_posix(),
                "objects": object_count,
                "objects_per_image": round(object_count / image_count, 3) if image_count else None,
                "ms": {part: round(value, 2) for part, value in (ms | {"total": sum(ms.values())}).items()},
            }
        )
    return methods


def _measure(
    config: CompareConfig, sweep: Sweep, truth: _Truth, out: Path, methods: list[dict[str, Any]]
) -> dict[str, Any]:
    """Give each of the methods its ``measures``; returns what a reader has to know of the truth."""
    covered = _write_truth(sweep, truth, out / "truth.json")
    facts = {"path": str(truth.annotations.path), "images": covered, "objects": 0, "crowd": 0, "with_masks": False}
    if not covered:
        return facts
    mine = read_truth(out / "truth.json")
    objects = mine.all()
    facts["crowd"] = sum(annotation.crowd for annotation in objects)
    facts["objects"] = len(objects) - facts["crowd"]
    facts["with_masks"] = all(annotation.mask is not None for annotation in objects)
    first = None
    for method in methods:
        predictions = read_predictions(out / method["annotations"], mine)
        measures = measure(mine, predictions, facts["with_masks"], config.seed, config.resamples)
        method["measures"] = as_per_cent(measures, first)
        first = first or measures
    return facts


def _write_truth(sweep: Sweep, truth: _Truth, path: Path) -> int:
    """Write the truth of the run's images, with the run's names and ids; returns how many images have one."""
    images, annotations = [], []
    for number, record in enumerate(sweep.records(), start=1):
        image = truth.images.get(record["file_name"])
        if image is None:
            continue
        images.append({"id": number, **{key: record[key] for key in ("file_name", "height", "width")}})
        for annotation in truth.annotations.of(image):
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": CATEGORY["id"],
                "bbox": annotation.bbox,
                "area": annotation.area,
                "iscrowd": int(annotation.crowd),
                "difficult": int(annotation.difficult),
            }
            annotations.append(entry | ({"segmentation": annotation.mask} if annotation.mask else {}))
    content = {"images": images, "annotations": annotations, "categories": [CATEGORY]}
    write_bytes(path, json.dumps(content, separators=(",", ":")).encode("ascii"))
    return len(images)


def _by_method(spent: dict[str, float]) -> dict[str, float]:
    """What is shared part by part, then each method as a whole."""
    seconds: dict[str, float] = {}
    for part, value in spent.items():
        key = part.partition("/")[0] if "/" in part else {"refine": "prepare refinement"}.get(part, part)
        seconds[key] = round(seconds.get(key, 0.0) + value, 4)
    return seconds


def _to_csv(methods: list[dict[str, Any]]) -> str:
    """One row a method; columns as in ``comparison.json``."""
    rows = []
    for method in methods:
        row = {"method": method["name"], "objects_per_image": method["objects_per_image"]}
        row |= {f"ms_{part}": value for part, value in method["ms"].items()}
        for name, values in method.get("measures", {}).items():
            for key in ("value", "low", "high", "difference", "difference_low", "difference_high"):
                row[name if key == "value" else f"{name}_{key}"] = values.get(key)
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
