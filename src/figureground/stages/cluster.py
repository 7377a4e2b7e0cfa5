"""`figureground cluster`: the instances of a run sorted into kinds, for a person to name."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pycocotools import mask as coco_mask
from pydantic import Field, field_validator

from figureground import backbones
from figureground.config import Config, build, requested
from figureground.data.coco import ImageAnnotations, write_coco
from figureground.data.images import decode
from figureground.data.label_file import LabelFile
from figureground.data.listing import ImageList
from figureground.errors import ImageError, RunError, UsageError
from figureground.ops.rle import decode as decode_masks
from figureground.runners import Runner, run_serial
from figureground.stages.cluster_truth import TruthClasses
from figureground.stages.detecting import digest_of
from figureground.stages.grouping import Grouping, group
from figureground.stages.instance_features import InstanceEmbedder, View, pack, unpack
from figureground.stages.labeller import BackboneConfig, check_device, is_learned
from figureground.stages.labels import find_labels
from figureground.stages.result import Progress
from figureground.stages.sharding import File, Record, Sweep, describe_run, one_by_one, opened, prepare
from figureground.storage import jsonlines
from figureground.storage.atomic import write_json
from figureground.storage.shards import fingerprint
from figureground.viewer import Sheet, crop, spread, write_clusters

# What may differ when a run goes on: where it computes, where its input lies (its digest tells which it is), and what
# it is measured by.
_FREE = ("device", "run", "images", "truth")
_SIZES: dict[View, int] = {"crop": 224, "image": 480}
# Crops on the page: of a cluster at most, at least, and of all clusters together.
_CROPS = (24, 6, 2400)


class ClusterConfig(Config):
    """Everything that decides what `cluster` writes."""

    run: str = Field(default="", description="A run's folder, or anyone's COCO file with masks.")
    digest: str | None = Field(default=None, description="SHA-256 of its annotations; filled in when they are read.")
    images: str | None = Field(default=None, description="Folder of the images; none: the run says where they are.")
    min_score: float = Field(default=0.0, ge=0, le=1, description="Masks below are left out; without a score: 1.")
    k: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default=20,
        description="Clusters; `auto`: the candidate with the greatest mean silhouette (MaskContrast: 20; U2Seg: 800).",
    )
    candidates: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100),
        min_length=1,
        description="Numbers of clusters that `auto` tries.",
    )
    silhouette_sample: int = Field(
        default=2000, ge=10, le=50_000, description="Instances at most that the silhouette is computed from."
    )
    restarts: int = Field(default=3, ge=1, le=100, description="Beginnings of K-means, the best of which counts.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of K-means and of the sample.")
    backbone: BackboneConfig = BackboneConfig()
    view: View | None = Field(
        default=None,
        description="What the backbone sees: the `crop` of each instance, or the `image`; none: crop where it is "
        "learned, else image, for `handcrafted` tells patches by their surroundings (LOST, U2Seg: crop).",
    )
    size: int | None = Field(
        default=None,
        ge=16,
        le=4096,
        description="Side in px of the square a crop is brought to, or of the area of the image; none: 224 and 480.",
    )
    truth: str | None = Field(default=None, description="COCO file whose objects have classes, to measure by.")
    shard_size: int = Field(default=32, ge=1, le=10_000, description="Images a shard: what a kill can cost at most.")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")

    @field_validator("k", mode="before")
    @classmethod
    def _number_or_auto(cls, k: Any) -> Any:
        if isinstance(k, str) and k != "auto" and not k.strip().isdecimal():
            raise ValueError(f"Configuration key 'k' is a number of clusters or `auto`, got {k!r}.")
        return k

    @field_validator("run", "images", "truth")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        # A run can then be gone on with from any folder.
        return os.path.abspath(os.path.expanduser(path)) if path else path


@dataclass(frozen=True, slots=True)
class ClusterResult:
    """What was made.

    Attributes:
        out: The run's folder.
        report: The page to look at.
        images: Images finished.
        instances: Written; those of dropped clusters are not.
        clusters: How many there are, dropped ones among them.
        named: How many of them have a name.
        dropped: How many a person has dropped.
        silhouettes: Of each number of clusters that was tried.
        measured: By the truth: ``purity`` and ``nmi`` in per cent, ``matched``, ``classes``; ``None`` without one.
        failed: Images that could not be used; they are named in ``failures.jsonl``.
        resumed: Images that an earlier start had finished already.
        seconds: Wall-clock time of this start.
    """

    out: Path
    report: Path
    images: int
    instances: int
    clusters: int
    named: int
    dropped: int
    silhouettes: dict[int, float]
    measured: dict[str, Any] | None
    failed: int
    resumed: int
    seconds: float


def configure(run: str | os.PathLike[str], assignments: Sequence[str] = (), **shorthands: Any) -> ClusterConfig:
    """The configuration a command line asks for: ``--set``, and the shorthands over it.

    Args:
        run: A run's folder, or a COCO file.
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
    """
    return build(ClusterConfig, {**requested(assignments, shorthands), "run": os.fspath(run)})


def run(
    config: ClusterConfig,
    out: Path,
    runner: Runner = run_serial,
    progress: Callable[[Progress], None] = lambda _: None,
) -> ClusterResult:
    """Give each instance of a run a cluster, and write them as a run with a category for each.

    A cluster has the name that ``names.json`` in the run's folder gives it (``{"1": "dog", "2": null}``; ``null`` drops
    it; clusters of one name are one category), or its number. Can be killed at any time and called again; what was
    clustered stays clustered, so that names stay right.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        runner: What applies the work to the shards.
        progress: Called after every image and once before the first.

    Raises:
        UsageError: If there is nothing to cluster, there are fewer instances than clusters, a file is wrong, or
            ``names.json`` names what is not there.
        ConfigError: If ``out`` holds a run with another configuration or of other masks.
        RunError: If the folder cannot be written or another process is writing it.
    """
    start = time.perf_counter()
    # Before the folder is made: a wrong name or missing weights leave nothing behind.
    check_device(config.device)
    source = _Source(config)
    truth = None if config.truth is None else TruthClasses(Path(config.truth))
    view = config.view or ("crop" if is_learned(config.backbone) else "image")
    config = config.replace(digest=source.digest, view=view, size=config.size or _SIZES[view])
    work, _ = prepare(Embedding, config, runner, source=source)
    with opened(out, config, _FREE):
        names = read_names(out / "names.json")
        describe_run(out, config, config.device)
        sweep = Sweep(out, source.images, source.images.names, config.shard_size)
        sweep.run(work, runner, progress)
        grouping = _grouped(config, sweep, out / "clusters.json", bool(names))
        result = _write(config, source, sweep, grouping, names, truth, out, start)
        sweep.log("end", seconds=result.seconds)
    return result


class _Source:
    """The masks that are clustered, and their images.

    Attributes:
        digest: Of the annotations.
        images: Those of the file, in its order.
    """

    def __init__(self, config: ClusterConfig) -> None:
        file, root = find_labels(Path(config.run), [config.images] if config.images else [])
        self._min_score = config.min_score
        self._labels, self.digest = LabelFile(file), digest_of(file)
        names = tuple(labelled["file_name"] for labelled in self._labels)
        self._index = {name: index for index, name in enumerate(names)}
        if len(self._index) < len(names):
            raise UsageError(f"{file} lists an image twice.", "Give each image one entry.")
        self.images = ImageList(root, names, 0)
        count = sum(len(self.chosen(name)) for name in names)
        if not count:
            raise UsageError(
                f"{file} has no mask to cluster ({self._labels.annotations} masks, "
                f"{config.min_score:g} is the least score).",
                "Name the run of `label` or `predict`, or lower min_score.",
            )
        _check_enough(config, count)

    def chosen(self, name: str) -> list[dict[str, Any]]:
        """The annotations of an image that are clustered."""
        found = self.labelled(name)["annotations"]
        return [entry for entry in found if entry["score"] is None or entry["score"] >= self._min_score]

    def labelled(self, name: str) -> ImageAnnotations:
        """An image as the file has it."""
        return self._labels[self._index[name]]

    def decode(self, path: Path, name: str) -> np.ndarray:
        """The pixels of an image, which must be what the masks were made for."""
        pixels, size = decode(path)
        labelled = self.labelled(name)
        if size != (labelled["height"], labelled["width"]):
            raise ImageError(
                f"The image has {size[0]}x{size[1]} px, but its masks have "
                f"{labelled['height']}x{labelled['width']} (height x width)."
            )
        return pixels


class Embedding:
    """Describes the instances in the images of a shard.

    Args:
        config: What to use.
        source: The masks, if this process has read them already.

    Attributes:
        seconds: Those of the embedder.

    Raises:
        RunError: If the masks are not those that the configuration was made for, as a file of another machine.
    """

    def __init__(self, config: ClusterConfig, source: "_Source | None" = None) -> None:
        self._source = source or _Source(config)
        if self._source.digest != config.digest:
            raise RunError(f"{config.run} holds other masks than it did when the run was started.")
        view, choice = config.view, config.backbone
        assert view is not None
        assert config.size is not None
        backbone = backbones.load(
            choice.name, choice.weights, choice.features, precision=choice.precision, device=config.device
        )
        self._embedder = InstanceEmbedder(backbone, view, config.size, config.device)
        self.seconds = self._embedder.seconds

    def examine(self, files: Sequence[File]) -> Iterator[Record | ImageError]:
        """The vectors of each image, or what is wrong with it."""
        return one_by_one(self._look, files)

    def _look(self, path: Path, name: str) -> Record:
        masks = [entry["segmentation"] for entry in self._source.chosen(name)]
        packed = pack(self._embedder.embed(self._source.decode(path, name), masks)) if masks else ""
        return {"file_name": name, "vectors": packed, "count": len(masks), "instances": len(masks)}


def _check_enough(config: ClusterConfig, count: int) -> None:
    if config.k != "auto" and config.k > count:
        raise UsageError(
            f"{config.k} clusters cannot be made of {count} instances.", f"Choose --k {count} at most, or --k auto."
        )


def _grouped(config: ClusterConfig, sweep: Sweep, path: Path, named: bool) -> Grouping:
    """The clusters of the run, from an earlier start if its instances were the same."""
    records = list(sweep.records())
    if not any(record["count"] for record in records):
        failures = sweep.failures()
        raise RunError(
            f"None of the images with masks could be used. The first: {failures[0]['path']}: {failures[0]['error']}",
            "If they have moved, add --set images=FOLDER.",
        )
    vectors = np.concatenate([unpack(record["vectors"], record["count"]) for record in records if record["count"]])
    _check_enough(config, len(vectors))
    print_ = fingerprint(record["vectors"] for record in records)
    before = json.loads(path.read_text("utf-8")) if path.exists() else None
    if before is not None and before["fingerprint"] == print_:
        tried = {int(k): value for k, value in before["silhouettes"].items()}
        return Grouping(np.array(before["clusters"]), np.array(before["distances"]), tried)
    if named:
        raise UsageError(
            f"{path.with_name('names.json')} names clusters of other instances: more or fewer images could be used.",
            "Move it away, run again, and name the new clusters.",
        )
    grouping = group(
        vectors,
        None if config.k == "auto" else config.k,
        candidates=config.candidates,
        sample=config.silhouette_sample,
        restarts=config.restarts,
        seed=config.seed,
    )
    kept = {
        "fingerprint": print_,
        "clusters": grouping.clusters.tolist(),
        "distances": [round(float(distance), 5) for distance in grouping.distances],
        "silhouettes": {k: round(value, 6) for k, value in grouping.silhouettes.items()},
    }
    write_json(path, kept)
    return grouping


def read_names(path: Path) -> dict[int, str | None]:
    """What a person calls the clusters; ``None`` for a dropped one. No file, no names.

    Raises:
        UsageError: If it is not an object of numbers and names.
    """
    if not path.exists():
        return {}
    remedy = 'It is to look so: {"1": "dog", "2": null}; null drops a cluster.'
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", remedy) from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not an object.", remedy)
    for key, name in content.items():
        if not (key.isascii() and key.isdecimal()):
            raise UsageError(f"{path}: {key!r} is not the number of a cluster.", remedy)
        if name is not None and not (isinstance(name, str) and name.strip()):
            raise UsageError(f"{path}: the name of cluster {key} is not a text: {json.dumps(name)}.", remedy)
    return {int(key): name if name is None else name.strip() for key, name in content.items()}


def _categories(count: int, names: dict[int, str | None], path: Path) -> dict[int, tuple[int, str]]:
    """Id and name of the category of each cluster that is not dropped; that of one name is its first cluster's."""
    unknown = sorted(number for number in names if not 1 <= number <= count)
    if unknown:
        raise UsageError(
            f"{path} names clusters that are not there: {', '.join(map(str, unknown))}.",
            f"There are 1 to {count}; the report shows them.",
        )
    ids: dict[str, int] = {}
    found = {}
    for cluster in range(1, count + 1):
        name = names.get(cluster, f"cluster {cluster}")
        if name is not None:
            found[cluster] = (ids.setdefault(name, cluster), name)
    if not found:
        raise UsageError(f"{path} drops all {count} clusters, so that nothing is left.", "Keep one.")
    return found


