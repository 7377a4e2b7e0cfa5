"""`figureground semantic cluster`: the segments of images sorted into kinds, measured by the classes of pixels."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int64, UInt8
from pydantic import Field, field_validator
from sklearn.decomposition import PCA

from figureground.config import build, requested
from figureground.data.semantic_truth import NO_CLASS, SemanticTruth
from figureground.errors import UsageError
from figureground.evaluation.clusters import normalised_mutual_information, purity
from figureground.evaluation.semantic_miou import (
    ImageConfusions,
    SemanticScores,
    majority_classes,
    match_clusters,
    semantic_scores,
)
from figureground.runners import Runner, run_serial
from figureground.stages.grouping import Grouping, group
from figureground.stages.result import Progress
from figureground.stages.semantic_features import (
    Side,
    embedding_name,
    find_photographs,
    open_truth,
    opened_run,
    prepare_looks,
    sweep_all,
)
from figureground.stages.semantic_report import (
    SemanticResult,
    absent_note,
    check_some,
    failures_of,
    make_cards,
    mean_iou,
    write_maps,
    write_page,
    write_result,
)
from figureground.stages.semantic_segments import SegmentConfig, Segmenting, gather_segments, resolve_foreground
from figureground.stages.sharding import Sweep


class SemanticClusterConfig(SegmentConfig):
    """Everything that decides what `semantic cluster` writes."""

    train: tuple[str, ...] = Field(default=(), description="Images that clusters are fitted on, or a run with masks.")
    train_images: str | None = Field(default=None, description="Folder of its images, where the run does not say.")
    fit_on: Literal["train", "val"] = Field(
        default="train",
        description="Whose segments the clusters are fitted on; `val`, the measured images themselves, is "
        "MaskContrast's protocol and flatters.",
    )
    k: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="Clusters; none: as many as classes besides the background; `auto`: the candidate with the "
        "greatest mean silhouette (MaskContrast: 20 on PASCAL).",
    )
    candidates: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100),
        min_length=1,
        description="Numbers of clusters that `auto` tries.",
    )
    silhouette_sample: int = Field(
        default=2000, ge=10, le=50_000, description="Segments at most that the silhouette is computed from."
    )
    pca: int | None = Field(
        default=None,
        ge=1,
        description="Principal components that are kept, and whitened; none: all, as they are (MaskContrast: 32).",
    )
    restarts: int = Field(default=3, ge=1, le=100, description="Beginnings of K-means, the best of which counts.")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(
        default=(1234, 1235, 1236, 1237, 1238),
        min_length=1,
        description="Of K-means; the measures are means over them, pictures are of the first (MaskContrast's).",
    )
    matching: Literal["hungarian", "majority"] | None = Field(
        default=None,
        description="Clusters to classes: one to one, or each to that of most of its pixels, which flatters the more "
        "the more clusters there are; none: one to one unless clusters outnumber classes.",
    )
    resamples: int = Field(default=1000, ge=0, le=100_000, description="Of the bootstrap over images; 0: no interval.")
    pictures: int = Field(default=48, ge=0, le=1000, description="Images on the page.")

    @field_validator("train")
    @classmethod
    def _all_absolute(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(os.path.abspath(os.path.expanduser(path)) for path in paths)

    @field_validator("k", mode="before")
    @classmethod
    def _number_or_auto(cls, k: Any) -> Any:
        if isinstance(k, str) and k != "auto" and not k.strip().isdecimal():
            raise ValueError(f"Configuration key 'k' is a number of clusters or `auto`, got {k!r}.")
        return k


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticClusterResult(SemanticResult):
    """What was made; measures are means over the seeds, all else is of the first.

    Attributes:
        segments: In the measured images.
        fitted: Segments that clusters were fitted on.
        fit_on: Whose.
        clusters: How many there are, the background left out.
        matching: How clusters were given classes.
        miou_by_seed: In per cent.
        purity: Of the clusters of segments, by the class of most of a segment's pixels, in per cent.
        nmi: Likewise.
        silhouettes: Of each number of clusters that was tried.
    """

    segments: int
    fitted: int
    fit_on: str
    clusters: int
    matching: str
    miou_by_seed: tuple[float, ...]
    purity: float | None
    nmi: float | None
    silhouettes: dict[int, float]


def configure(assignments: Sequence[str] = (), **shorthands: Any) -> SemanticClusterConfig:
    """The configuration a command line asks for: ``--set``, and the shorthands over it.

    Args:
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
    """
    return build(SemanticClusterConfig, requested(assignments, shorthands))


def run(
    config: SemanticClusterConfig,
    out: Path,
    runner: Runner = run_serial,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SemanticClusterResult:
    """Cluster the segments of images, give each pixel of a measured image the cluster of its segment, and measure.

    Can be killed at any time and called again.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        runner: What applies the work to the shards.
        progress: Called after every image and once before the first.

    Raises:
        UsageError: If there is no truth or nothing to cluster, there are fewer segments than clusters, or a file is
            wrong.
        ConfigError: If ``out`` holds a run with another configuration or of other masks.
        RunError: If the folder cannot be written or another process is writing it.

    Reference:
        Van Gansbeke et al., ICCV 2021, section 4.2, and the published code. Deviates: fitted on other images than
        measured; aspect ratio kept; saliency is a probability above 0.5, not a logit; Lloyd's K-means, not that of
        mini-batches; no whitening unless ``pca`` is set; measured at the images' own sizes.
    """
    start = time.perf_counter()
    # Before the folder is made: a wrong name or missing weights leave nothing behind.
    fits = config.fit_on == "train"
    if fits and not config.train:
        raise UsageError(
            "--train is missing: what shall the clusters be fitted on?",
            "Name images or a run, or take the images that are measured, as MaskContrast did: --fit-on val.",
        )
    truth = open_truth(config, "val")
    sides: dict[Side, Any] = {"val": (truth.images, partial(Segmenting, side="val", counted=True))}
    if fits:
        photographs = find_photographs(config.train, config.train_images, out)
        given = photographs.run is not None and config.train_masks is None
        if given and resolve_foreground(config, has_run=True) == "masks":
            config = config.replace(train_masks=str(photographs.run))
        sides = {"train": (photographs.images, partial(Segmenting, side="train", counted=False)), **sides}
    config, looks = prepare_looks(config, sides, runner)
    with opened_run(out, config, list(looks)):
        sweeps = sweep_all(looks, out, config.shard_size, runner, progress)
        result = _Clustering(config, truth, sweeps).write(out, start)
        sweeps["val"].log("end", seconds=result.seconds)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """Clusters of one seed.

    Attributes:
        grouping: Of the segments that were fitted.
        clusters: Of the measured segments, from 1; 0 is what is no segment.
        confusions: By image.
        matched: The class of each cluster.
        scores: Of all images.
    """

    grouping: Grouping
    clusters: Int64[np.ndarray, "N"]
    confusions: ImageConfusions
    matched: Sequence[int | None]
    scores: SemanticScores


class _Clustering:
    """Fits clusters and measures them."""

    def __init__(self, config: SemanticClusterConfig, truth: SemanticTruth, sweeps: dict[str, Sweep]) -> None:
        self.config, self.truth, self.sweeps = config, truth, sweeps
        self.classes = len(truth.classes)
        self.val = gather_segments(sweeps["val"], self.classes)
        check_some(self.val.files, sweeps["val"])
        fitted = gather_segments(sweeps["train"]).vectors if config.fit_on == "train" else self.val.vectors
        self.fitted, self.measured = _projected(fitted, self.val.vectors, config.pca)
        self.k = self._count()
        self.fits = [self._fit(seed) for seed in config.seeds]

    def _count(self) -> int | None:
        """How many clusters; ``None``: by the silhouette."""
        config, found = self.config, len(self.fitted)
        if not found:
            raise UsageError(
                f"No segment was found in the images of {config.fit_on}: nothing is foreground.",
                "Look at the masks or the saliency, or choose another foreground: --set foreground=label.",
            )
        if config.k == "auto":
            return None
        k = config.k if config.k is not None else self.classes - (self.truth.background is not None)
        if k > found:
            raise UsageError(
                f"{k} clusters cannot be made of {found} segments.", f"Choose --k {found} at most, or --k auto."
            )
        return k

    def _fit(self, seed: int) -> _Fit:
        config, val = self.config, self.val
        grouping = group(
            self.fitted,
            self.k,
            candidates=config.candidates,
            sample=config.silhouette_sample,
            restarts=config.restarts,
            seed=seed,
        )
        clusters = grouping.clusters
        if config.fit_on == "train":
            clusters = _nearest(self.measured, _centres(self.fitted, grouping))
        confusions = ImageConfusions(len(val.files), int(grouping.clusters.max()) + 1, self.classes)
        confusions.add(val.images, clusters, val.counts)
        places = np.arange(len(val.files))
        confusions.add(places, np.zeros_like(places), val.ground)
        total = confusions.total()
        by_majority = self.matching_name(grouping) == "majority"
        matched = majority_classes(total) if by_majority else match_clusters(total)
        return _Fit(grouping, clusters, confusions, matched, semantic_scores(total, matched))

    def matching_name(self, grouping: Grouping) -> str:
        """As the configuration says, or its rule."""
        # The background is a cluster as well.
        over = int(grouping.clusters.max()) + 1 > self.classes
        return self.config.matching or ("majority" if over else "hungarian")

    def write(self, out: Path, start: float) -> SemanticClusterResult:
        """Write maps, result and report."""
        first, val = self.fits[0], self.val
        write_maps(out, val.files, self.predicted)
        values = [fit.scores.miou for fit in self.fits if fit.scores.miou is not None]
        matched = [(fit.confusions, fit.matched) for fit in self.fits]
        mean = float(np.mean(values)) if values else None
        measured = self._quality(first)
        result = SemanticClusterResult(
            out=out,
            report=out / "report.html",
            images=len(val.files),
            miou=mean_iou(matched, mean, len(val.files), self.config.resamples),
            per_class=self._per_class(),
            notes=self._notes(),
            failed=len(failures_of(self.sweeps)),
            resumed=sum(sweep.total - sweep.fresh for sweep in self.sweeps.values()),
            seconds=round(time.perf_counter() - start, 3),
            segments=len(val.images),
            fitted=len(self.fitted),
            fit_on=self.config.fit_on,
            clusters=int(first.grouping.clusters.max()),
            matching=self.matching_name(first.grouping),
            miou_by_seed=tuple(round(100 * value, 3) for value in values),
            purity=measured and measured[0],
            nmi=measured and measured[1],
            silhouettes=first.grouping.silhouettes,
        )
        write_result("semantic cluster", result, self.sweeps, by_cluster=self._by_cluster())
        self._report(result)
        return result

    def predicted(self, place: int) -> UInt8[np.ndarray, "H W"]:
        """The class of each pixel of an image, by the first seed; ``NO_CLASS`` where its cluster stands for none."""
        fit, record = self.fits[0], self.val.files[place]
        names = np.array([NO_CLASS if number is None else number for number in fit.matched], dtype=np.uint8)
        found = np.full((record["height"], record["width"]), names[0])
        for mask, cluster in zip(self.val.masks(place), fit.clusters[self.val.images == place], strict=True):
            found[mask] = names[cluster]
        return found

    def _per_class(self) -> dict[str, float | None]:
        means: dict[str, float | None] = {}
        for number, name in enumerate(self.truth.classes):
            values = [fit.scores.per_class[number] for fit in self.fits]
            known = [value for value in values if value is not None]
            means[name] = round(100 * float(np.mean(known)), 3) if known else None
        return means

    def _quality(self, fit: _Fit) -> tuple[float, float] | None:
        """Purity and NMI of the segments that have a class, in per cent."""
        known = self.val.counts.any(1)
        if not known.any():
            return None
        clusters = fit.clusters[known].tolist()
        names = [self.truth.classes[number] for number in self.val.counts[known].argmax(1)]
        pure, mutual = purity(clusters, names), normalised_mutual_information(clusters, names)
        return round(100 * pure, 3), round(100 * mutual, 3)

    def _notes(self) -> tuple[str, ...]:
        notes = [f"Clusters of {embedding_name(self.config)}, one vector a segment."]
        if self.config.fit_on == "val":
            notes.append(
                "Fitted on the images that are measured (MaskContrast's protocol): not comparable with clusters that "
                "were fitted on other images."
            )
        if self.matching_name(self.fits[0].grouping) == "majority":
            notes.append(
                "Each cluster stands for the class of most of its pixels, many to one: never compare it with a "
                "matching one to one."
            )
        return (*notes, *absent_note(self.truth, self.fits[0].confusions.total().sum(0).tolist()))

    def _by_cluster(self) -> list[dict[str, Any]]:
        first = self.fits[0]
        pixels = first.confusions.total().sum(1)
        return [
            {
                "cluster": number,
                "class": None if found is None else self.truth.classes[found],
                "pixels": int(pixels[number]),
                "segments": int((first.clusters == number).sum()),
            }
            for number, found in enumerate(first.matched)
        ]

    def _report(self, result: SemanticClusterResult) -> None:
        remarks = {}
        for number in range(self.classes):
            matched = enumerate(self.fits[0].matched)
            found = [cluster for cluster, of in matched if of == number]
            named = [f"cluster {cluster}" if cluster else "what is no segment" for cluster in found]
            remarks[number] = ", ".join(named)
        facts = [
            ("clusters", f"{result.clusters:,}", f"{result.matching}; fitted on {result.fit_on}"),
            ("segments", f"{result.segments:,}", f"in {result.images:,} images; fitted on {result.fitted:,}"),
        ]
        numbers = [("mIoU by seed", f"{min(result.miou_by_seed):.1f} to {max(result.miou_by_seed):.1f}")]
        if result.purity is not None and result.nmi is not None:
            numbers += [("purity of segments", f"{result.purity:.1f} %"), ("NMI of segments", f"{result.nmi:.1f} %")]
        numbers += [(f"silhouette at K = {k}", f"{value:.3f}") for k, value in result.silhouettes.items()]
        cards = make_cards(self.truth, self.val.files, self.config.pictures, self.predicted)
        write_page("semantic cluster", result, self.truth, facts, remarks=remarks, numbers=numbers, cards=cards)


def _projected(
    fitted: Float[np.ndarray, "N D"], measured: Float[np.ndarray, "M D"], components: int | None
) -> tuple[Float[np.ndarray, "N P"], Float[np.ndarray, "M P"]]:
    """Both on the whitened principal components of the first, where so wanted."""
    # So many vectors differ from their mean in one direction less; whitening would blow up the noise of the last.
    if components is None or len(fitted) < 2:
        return fitted, measured
    means = PCA(min(components, len(fitted) - 1, fitted.shape[1]), whiten=True, svd_solver="full").fit(fitted)
    return means.transform(fitted), means.transform(measured) if len(measured) else measured


def _centres(vectors: Float[np.ndarray, "N D"], grouping: Grouping) -> Float[np.ndarray, "K D"]:
    """The mean of each cluster, which is what K-means ends at."""
    numbers = range(1, int(grouping.clusters.max()) + 1)
    return np.stack([vectors[grouping.clusters == number].mean(0) for number in numbers])


def _nearest(vectors: Float[np.ndarray, "N D"], centres: Float[np.ndarray, "K D"]) -> Int64[np.ndarray, "N"]:
    """The number of the nearest centre, from 1."""
    if not len(vectors):
        return np.zeros(0, dtype=np.int64)
    distances = (centres**2).sum(1) - 2 * vectors @ centres.T
    return distances.argmin(1) + 1
