"""`figureground exemplars`: a few pictures, or many, to a pool of exemplary objects."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, field_validator

from figureground import backbones
from figureground.config import build, parse_assignments, requested
from figureground.data.images import decode
from figureground.data.listing import ImageList, list_images
from figureground.errors import ImageError, RunError, UsageError
from figureground.ops.rle import RLE
from figureground.ops.rle import decode as decode_masks
from figureground.runners import Runner, run_serial
from figureground.stages.exemplar_pool import (
    PICTURES,
    POOL_FILE,
    Exemplar,
    check_not_flat,
    cut_out,
    embed_cutout,
    has_direction,
    identify,
    make_embedder,
    pivots_of,
    read_cutout,
    read_exemplars,
    read_known,
)
from figureground.stages.exemplar_sources import Discovered, Given
from figureground.stages.grouping import group
from figureground.stages.instance_features import InstanceEmbedder, View, pack, unpack
from figureground.stages.labeller import LabellerConfig, check_device, is_learned
from figureground.stages.result import Progress
from figureground.stages.sharding import File, Record, Sweep, describe_run, one_by_one, opened, prepare
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder, write_bytes, write_json
from figureground.storage.shards import fingerprint
from figureground.viewer import ExemplarSheet, crop, spread, write_exemplars

_SIZES: dict[View, int] = {"crop": 224, "image": 480}
# Pictures on the page: of a category at most, at least, and of all categories together.
_CROPS = (24, 6, 2400)
_LONGEST_STEM = 120


class ExemplarsConfig(LabellerConfig):
    """Everything that decides which exemplars are chosen."""

    images: tuple[str, ...] = Field(
        default=(), description="Files and folders of images; beside `run`: where its images are."
    )
    run: str | None = Field(default=None, description="A run with masks, or a COCO file; none: objects are discovered.")
    digest: str | None = Field(default=None, description="SHA-256 of its annotations; filled in when they are read.")
    k: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="Clusters, of whose images the instances nearest to the centre are exemplars; `auto`: by the "
        "silhouette; none: no clusters but folders, or else single images, and with a run 20 (paper: not published).",
    )
    candidates: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100),
        min_length=1,
        description="Numbers of clusters that `auto` tries.",
    )
    restarts: int = Field(default=3, ge=1, le=100, description="Beginnings of K-means, the best of which counts.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of K-means.")
    per_cluster: int = Field(default=1, ge=1, description="Exemplars of a cluster (paper: 1, 3, 5, 7 or 9 a category).")
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        default=None, description="Instances of an image that count, the surest; none: 1, and all where clusters count."
    )
    min_score: float = Field(default=0.0, ge=0, le=1, description="Instances below are left out; without a score: 1.")
    view: View | None = Field(
        default=None,
        description="What the backbone sees: the `crop` of each instance, or the `image`; none: crop where it is "
        "learned, else image, for `handcrafted` tells patches by their surroundings.",
    )
    view_size: int | None = Field(
        default=None,
        ge=16,
        le=4096,
        description="Side in px of the square a crop is brought to, or of the area of the image; none: 224 and 480.",
    )
    shard_size: int = Field(default=16, ge=1, le=10_000, description="Images a shard: what a kill can cost at most.")

    @field_validator("k", mode="before")
    @classmethod
    def _number_or_auto(cls, k: Any) -> Any:
        if isinstance(k, str) and k != "auto" and not k.strip().isdecimal():
            raise ValueError(f"Configuration key 'k' is a number of clusters or `auto`, got {k!r}.")
        return k

    @field_validator("run")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        # A run can then be gone on with from any folder.
        return os.path.abspath(os.path.expanduser(path)) if path else path

    @field_validator("images")
    @classmethod
    def _all_absolute(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(os.path.abspath(os.path.expanduser(path)) for path in images)


@dataclass(frozen=True, slots=True)
class ExemplarsResult:
    """What was made.

    Attributes:
        out: The pool's folder.
        report: The page to look at.
        images: Images looked at.
        exemplars: Pictures in the pool, those that a person has added included.
        categories: How many hidden categories they are of.
        added: Pictures that a person has added or changed.
        removed: Pictures that were made here and are gone, or were changed.
        silhouettes: Of each number of clusters that was tried.
        failed: Images and pictures that could not be used; they are named in ``failures.jsonl``.
        ignored: Other files in the folders.
        resumed: Images that an earlier start had finished already.
        seconds: Wall-clock time of this start.
    """

    out: Path
    report: Path
    images: int
    exemplars: int
    categories: int
    added: int
    removed: int
    silhouettes: dict[int, float]
    failed: int
    ignored: int
    resumed: int
    seconds: float


def configure(images: Sequence[str] = (), assignments: Sequence[str] = (), **shorthands: Any) -> ExemplarsConfig:
    """The configuration a command line asks for: ``--set``, and the shorthands over it.

    Args:
        images: Files and folders.
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
        UsageError: If it is said how objects are found, and a run already has them.
    """
    wanted = requested(assignments, shorthands, images)
    discovery = sorted((LabellerConfig.model_fields.keys() & parse_assignments(assignments)) - {"backbone", "device"})
    discovery = ["method"] * (shorthands.get("method") is not None) + discovery
    if wanted.get("run") and discovery:
        raise UsageError(
            f"{', '.join(discovery)} says how objects are found, but those of the run {wanted['run']} are given.",
            "Leave out one of the two.",
        )
    return build(ExemplarsConfig, wanted)


def run(
    config: ExemplarsConfig,
    out: Path,
    runner: Runner = run_serial,
    progress: Callable[[Progress], None] = lambda _: None,
) -> ExemplarsResult:
    """Find objects, choose exemplars among them, and make a pool of these: the exemplar knowledge abstraction.

    Without clusters, each folder among the images is a hidden category, and each image that is in none is one by
    itself (or each of its instances, where all of them count). With clusters, each of them is one.

    Can be killed at any time and called again. A pool that is finished stays as a person has left it: pictures that
    were deleted do not come back, and those that were added are looked at.

    Args:
        config: What to do.
        out: The pool's folder; made if it does not exist.
        runner: What applies the work to the shards.
        progress: Called after every image, or shard where the runner says no more, and once before the first.

    Raises:
        UsageError: If there is nothing to do, a name does not exist, there are fewer instances than clusters, or a
            person has deleted all pictures.
        ConfigError: If ``out`` holds a pool of another configuration.
        RunError: If no object was found, or the folder cannot be written or another process is writing it.

    Reference:
        Ishtiak et al., Exemplar-FreeSOLO, CVPR 2023, the exemplar knowledge abstraction module, known from its slides.
        Deviates: they do not say how objects are extracted, here by any unsupervised method; nor that exemplars can be
        chosen without a person, here the instances nearest to the centres of clusters.
    """
    start = time.perf_counter()
    # Before the folder is made: a wrong name or missing weights leave nothing behind.
    check_device(config.device)
    backbones.find(config.backbone.name)
    view = config.view or ("crop" if is_learned(config.backbone) else "image")
    k = config.k if config.k is not None or config.run is None else 20
    most = config.per_image or (1 if k is None else "all")
    config = config.replace(view=view, view_size=config.view_size or _SIZES[view], k=k, per_image=most)
    given = Given(Path(config.run), config.images) if config.run else None
    images = list_images(config.images, exclude=out) if given is None else given.images
    config = config.replace(digest=None if given is None else given.digest)
    work, search = prepare(Search, config, runner, given=given)
    maker = _Maker(config, out, images, search.embedder)
    # Where its input lies may differ, for its digest tells which it is.
    free = ("device", *(("run", "images") if config.run else ()))
    with opened(out, config, free):
        describe_run(out, config, config.device)
        sweep = Sweep(out, images, images.names, config.shard_size)
        sweep.run(work, runner, progress)
        result = maker.write(sweep, start)
        sweep.log("end", seconds=result.seconds)
    return result


class Search:
    """Looks for the instances that count in the images of a shard, and describes them.

    Args:
        config: What to use.
        given: The masks of the run, if this process has read them already.

    Attributes:
        embedder: Describes instances.
        seconds: Spent in each part.

    Raises:
        RunError: If the masks are not those that the configuration was made for, as a file of another machine.
    """

    def __init__(self, config: ExemplarsConfig, given: Given | None = None) -> None:
        assert config.view is not None
        assert config.view_size is not None
        self._config = config
        if config.run is None:
            self._source = Discovered(config)
            self.seconds = self._source.seconds
            self.embedder = InstanceEmbedder(self._source.backbone, config.view, config.view_size, config.device)
            self.embedder.seconds = self.seconds
        else:
            self._source = given or Given(Path(config.run), config.images)
            if self._source.digest != config.digest:
                raise RunError(f"{config.run} holds other masks than it did when the pool was begun.")
            self.embedder = make_embedder(config.backbone, config.view, config.view_size, config.device)
            self.seconds = self.embedder.seconds

    def examine(self, files: Sequence[File]) -> Iterator[Record | ImageError]:
        """The instances of each image, or what is wrong with it."""
        return one_by_one(self._look, files)

    def _look(self, path: Path, name: str) -> Record:
        config = self._config
        found = self._source.find(path, name)
        most = None if config.per_image == "all" else config.per_image
        kept = [index for index, score in enumerate(found.scores) if score >= config.min_score][:most]
        masks = [found.masks[index] for index in kept]
        vectors = np.zeros((0, 1), dtype=np.float32)
        if masks:
            assert found.pixels is not None
            check_not_flat(found.pixels)
            vectors = self.embedder.embed(found.pixels, masks)
        seen = [index for index, vector in enumerate(vectors) if has_direction(vector)]
        if not seen and config.k is None:
            # Among exemplars it has to have one; among many photographs some are empty.
            raise ImageError("No object was found in it.")
        return {
            "file_name": name,
            "masks": [masks[index] for index in seen],
            "scores": [found.scores[kept[index]] for index in seen],
            "vectors": pack(vectors[seen]),
            "instances": len(seen),
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """An instance that is an exemplar: its picture, and where it comes from."""

    picture: str
    image: str
    mask: RLE
    score: float
    vector: Float[np.ndarray, "D"]


class _Maker:
    """From instances to a pool."""

    def __init__(self, config: ExemplarsConfig, out: Path, images: ImageList, embedder: InstanceEmbedder) -> None:
        self.config, self.out, self.images, self.embedder = config, out, images, embedder
        assert config.view is not None
        self.identity = identify(config.backbone, config.view, embedder.size)
        self._titles = _titles(images.names, by_folder=config.k is None)

    def write(self, sweep: Sweep, start: float) -> ExemplarsResult:
        """Pictures, where they were never made; what is known of the pool as it is now; result and report."""
        records, failures = list(sweep.records()), sweep.failures()
        if not any(record["masks"] for record in records):
            first = f" The first: {failures[0]['path']}: {failures[0]['error']}" if failures else ""
            raise RunError(
                f"In none of the {sweep.total} images an object was found that can be an exemplar.{first}",
                "Take pictures with one clear object each, or find their objects otherwise (--method, min_score).",
            )
        known = self._make_pictures(records)
        exemplars, skipped = read_exemplars(
            self.out, known["pictures"], lambda *cutout: embed_cutout(self.embedder, *cutout)
        )
        # What was made stays known: a picture that comes back from the dustbin is what it was.
        for exemplar in exemplars:
            known["pictures"].setdefault(exemplar.digest, {"vector": pack(exemplar.vector[None])})
        write_json(self.out / POOL_FILE, known)
        failures += [{"path": name, "error": error} for name, error in skipped]
        jsonlines.write(self.out / "failures.jsonl", failures)
        names, pivots, _ = pivots_of(exemplars)
        made, here = set(known["made"].values()), {exemplar.digest for exemplar in exemplars}
        result = ExemplarsResult(
            out=self.out,
            report=self.out / "report.html",
            images=len(records),
            exemplars=len(exemplars),
            categories=len(names),
            added=len(here - made),
            removed=len(made - here),
            silhouettes={int(k): value for k, value in known["silhouettes"].items()},
            failed=len(failures),
            ignored=self.images.ignored,
            resumed=sweep.total - sweep.fresh,
            seconds=round(time.perf_counter() - start, 3),
        )
        facts = {key: getattr(result, key) for key in ExemplarsResult.__slots__ if key not in ("out", "report")}
        more = {"backbone": self.identity, "stage_seconds": sweep.stage_seconds()}
        write_json(self.out / "result.json", {"stage": "exemplars", **facts, **more})
        write_exemplars(self.out, _sheets(self.out, exemplars, names, pivots.numpy()))
        return result

    def _make_pictures(self, records: list[Record]) -> dict[str, Any]:
        """Make those that never were; return what is then known."""
        print_ = fingerprint(f"{record['file_name']}\n{record['vectors']}" for record in records)
        known: dict[str, Any] = {
            "backbone": self.identity,
            "embedder": {
                "backbone": self.config.backbone.model_dump(mode="json"),
                "view": self.config.view,
                "size": self.config.view_size,
            },
            "fingerprint": print_,
            "silhouettes": {},
            "made": {},
            "pictures": {},
        }
        # Written after the pictures: those that are gone, although it is there, a person has deleted.
        if (self.out / POOL_FILE).exists():
            before = read_known(self.out)
            known |= {key: before[key] for key in ("silhouettes", "made", "pictures")}
            if before["fingerprint"] == print_:
                return known
            if self.config.k is not None:
                raise UsageError(
                    f"{self.out} holds exemplars of other instances: more or fewer images could be used.",
                    "Choose another --out.",
                )
        chosen, silhouettes = self._choose(records)
        known["silhouettes"] = {k: round(value, 6) for k, value in silhouettes.items()}
        for exemplar in chosen:
            if exemplar.picture in known["made"]:
                continue
            picture = self._cut_out(exemplar)
            path = self.out / PICTURES / exemplar.picture
            make_folder(path.parent)
            write_bytes(path, picture)
            digest = hashlib.sha256(picture).hexdigest()
            known["made"][exemplar.picture] = digest
            origin = {"image": exemplar.image, "score": exemplar.score}
            known["pictures"][digest] = {**origin, "vector": pack(exemplar.vector[None])}
        return known

    def _cut_out(self, exemplar: _Chosen) -> bytes:
        try:
            pixels, _ = decode(self.images.path(exemplar.image))
        except ImageError as error:
            raise RunError(
                f"{exemplar.image} has been looked at, but can no longer be read: {error.message}",
                "Bring it back, or choose another --out.",
            ) from None
        return cut_out(pixels, decode_masks([exemplar.mask])[0].numpy())

    def _choose(self, records: list[Record]) -> tuple[list[_Chosen], dict[int, float]]:
        """All instances; with clusters those nearest to the centres, and the silhouettes."""
        every = list(self._instances(records))
        k = self.config.k
        if k is None:
            return every, {}
        if k != "auto" and k > len(every):
            raise UsageError(
                f"{k} clusters cannot be made of {len(every)} instances.",
                f"Choose --k {len(every)} at most, or --k auto.",
            )
        grouping = group(
            np.stack([exemplar.vector for exemplar in every]),
            None if k == "auto" else k,
            candidates=self.config.candidates,
            restarts=self.config.restarts,
            seed=self.config.seed,
        )
        count, chosen = int(grouping.clusters.max()), []
        for cluster in range(1, count + 1):
            members = np.flatnonzero(grouping.clusters == cluster)
            members = members[np.argsort(grouping.distances[members], kind="stable")]
            # Masks of one image are often of one object: a second one comes after the first of every other image.
            met: Counter[str] = Counter()
            turns = []
            for index in members:
                turns.append(met[every[index].image])
                met[every[index].image] += 1
            nearest = members[np.argsort(turns, kind="stable")][: self.config.per_cluster]
            folder = f"cluster {cluster:0{len(str(count))}d}"
            chosen += [replace(every[index], picture=f"{folder}/{every[index].picture}") for index in nearest]
        return chosen, grouping.silhouettes

    def _instances(self, records: list[Record]) -> Iterator[_Chosen]:
        for record in records:
            if not record["masks"]:
                continue
            category, stem = self._titles[record["file_name"]]
            vectors = unpack(record["vectors"], len(record["masks"]))
            each = zip(record["masks"], record["scores"], vectors, strict=True)
            for place, (mask, score, vector) in enumerate(each, start=1):
                title = stem if self.config.per_image == 1 else f"{stem}-{place}"
                picture = f"{category}/{title}.png" if category else f"{title}.png"
                yield _Chosen(picture, record["file_name"], mask, score, vector)


def _titles(names: Sequence[str], *, by_folder: bool) -> dict[str, tuple[str | None, str]]:
    """Of each image the category, its first folder, if it has one; and what its picture is called, unique there.

    They do not depend on which of the images can be used.

    Args:
        names: Of all images.
        by_folder: Whether folders are categories.
    """
    found: dict[str, tuple[str | None, str]] = {}
    for name in names:
        folder, separator, rest = name.partition("/")
        category = folder if separator and by_folder else None
        below = rest if category else name
        found[name] = (category, below.removesuffix(PurePosixPath(below).suffix).replace("/", "_").lstrip("."))
    # An image that is a category by itself must not be one of the folders either.
    taken = Counter(found.values()) + Counter((None, folder) for folder in {folder for folder, _ in found.values()})
    for name, (category, stem) in found.items():
        if not stem or taken[category, stem] > 1 or len(stem) > _LONGEST_STEM:
            found[name] = (category, f"{stem[:_LONGEST_STEM]}-{fingerprint([name])[:8]}")
    return found


def _sheets(
    out: Path, exemplars: Sequence[Exemplar], names: Sequence[str], pivots: Float[np.ndarray, "K D"]
) -> list[ExemplarSheet]:
    most, least, together = _CROPS
    shown = max(least, min(most, together // len(names)))
    cosines = pivots @ pivots.T
    np.fill_diagonal(cosines, -np.inf)
    sheets = []
    for index, name in enumerate(names):
        members = [exemplar for exemplar in exemplars if exemplar.category == name]
        pictures = [members[place] for place in spread(len(members), shown)]
        nearest = int(cosines[index].argmax())
        sheets.append(
            ExemplarSheet(
                name=name,
                count=len(members),
                agreement=float(np.mean([exemplar.vector @ pivots[index] for exemplar in members])),
                nearest=(names[nearest], float(cosines[index, nearest])) if len(names) > 1 else None,
                crops=[(crop(*read_cutout((out / PICTURES / e.name).read_bytes())), e.name) for e in pictures],
            )
        )
    return sheets