def _write(
    config: ClusterConfig,
    source: _Source,
    sweep: Sweep,
    grouping: Grouping,
    names: dict[int, str | None],
    truth: TruthClasses | None,
    out: Path,
    start: float,
) -> ClusterResult:
    count = int(grouping.clusters.max())
    categories = _categories(count, names, out / "names.json")
    rows = [{"id": number, "name": name} for number, name in sorted(set(categories.values()))]
    clustered = _Clustered(source, sweep, grouping)
    description = f"figureground cluster, {count} clusters on {config.backbone.name}"
    # What is measured is every cluster, whatever a person has called it.
    measured = None if truth is None else truth.measure(clustered.images(None), count)
    images, instances = write_coco(
        out / "annotations.json", lambda: clustered.images(categories), description, categories=rows
    )
    failures = sweep.failures()
    jsonlines.write(out / "failures.jsonl", failures)
    result = ClusterResult(
        out=out,
        report=out / "report.html",
        images=images,
        instances=instances,
        clusters=count,
        named=sum(name is not None for name in names.values()),
        dropped=count - len(categories),
        silhouettes=grouping.silhouettes,
        measured=measured,
        failed=len(failures),
        resumed=sweep.total - sweep.fresh,
        seconds=round(time.perf_counter() - start, 3),
    )
    facts = {key: getattr(result, key) for key in ClusterResult.__slots__ if key not in ("out", "report")}
    more = {"stage_seconds": sweep.stage_seconds(), "image_root": str(source.images.root)}
    write_json(out / "result.json", {"stage": "cluster", **facts, **more})
    majorities = {} if measured is None else measured["majorities"]
    write_clusters(out, [_sheet(number, names, majorities, clustered) for number in range(1, count + 1)])
    return result


