"""What `self-train` and `learn` are made of: steps that are done once, and rounds of them."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from figureground import detectors
from figureground.config import Config, build, merge
from figureground.data.annotation_file import annotations_name
from figureground.data.images import decode
from figureground.data.label_file import LabelFile
from figureground.data.listing import ImageList
from figureground.data.merge import MergeConfig, merge_files
from figureground.data.merge import merge as merge_masks
from figureground.errors import ImageError, RunError, UsageError
from figureground.stages import evaluate, predict, train
from figureground.stages.detecting import DETECTOR_FILE, Finder, digest_of, load_detector
from figureground.stages.environment import describe
from figureground.stages.exemplar_pool import load_pool
from figureground.stages.labeller import check_device
from figureground.stages.predict import PredictConfig
from figureground.stages.result import Progress
from figureground.stages.resume import check_config
from figureground.stages.train import TrainConfig
from figureground.stages.train_recipes import find_recipe
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder, write_json, writing
from figureground.storage.lock import exclusive
from figureground.training.loop import StepReport
from figureground.viewer.page import spread
from figureground.viewer.rounds import Row, write_rounds

# What the rounds fill in; set from outside it would do nothing.
FILLED_IN_TRAIN = ("annotations", "digest", "images", "init_digest", "exemplars_digest", "device")
_FILLED_IN_PREDICT = ("detector", "digest", "images", "limit", "device")
# What may differ when a run goes on, wherever these configurations lie: how it computes and what is measured beside it.
FREE_IN_TRAIN = ("workers", "checkpoint_every", "watch_every", "probe", "tensorboard")
# A published recipe is followed by its published one.
_LATER = {
    "cutler_cascade": "cutler_self_train",
    "cutler_cascade_paper": "cutler_self_train_paper",
    "cutler_mask_rcnn": "cutler_self_train",
    "cutler_mask_rcnn_paper": "cutler_self_train_paper",
}
# Images on the page, and the score from which a detector's objects are shown there.
_SHOWN = 12
_SURE = 0.5


class RoundsConfig(Config):
    """Rounds of self-training; the defaults are CutLER's."""

    rounds: int = Field(default=3, ge=0, description="How often the detector is trained anew (CutLER: 3).")
    thresholds: tuple[float, ...] = Field(
        default=(0.7, 0.65),
        min_length=1,
        description="Score from which predictions become pseudo-labels, round by round; the last one holds for all "
        "later rounds (CutLER: 0.7, then 0.65; that of round 3 is not stated).",
    )
    merge: MergeConfig = MergeConfig()
    afresh: bool = Field(
        default=False,
        description="Each round begins with train.init, as the first training did, and not with the detector before "
        "(CutLER: no; FreeSOLO: yes).",
    )
    predict: PredictConfig = PredictConfig(max_detections=30)
    train: TrainConfig = TrainConfig()

    @field_validator("thresholds")
    @classmethod
    def _shares(cls, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError(f"Configuration key 'thresholds': scores in [0, 1], got {thresholds}.")
        return thresholds

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> "RoundsConfig":
        check_filled_in(self.train, "train", FILLED_IN_TRAIN)
        if not self.afresh:
            check_filled_in(self.train, "train", ("init",))
        check_filled_in(self.predict, "predict", _FILLED_IN_PREDICT)
        if self.merge.min_score != MergeConfig().min_score:
            raise ValueError("merge.min_score is set, but every round has its own: set thresholds=[0.7,0.65].")
        return self

    def threshold(self, number: int) -> float:
        """That of a round, which count from 1."""
        return self.thresholds[min(number, len(self.thresholds)) - 1]


def check_filled_in(config: Config, name: str, keys: Sequence[str]) -> None:
    """Raise :class:`ValueError` if a key is set that a stage fills in itself."""
    for key in keys:
        if getattr(config, key) != type(config).model_fields[key].get_default():
            raise ValueError(f"{name}.{key} cannot be set: it follows from the run.")


def settings_of_rounds(first: TrainConfig) -> dict[str, Any]:
    """The rounds that follow a training, as a tree of :class:`RoundsConfig`: CutLER's, or of a SOLOv2 FreeSOLO's.

    FreeSOLO has one round, which replaces all masks by what scores 0.3, and begins as the first training did.

    Reference:
        Wang et al., CutLER, CVPR 2023, section 3.4, and its released configurations; Wang et al., FreeSOLO, CVPR 2022,
        section 3.4, and its released scripts.
    """
    train = later(first)
    if first.detector.detector != "solov2":
        return {"train": train.model_dump()}
    return {
        "rounds": 1,
        "thresholds": (0.3,),
        "merge": {"keep_older": False, "nms": None, "max_width": 0.95},
        "predict": {"max_detections": 20},
        "afresh": True,
        "train": {**train.model_dump(), "init": first.init},
    }


def later(first: TrainConfig) -> TrainConfig:
    """The settings of the rounds that follow a training: half of its steps, no DropLoss, larger pasted objects.

    A published recipe is followed by its published one. A training without DropLoss is taken to be a later round
    itself; SOLOv2, which has none, learns every round alike.

    Reference:
        Wang et al., CutLER, CVPR 2023, section 3.4, and its released configurations; Wang et al., FreeSOLO, CVPR 2022,
        section 3.4.
    """
    tree = first.model_dump() | {"init": None, "init_digest": None}
    if getattr(first.detector, "drop_loss", None) is None:
        return build(TrainConfig, tree)
    changes: dict[str, Any] = {"detector": {"drop_loss": None}, "copy_paste": {"scale": (0.5, 1.0)}}
    successor = _LATER.get(first.recipe)
    if successor is not None:
        name = first.detector.detector
        preset = detectors.configure(name, "self_train")
        own = preset.model_dump(include={"rpn": {"nms": True, "train": True}, "drop_loss": True})
        changes = {**find_recipe(successor).settings(name), "detector": own, "recipe": successor}
    if first.copy_paste is None:
        changes.pop("copy_paste")
    return build(TrainConfig, {**merge(tree, changes), "steps": max(1, first.steps // 2)})


# Steps.


def _silent(_: str) -> AbstractContextManager[Callable[[Any], None]]:
    return nullcontext(lambda _: None)


@dataclass(frozen=True, slots=True)
class Bars:
    """How a run of several steps speaks of each: from a title to a block, within which what it yields is called.

    Attributes:
        images: Of a step that goes through images.
        steps: Of a training.
    """

    images: Callable[[str], AbstractContextManager[Callable[[Progress], None]]] = _silent
    steps: Callable[[str], AbstractContextManager[Callable[[StepReport], None]]] = _silent


@dataclass(frozen=True, slots=True)
class Made:
    """What a step has made.

    Attributes:
        path: The file.
        digest: SHA-256 of it.
        facts: For the report.
    """

    path: Path
    digest: str
    facts: dict[str, Any] = field(default_factory=dict)


class Chain:
    """The steps of a run, one after another; each is done exactly when its marker is there, which is written last.

    Args:
        out: The run's folder.
        bars: How they speak.

    Attributes:
        resumed: Steps that an earlier start had done.
    """

    def __init__(self, out: Path, bars: Bars) -> None:
        self.out, self.bars = out, bars
        self.resumed = 0
        self.done: list[str] = []

    def step(
        self, name: str, inputs: Sequence[str], product: str, work: Callable[[], dict[str, Any]], marker: str = "done"
    ) -> Made:
        """Do a step, unless it is done and was made from the same.

        Args:
            name: Its folder, relative to the run.
            inputs: Digests of what it is made from.
            product: The file in the folder that the next steps read.
            work: Makes it; its facts must fit into JSON.
            marker: Name of the file that says that it is done.
        """
        folder = self.out / name
        path = folder / f"{marker}.json"
        done = _read(path)
        if done is None or done["inputs"] != list(inputs) or not (folder / product).exists():
            start = time.perf_counter()
            self.log("begin", step=name)
            facts = work()
            done = {"inputs": list(inputs), "digest": digest_of(folder / product), "facts": facts}
            write_json(path, done)
            self.log("done", step=name, seconds=round(time.perf_counter() - start, 3), **facts)
        else:
            self.resumed += 1
        self.done.append(name)
        return Made(folder / product, done["digest"], done["facts"])

    def log(self, event: str, **facts: Any) -> None:
        """Add a line to ``log.jsonl``."""
        jsonlines.append(self.out / "log.jsonl", {"event": event, "time": time.time(), **facts})

    def failures(self) -> list[dict[str, str]]:
        """Path and error of what the steps could not use, each image once."""
        found: dict[str, dict[str, str]] = {}
        for name in self.done:
            for entry in jsonlines.read(self.out / name / "failures.jsonl"):
                found.setdefault(entry["path"], {"path": entry["path"], "error": f"{entry['error']} ({name})"})
        return list(found.values())


@contextmanager
def opened(out: Path, config: Config, free: Sequence[str], device: str, bars: Bars) -> Iterator[Chain]:
    """Hold the folder of a run of several steps, and write what it is; see :func:`sharding.opened`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "Several processes cannot go through the rounds together.",
            "Start it without torchrun.",
        )
    check_device(device)
    make_folder(out)
    with exclusive(out):
        check_config(config, out / "config.json", free)
        write_json(out / "config.json", config.model_dump(mode="json"))
        write_json(out / "environment.json", describe(device))
        chain = Chain(out, bars)
        chain.log("start")
        yield chain


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


# Rounds.


@dataclass(frozen=True, slots=True)
class RoundsResult:
    """What was learned, and how it went.

    Attributes:
        out: The run's folder.
        detector: ``detector.safetensors``, that of the last round.
        report: The page to look at.
        rounds: Of each round the ``threshold`` and what became of all masks, see
            :class:`figureground.data.merge.MergeCounts`.
        measured: By the name of what was measured, in per cent, by measure; empty without a truth.
        failed: Images that could not be used; they are named in ``failures.jsonl``.
        resumed: Steps that an earlier start had done.
        seconds: Wall-clock time of this start.
    """

    out: Path
    detector: Path
    report: Path
    rounds: tuple[dict[str, Any], ...]
    measured: dict[str, dict[str, float | None]]
    failed: int
    resumed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Photos:
    """The images of a run.

    Attributes:
        given: Files and folders.
        root: Folder that the names of the images are relative to.
        limit: Only the first of the sorted list.
    """

    given: tuple[str, ...]
    root: Path
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A detector that the run has had, and how it is called.

    Attributes:
        name: The folder of its training, relative to the run's; empty: it was given.
        title: The same for a person.
        detector: Its file.
    """

    name: str
    title: str
    detector: Made


def check_labels(labels: Path, listed: ImageList) -> None:
    """Raise :class:`UsageError` if pseudo-labels are broken, or of none of the images; before hours are spent."""
    names = [labelled["file_name"] for labelled in LabelFile(labels)]
    if not set(names) & set(listed.names):
        example = f": there is no {names[0]!r} in {listed.root}" if names else ""
        raise UsageError(
            f"None of the {len(names)} images of {labels} is among the {len(listed.names)} that were given{example}.",
            "Give the images as they were given to `label`: --images photos/",
        )


def train_step(
    chain: Chain, name: str, title: str, config: TrainConfig, labels: Made, root: Path, device: str, init: Made | None
) -> Made:
    """Train a detector, from another one where there is one."""
    config = config.replace(annotations=str(labels.path), images=str(root), device=device)
    if init is not None:
        config = config.replace(init=str(init.path))

    def work() -> dict[str, Any]:
        with chain.bars.steps(title) as progress:
            result = train.run(config, chain.out / name, progress)
        return {"images": result.images, "steps": result.steps, "losses": result.losses, "measured": result.measured}

    inputs = [labels.digest, init.digest if init else ""]
    if config.exemplars is not None:
        # A pool that a person has changed since is another one.
        inputs.append(load_pool(Path(config.exemplars), device).digest)
    return chain.step(name, inputs, DETECTOR_FILE, work)


def predict_step(chain: Chain, name: str, title: str, config: PredictConfig, inputs: Sequence[str]) -> Made:
    """Find the objects of images."""

    def work() -> dict[str, Any]:
        with chain.bars.images(title) as progress:
            result = predict.run(config, chain.out / name, progress=progress)
        return {"images": result.images, "instances": result.instances, "failed": result.failed}

    return chain.step(name, inputs, annotations_name(config.format), work)


def run_round(
    chain: Chain, config: RoundsConfig, number: int, photos: Photos, device: str, labels: Made, detector: Made
) -> tuple[Made, Made]:
    """One round: predict, merge, train.

    Args:
        chain: The run.
        config: Of all rounds.
        number: Of this one, from 1.
        photos: As they were given to `label`.
        device: Where to compute.
        labels: Pseudo-labels of the round before.
        detector: Of the round before.

    Returns:
        The pseudo-labels of this round, whose facts are the counts of the merge, and its detector.

    Reference:
        Wang et al., CutLER, CVPR 2023, section 3.4.
    """
    name = f"round-{number}"
    settings = config.predict.replace(
        detector=str(detector.path), images=photos.given, limit=photos.limit, device=device
    )
    inputs = [detector.digest, str(photos.limit)]
    found = predict_step(chain, f"{name}/predictions", f"Round {number}: predicting", settings, inputs)
    threshold = config.threshold(number)

    def work() -> dict[str, Any]:
        merging = config.merge.replace(min_score=threshold)
        counts = merge_files(labels.path, found.path, chain.out / name / "labels.json", merging)
        if not counts.kept + counts.added:
            raise RunError(
                f"Round {number} has nothing to learn from: of what was found, {counts.unsure} score less than "
                f"{threshold:g}, and {counts.wide} are as wide as their image.",
                "Train it longer, or lower thresholds, or keep the masks before with merge.keep_older=true.",
            )
        return {"threshold": threshold, **asdict(counts)}

    merged = chain.step(name, [labels.digest, found.digest], "labels.json", work, "merge")
    title = f"Round {number}: training"
    before = None if config.afresh else detector
    return merged, train_step(chain, f"{name}/train", title, config.train, merged, photos.root, device, before)


# What there is to see and to measure.


def measure(predictions: Path, truth: Path) -> dict[str, float | None]:
    """``box_ap50``, ``box_ap``, ``box_ar100``, the same of masks where there are masks, and ``corloc``; in per cent."""
    config = evaluate.configure(predictions, truth, ["resamples=0"])
    measures = evaluate.run(config).measures
    found = {
        f"{kind}_{name}": measures[kind][name].value
        for kind in ("box", "mask")
        if kind in measures
        for name in ("ap50", "ap", "ar100")
    }
    found["corloc"] = measures["corloc"]["corloc"].value
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def look(labels: Path, root: Path, standings: Sequence[Standing], device: str) -> list[Row]:
    """For the page: a few images, the pseudo-labels to begin with, and what each detector surely finds in them."""
    file = LabelFile(labels)
    rows: list[Row] = []
    for index in spread(len(file), _SHOWN):
        image = file[index]
        try:
            pixels = decode(root / image["file_name"])[0]
        except ImageError:
            # It is named among the failures.
            continue
        # Nothing merged: the masks with their boxes and areas.
        masks, _ = merge_masks(image["annotations"], (), MergeConfig())
        rows.append((pixels, [{**image, "annotations": masks}]))
    for standing in standings:
        finder = Finder(load_detector(standing.detector.path, device), score_threshold=_SURE)
        for pixels, columns in rows:
            image = columns[0]
            found = finder.find([image["file_name"]], [pixels], [(image["height"], image["width"])])
            columns.extend(found)
    return rows


def finish(
    chain: Chain,
    labels: Made,
    root: Path,
    standings: Sequence[Standing],
    counts: Sequence[dict[str, Any]],
    device: str,
    start: float,
    **facts: Any,
) -> "RoundsResult":
    """Write the last detector, what came of the run, and the page.

    Args:
        chain: The run; all of its steps are done.
        labels: The pseudo-labels to begin with.
        root: Folder of the images.
        standings: The detectors, the last one last.
        counts: Of each round's merge.
        device: Where to compute.
        start: When this start began, by ``time.perf_counter``.
        facts: More for ``result.json``.
    """
    out = chain.out
    with open(standings[-1].detector.path, "rb") as source, writing(out / DETECTOR_FILE) as file:
        shutil.copyfileobj(source, file)
    failures = chain.failures()
    jsonlines.write(out / "failures.jsonl", failures)
    measured = facts.pop("measured", {})
    result = RoundsResult(
        out=out,
        detector=out / DETECTOR_FILE,
        report=out / "report.html",
        rounds=tuple(counts),
        measured=measured,
        failed=len(failures),
        resumed=chain.resumed,
        seconds=round(time.perf_counter() - start, 3),
    )
    trainings = [
        {"folder": each.name, "title": each.title, **each.detector.facts} for each in standings if each.detector.facts
    ]
    write_json(
        out / "result.json",
        {
            **facts,
            "detectors": [each.title for each in standings],
            "trainings": trainings,
            "rounds": list(counts),
            "measured": measured,
            "failed": result.failed,
            "resumed": result.resumed,
            "seconds": result.seconds,
            "image_root": str(root),
        },
    )
    write_rounds(out, look(labels.path, root, standings, device))
    chain.log("end", seconds=result.seconds)
    return result
