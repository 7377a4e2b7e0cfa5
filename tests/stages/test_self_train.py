"""`self-train`: rounds of predicting, merging and training."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from figureground import detectors
from figureground.errors import ConfigError, RunError, UsageError
from figureground.stages import predict as predict_stage
from figureground.stages import train as train_stage
from figureground.stages.rounds import Bars, Chain, Made, RoundsConfig, later, train_step
from figureground.stages.self_train import SelfTrainConfig, configure, run
from figureground.stages.train import TrainConfig, settings_of
from tests.stages.labelled import edit, write_labelled

# A transformer of a hundredth of the weights that takes few and small steps.
LIGHT = ["detector.detector=vitdet", "detector.backbone.patch_size=16", "detector.backbone.width=24"]
LIGHT += ["detector.backbone.depth=1", "detector.backbone.heads=2", "detector.backbone.channels=8"]
LIGHT += ["augment.short_sides=[56]", "batch_size=2", "steps=4", "checkpoint_every=1", "optimiser.warmup=0"]
# Predictions of such a detector, some of which are taken.
ROUNDS = ["predict.max_detections=6", "predict.shard_size=2", "predict.batch_size=2", "thresholds=[0.0]"]
# A step that changes nothing.
STILL = ["train.optimiser.rate=1e-300", "train.ema=null", "train.steps=1"]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled") / "drawn", 4)


@pytest.fixture(scope="module")
def detector(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("detector") / "run"
    train_stage.run(train_stage.configure(labels, (), LIGHT, recipe="tiny"), out)
    return out


@pytest.fixture(scope="module")
def undisturbed(detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run(brief(detector), out)
    return out


def brief(detector: Path, *assignments: str, **options: Any) -> SelfTrainConfig:
    return configure(detector, None, (), [*ROUNDS, *assignments], **{"rounds": 2, **options})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return detectors.load(run / "detector.safetensors").state_dict()


def content(path: Path) -> Any:
    return json.loads(path.read_text())


def stopping(after: int) -> Bars:
    """A run that is stopped after so many words of progress, of whichever steps."""
    left = after

    def bar(title: str) -> AbstractContextManager[Callable[[Any], None]]:
        @contextmanager
        def block() -> Iterator[Callable[[Any], None]]:
            def count(_: Any) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt

            yield count

        return block()

    return Bars(bar, bar)


def run_with_stops(start: Callable[[Bars], Any], every: int) -> int:
    """Start a run again and again, each time stopped after a little more work; return how often it was stopped."""
    for stops in range(100):
        try:
            start(stopping(every))
            return stops
        except KeyboardInterrupt:
            continue
    raise AssertionError("It does not come to its end.")


def made(out: Path) -> dict[str, bytes]:
    """What must be the same bytes however often a run was stopped: all but clocks, and what holds paths."""
    names = ("annotations.json", "labels.json", "merge.json", "failures.jsonl", "detector.safetensors")
    return {str(path.relative_to(out)): path.read_bytes() for name in names for path in sorted(out.rglob(name))}


class TestRounds:
    def test_the_folder(self, undisturbed: Path) -> None:
        written = {path.name for path in undisturbed.iterdir() if not path.name.startswith(".")}
        assert written == {
            *("config.json", "environment.json", "result.json", "log.jsonl", "failures.jsonl"),
            *("detector.safetensors", "report.html", "round-1", "round-2"),
        }
        for number in (1, 2):
            assert (undisturbed / f"round-{number}" / "predictions" / "annotations.json").exists()
            assert (undisturbed / f"round-{number}" / "train" / "report.html").exists()
        last = undisturbed / "round-2" / "train" / "detector.safetensors"
        assert (undisturbed / "detector.safetensors").read_bytes() == last.read_bytes()
        tree = content(undisturbed / "config.json")
        assert SelfTrainConfig.model_validate(tree).model_dump(mode="json") == tree

    def test_the_counts_are_those_of_the_files(self, labels: Path, undisturbed: Path) -> None:
        before = len(content(labels / "annotations.json")["annotations"])
        replaced = 0
        for number, counts in enumerate(content(undisturbed / "result.json")["rounds"], start=1):
            folder = undisturbed / f"round-{number}"
            found = len(content(folder / "predictions" / "annotations.json")["annotations"])
            after = len(content(folder / "labels.json")["annotations"])
            assert counts["kept"] + counts["replaced"] == before
            assert counts["added"] + counts["unsure"] + counts["repeated"] + counts["empty"] == found > 0
            assert counts["kept"] + counts["added"] == after
            assert counts["images"] == 4
            before, replaced = after, replaced + counts["replaced"]
        assert replaced > 0

    def test_each_round_goes_on_from_the_one_before(self, detector: Path, labels: Path, tmp_path: Path) -> None:
        """Where training changes nothing, the weights of every round are those that were given."""
        result = run(brief(detector, *STILL, "thresholds=[1.0, 0.0]"), tmp_path)
        given = weights(detector)
        for name in ("round-1/train", "round-2/train", "."):
            after = weights(tmp_path / name)
            assert all(torch.equal(value, after[key]) for key, value in given.items())
        # Nothing is surer than 1: in the first round all stays as it was; the second one takes what it finds.
        assert [counts["threshold"] for counts in result.rounds] == [1.0, 0.0]
        first = content(tmp_path / "round-1" / "labels.json")["annotations"]
        older = content(labels / "annotations.json")["annotations"]
        assert [each["segmentation"] for each in first] == [each["segmentation"] for each in older]
        assert result.rounds[0]["added"] == 0 < result.rounds[1]["added"]
        config = content(tmp_path / "round-2" / "train" / "config.json")
        assert config["annotations"] == str(tmp_path / "round-2" / "labels.json")
        assert config["init"] == str(tmp_path / "round-1" / "train" / "detector.safetensors")

    def test_it_can_be_used(self, undisturbed: Path, labels: Path, tmp_path: Path) -> None:
        photos = [str(labels.parent / "photos")]
        config = predict_stage.configure(undisturbed, photos, limit=1, score_threshold=0.0)
        assert predict_stage.run(config, tmp_path).images == 1

    def test_the_page(self, undisturbed: Path) -> None:
        page = (undisturbed / "report.html").read_text()
        assert page.count("<polyline") == 2 * 10
        assert page.count('<img src="data:image') == 4
        data = content_of_page(page)
        assert data["columns"] == ["Labels", "Before", "Round 1", "Round 2"]
        assert [len(image["found"][0]) for image in data["images"]] == [1, 2, 3, 1]
        assert all(len(image["found"]) == 4 for image in data["images"])


def content_of_page(page: str) -> Any:
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


class TestResume:
    def test_stopped_and_resumed_equals_undisturbed(self, detector: Path, undisturbed: Path, tmp_path: Path) -> None:
        """Stopped within every step, and between them."""
        stops = run_with_stops(lambda bars: run(brief(detector), tmp_path / "run", bars), every=3)
        assert stops >= 4
        assert made(tmp_path / "run") == made(undisturbed)

    def test_what_is_done_is_not_done_again(self, detector: Path, undisturbed: Path) -> None:
        before = made(undisturbed)
        result = run(brief(detector), undisturbed, stopping(0))
        assert result.resumed == 6
        assert made(undisturbed) == before

    def test_what_may_differ_and_what_not(self, tmp_path: Path) -> None:
        labels = write_labelled(tmp_path / "drawn", 3)
        train_stage.run(train_stage.configure(labels, (), [*LIGHT, "steps=1"], recipe="tiny"), tmp_path / "first")
        first, out = tmp_path / "first", tmp_path / "run"
        run(brief(first, rounds=1), out)
        with pytest.raises(ConfigError, match=r"(?s)merge\.nms: 0\.5 -> 0\.3.*train\.optimiser\.rate: 0\.0001 -> 0\.5"):
            run(brief(first, "train.optimiser.rate=0.5", "merge.nms=0.3", rounds=1), out)
        # One more round, and more processes, are no other run.
        more = run(brief(first, "train.checkpoint_every=7", rounds=2), out)
        assert (more.resumed, len(more.rounds)) == (3, 2)
        edit(labels, lambda content: content["annotations"].pop())
        with pytest.raises(ConfigError, match="labels_digest: "):
            run(brief(first, rounds=2), out)

    def test_one_at_a_time(self, detector: Path, undisturbed: Path, tmp_path: Path) -> None:
        @contextmanager
        def bar(title: str) -> Iterator[Callable[[Any], None]]:
            with pytest.raises(RunError, match="Another process"):
                run(brief(detector, rounds=1), tmp_path)
            raise KeyboardInterrupt
            yield

        with pytest.raises(KeyboardInterrupt):
            run(brief(detector, rounds=1), tmp_path, Bars(bar, bar))


class TestSettings:
    def test_what_follows_a_training(self) -> None:
        tiny = settings_of("tiny", {"steps": 9, "optimiser": {"rate": 0.3}})
        rounds = later(tiny)
        assert rounds.detector.drop_loss is None
        assert rounds.copy_paste is not None
        assert rounds.copy_paste.scale == (0.5, 1.0)
        assert (rounds.steps, rounds.optimiser.rate) == (4, 0.3)
        assert rounds.detector.backbone == tiny.detector.backbone
        assert later(settings_of("tiny", {"copy_paste": None})).copy_paste is None
        # What is a later round already stays as it is.
        assert later(rounds) == rounds

    @pytest.mark.parametrize(
        ("recipe", "rate", "precision"),
        [
            ("cutler_cascade", 0.005, "bf16"),
            ("cutler_cascade_paper", 0.01, "bf16"),
            ("cutler_mask_rcnn", 0.005, "fp32"),
        ],
    )
    def test_what_follows_a_published_one(self, recipe: str, rate: float, precision: str) -> None:
        first = settings_of(recipe, {})
        rounds = later(first)
        assert (rounds.steps, rounds.optimiser.rate, rounds.optimiser.milestones) == (80_000, rate, ())
        assert (rounds.detector.rpn.nms, rounds.detector.rpn.train) == (0.7, 1000)
        assert rounds.detector == detectors.configure(first.detector.detector, "self_train")
        assert (rounds.precision, rounds.copy_paste and rounds.copy_paste.scale) == (precision, (0.5, 1.0))

    def test_what_a_training_says(self, detector: Path, labels: Path) -> None:
        config = configure(detector)
        assert (config.labels, config.images) == (str(labels / "annotations.json"), (str(labels.parent / "photos"),))
        assert (config.rounds, config.thresholds, config.predict.max_detections) == (3, (0.7, 0.65), 30)
        assert (config.train.steps, config.train.batch_size, config.train.optimiser.name) == (2, 2, "adamw")
        assert [config.threshold(number) for number in (1, 2, 3, 4)] == [0.7, 0.65, 0.65, 0.65]

    def test_a_file_of_weights(self, detector: Path, labels: Path, tmp_path: Path) -> None:
        """Its architecture is kept, whatever the recipe is made for."""
        (tmp_path / "own.safetensors").write_bytes((detector / "detector.safetensors").read_bytes())
        with pytest.raises(UsageError, match="--labels is missing"):
            configure(tmp_path / "own.safetensors")
        with pytest.raises(UsageError, match="--images is missing"):
            configure(tmp_path / "own.safetensors", labels)
        config = configure(tmp_path / "own.safetensors", labels, ["photos"])
        assert (config.train.recipe, config.train.steps, config.train.optimiser.name) == (
            *("cutler_self_train", 80_000),
            "adamw",
        )
        assert config.train.detector.backbone == detectors.load(detector / "detector.safetensors").config.backbone
        assert config.train.detector.drop_loss is None

    @pytest.mark.parametrize(
        "assignment",
        [
            *("train.annotations=a.json", "train.init=a", "train.device=cuda", "predict.detector=a", "predict.limit=3"),
            *("merge.min_score=0.3", "thresholds=[]", "thresholds=[2]", "rounds=0", "nonesuch=1"),
        ],
    )
    def test_what_would_do_nothing_or_is_wrong(self, assignment: str, detector: Path) -> None:
        with pytest.raises(ConfigError, match=assignment.partition("=")[0]):
            configure(detector, None, (), [assignment])

    def test_the_defaults_are_whole(self) -> None:
        assert RoundsConfig().train == TrainConfig()


class TestInput:
    def test_labels_of_other_images(self, detector: Path, labels: Path, tmp_path: Path) -> None:
        write_labelled(tmp_path / "other", 1)
        edit(tmp_path / "other" / "run", lambda content: content["images"][0].update(file_name="elsewhere.png"))
        photos = [labels.parent / "photos"]
        config = configure(detector, tmp_path / "other" / "run", photos)
        with pytest.raises(UsageError, match=r"None of the 1 images of .* is among the 4"):
            run(config, tmp_path / "run")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match="No images were found"):
            run(configure(detector, labels, [tmp_path / "empty"]), tmp_path / "run")
        with pytest.raises(UsageError, match="There are no pseudo-labels"):
            configure(detector, tmp_path / "nothing.json", photos)
        with pytest.raises(UsageError, match="holds no detector"):
            configure(tmp_path / "empty", labels, photos)
        with pytest.raises(UsageError, match="is not there"):
            run(configure(detector, device="cuda:99"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_an_unreadable_image_is_named_once(self, tmp_path: Path) -> None:
        labels = write_labelled(tmp_path / "drawn", 3)
        train_stage.run(train_stage.configure(labels, (), [*LIGHT, "steps=1"], recipe="tiny"), tmp_path / "first")
        (tmp_path / "drawn" / "photos" / "001.png").write_bytes(b"no image")
        result = run(brief(tmp_path / "first", "train.batch_size=3", rounds=1), tmp_path / "run")
        assert result.failed == 1
        [line] = (tmp_path / "run" / "failures.jsonl").read_text().splitlines()
        assert json.loads(line)["path"] == "001.png"


def test_a_pool_that_was_changed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that is done is begun again, and then says what differs."""
    pools, trained = ["a", "a", "b"], []

    def train(config: TrainConfig, out: Path, progress: Any) -> Any:
        trained.append(config.exemplars)
        out.mkdir(exist_ok=True)
        (out / "detector.safetensors").write_bytes(b"weights")
        return SimpleNamespace(images=1, steps=1, losses={}, measured={})

    monkeypatch.setattr("figureground.stages.rounds.load_pool", lambda *_: SimpleNamespace(digest=pools.pop(0)))
    monkeypatch.setattr("figureground.stages.rounds.train.run", train)
    config = TrainConfig(exemplars="pool")
    for times in (1, 1, 2):
        train_step(Chain(tmp_path, Bars()), "train", "", config, Made(tmp_path, "labels"), tmp_path, "cpu", None)
        assert len(trained) == times