class _Clustered:
    """The instances that could be used, each with its cluster."""

    def __init__(self, source: _Source, sweep: Sweep, grouping: Grouping) -> None:
        self.source, self.grouping = source, grouping
        self._files = [(record["file_name"], record["count"]) for record in sweep.records()]
        # Image and place of each instance.
        self._places = [(name, place) for name, count in self._files for place in range(count)]

    def images(self, categories: dict[int, tuple[int, str]] | None) -> Iterator[ImageAnnotations]:
        """Each image; without ``categories`` the category of an annotation is its cluster, and none is dropped."""
        clusters = iter(self.grouping.clusters.tolist())
        for name, _ in self._files:
            annotations = []
            for entry in self.source.chosen(name):
                cluster = next(clusters)
                if categories is None:
                    annotations.append(_annotation(entry, cluster, cluster))
                elif cluster in categories:
                    annotations.append(_annotation(entry, categories[cluster][0], cluster))
            yield {**self.source.labelled(name), "annotations": annotations}

    def crops(self, cluster: int, most: int) -> Iterator[tuple[str, str]]:
        """Some instances of a cluster as the page shows them, from the nearest to its centre to the farthest."""
        members = np.flatnonzero(self.grouping.clusters == cluster)
        ordered = members[np.argsort(self.grouping.distances[members], kind="stable")]
        for index in spread(len(ordered), most):
            name, place = self._places[ordered[index]]
            try:
                pixels = self.source.decode(self.source.images.path(name), name)
            except ImageError:
                # It has gone since it was looked at: the page does without it.
                continue
            [mask] = decode_masks([self.source.chosen(name)[place]["segmentation"]])
            yield crop(pixels, mask.numpy()), name


def _annotation(entry: dict[str, Any], category: int, cluster: int) -> dict[str, Any]:
    rle: Any = {"size": entry["segmentation"]["size"], "counts": entry["segmentation"]["counts"].encode("ascii")}
    annotation: dict[str, Any] = {
        "bbox": [int(value) for value in coco_mask.toBbox(rle)],
        "area": int(coco_mask.area(rle)),
        "segmentation": entry["segmentation"],
        "category_id": category,
        "cluster": cluster,
    }
    return annotation if entry["score"] is None else {**annotation, "score": entry["score"]}


def _sheet(
    number: int, names: dict[int, str | None], majorities: dict[int, tuple[str, float]], clustered: _Clustered
) -> Sheet:
    most, least, together = _CROPS
    count = int(clustered.grouping.clusters.max())
    return Sheet(
        id=number,
        name=names.get(number),
        dropped=number in names and names[number] is None,
        count=int((clustered.grouping.clusters == number).sum()),
        majority=majorities.get(number),
        crops=list(clustered.crops(number, max(least, min(most, together // count)))),
    )
