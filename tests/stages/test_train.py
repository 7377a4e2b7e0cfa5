"""`train` from a folder with masks to a detector."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import figureground
from figureground import detectors
from figureground.data.pseudo_labels import PseudoLabels
from figureground.errors import ConfigError, RunError, UsageError, WeightsError
from figureground.stages import evaluate as evaluate_stage
from figureground.stages import predict as predict_stage
from figureground.stages.detector_training import Examples, Learner, OptimiserConfig, make_optimiser
from figureground.stages.train import TrainConfig, configure, run
from figureground.stages.train_recipes import RECIPES
from figureground.storage import jsonlines
from figureground.training.loop import StepReport
from tests.data.blobs import same
from tests.stages.labelled import edit, write_labelled

# Small pictures, few regions.
BRIEF = ["augment.short_sides=[56, 64]", "batch_size=2", "steps=6", "checkpoint_every=2", "optimiser.warmup=2"]
# A transformer of a hundredth of the weights, where it does not matter what is trained.
LIGHT = ["detector.detector=vitdet", "detector.backbone.patch_size=16", "detector.backbone.width=24"]
LIGHT += ["detector.backbone.depth=1", "detector.backbone.heads=2", "detector.backbone.channels=8"]
# A step that changes nothing.
STILL = ["steps=1", "optimiser.rate=1e-300", "optimiser.warmup=0", "ema=null", "seed=7"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled") / "drawn", 6)


def brief(labels: Path, *assignments: str, **options: Any) -> TrainConfig:
    return configure(labels, (), [*BRIEF, *assignments], recipe="tiny", **options)


def light(labels: Path, *assignments: str, **options: Any) -> TrainConfig:
    return brief(labels, *LIGHT, *assignments, **options)


def stopping(at: int) -> Callable[[StepReport], None]:
    def stop(report: StepReport) -> None:
        if report.position.step == at:
            raise KeyboardInterrupt

    return stop


def weights(file: Path) -> dict[str, torch.Tensor]:
    return detectors.load(file).state_dict()


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a Mask R-CNN has learned of four pictures."""
    folder = tmp_path_factory.mktemp("learned")
    labels = write_labelled(folder / "drawn", 4, objects=1)
    probe = [f"probe.truth={labels / 'annotations.json'}", f"probe.images={folder / 'drawn' / 'photos'}"]
    settings = ["steps=48", "batch_size=4", "checkpoint_every=48", "watch_every=24", "ema=0.9"]
    settings += ["optimiser.max_norm=10", "augment.short_sides=[64]", "copy_paste=null"]
    before = torch.get_rng_state(), str(np.random.get_state())
    seen: list[StepReport] = []
    result = run(brief(labels, *settings, *probe), folder / "run", seen.append)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert [report.position.step for report in seen] == list(range(1, 49))
    assert (result.images, result.steps, result.resumed, result.failed, result.skipped) == (4, 48, 0, 0, 0)
    return folder


class TestLearning:
    def test_it_finds_what_it_was_shown(self, learned: Path) -> None:
        log = jsonlines.read(learned / "run" / "log.jsonl")
        losses = [entry["losses"] for entry in log if "losses" in entry]
        assert losses[0].keys() == {"objectness", "proposal_box", "classification", "box", "mask"}
        assert losses[-1]["mask"] < 0.6 * losses[0]["mask"]
        assert all("data_s" in entry for entry in log if "losses" in entry)
        watched = [entry["watch"] for entry in log if "watch" in entry]
        assert len(watched) == 2
        assert watched[-1].keys() == {"box_ap50", "box_ap", "mask_ap50", "mask_ap", "corloc"}
        assert watched[-1]["mask_ap50"] > 0.6
        assert watched[-1]["corloc"] >= 0.75

    def test_the_folder(self, learned: Path) -> None:
        written = {path.name for path in (learned / "run").iterdir() if not path.name.startswith(".")}
        assert written == {
            *("config.json", "environment.json", "result.json", "log.jsonl", "failures.jsonl", "checkpoints"),
            *("detector.safetensors", "report.html"),
        }
        facts = json.loads((learned / "run" / "result.json").read_text())
        assert (facts["stage"], facts["steps"], facts["images"]) == ("train", 48, 4)
        assert facts["losses"].keys() == {"objectness", "proposal_box", "classification", "box", "mask"}
        content = json.loads((learned / "run" / "config.json").read_text())
        assert re.fullmatch("[0-9a-f]{64}", content["digest"])
        assert TrainConfig.model_validate(content).model_dump(mode="json") == content

    def test_the_page(self, learned: Path) -> None:
        page = (learned / "run" / "report.html").read_text()
        lines = re.findall(r'<polyline points="([^"]*)"', page)
        # Six losses, five measures, rate and norm; every step has its point.
        assert len(lines) == 13
        assert [len(line.split()) for line in lines] == [48] * 6 + [2] * 5 + [48] * 2
        assert page.count('<img src="data:image') == 8
        assert "000.png" in page
        [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
        pictures = json.loads(data)
        assert [len(each["instances"]) for each in pictures[:4]] == [1] * 4
        assert all(each["instances"] for each in pictures[4:])

    def test_the_watch_measures_what_predict_and_evaluate_do(self, learned: Path) -> None:
        config = predict_stage.configure(
            learned / "run", [str(learned / "drawn" / "photos")], ["batch_size=1"], score_threshold=0.0
        )
        predict_stage.run(config, learned / "found")
        truth = learned / "drawn" / "run" / "annotations.json"
        measures = evaluate_stage.run(evaluate_stage.configure(learned / "found", truth, ["resamples=0"])).measures
        measured = json.loads((learned / "run" / "result.json").read_text())["measured"]
        for kind in ("box", "mask"):
            for name in ("ap50", "ap"):
                assert measures[kind][name].value == pytest.approx(100 * measured[f"{kind}_{name}"], abs=1e-3)
        assert measures["corloc"]["corloc"].value == pytest.approx(100 * measured["corloc"], abs=1e-3)

    def test_the_average_is_kept(self, learned: Path) -> None:
        [checkpoint] = (learned / "run" / "checkpoints").glob("*.safetensors")
        from safetensors.torch import load_file

        state, kept = load_file(checkpoint), weights(learned / "run" / "detector.safetensors")
        assert all(torch.equal(value, state[f"average.module.{name}"]) for name, value in kept.items())
        assert not torch.equal(kept["rpn.conv.weight"], state["detector.rpn.conv.weight"])

    def test_it_loads_from_python(self, learned: Path) -> None:
        detector = figureground.load_detector(learned / "run", max_detections=3)
        assert not detector.training
        image = torch.from_numpy(figureground.load_image(learned / "drawn" / "photos" / "000.png").copy())
        [found] = detector.detect([image.permute(2, 0, 1) / 255])
        assert 1 <= len(found) <= 3
        assert found.masks.shape[1:] == (64, 80)


class TestResume:
    def test_stopped_and_resumed_equals_undisturbed(self, labelled: Path, tmp_path: Path) -> None:
        """With norms, an average, pasted objects and a weight for each."""
        config = brief(labelled, "ema=0.5", "labels.soft_targets=true", "steps=5", "checkpoint_every=3")
        calm = run(config, tmp_path / "calm")
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "stopped", stopping(at=4))
        assert not (tmp_path / "stopped" / "detector.safetensors").exists()
        resumed = run(config, tmp_path / "stopped")
        assert (resumed.resumed, resumed.steps) == (3, 5)
        assert resumed.detector.read_bytes() == calm.detector.read_bytes()
        assert resumed.losses == calm.losses
        logs = [
            [entry["losses"] for entry in jsonlines.read(out / "log.jsonl") if "losses" in entry]
            for out in (calm.out, resumed.out)
        ]
        assert logs[0] == logs[1]
        assert len(logs[0]) == 5

    def test_a_finished_run_is_not_made_again(self, labelled: Path, tmp_path: Path) -> None:
        first = run(light(labelled, "steps=1"), tmp_path)
        before = first.detector.read_bytes()
        again = run(light(labelled, "steps=1"), tmp_path, lambda _: pytest.fail("trained again"))
        assert (again.resumed, again.images_per_s) == (1, None)
        assert first.detector.read_bytes() == before

    def test_what_may_differ_and_what_not(self, tmp_path: Path) -> None:
        labels = write_labelled(tmp_path / "drawn", 3)
        run(light(labels, "steps=1"), tmp_path / "run")
        with pytest.raises(ConfigError, match=r"optimiser\.rate: 0\.0001 -> 0\.5"):
            run(light(labels, "steps=1", "optimiser.rate=0.5"), tmp_path / "run")
        (tmp_path / "drawn").rename(tmp_path / "moved")
        labels = tmp_path / "moved" / "run"
        moved = configure(labels, [tmp_path / "moved" / "photos"], [*BRIEF, *LIGHT, "steps=1"], recipe="tiny")
        assert run(moved.replace(checkpoint_every=7), tmp_path / "run").resumed == 1
        edit(labels, lambda content: content["annotations"].pop())
        with pytest.raises(ConfigError, match="digest: "):
            run(moved, tmp_path / "run")

    def test_one_at_a_time(self, labelled: Path, tmp_path: Path) -> None:
        def start_another(report: StepReport) -> None:
            with pytest.raises(RunError, match="Another process"):
                run(light(labelled, "steps=1"), tmp_path)

        run(light(labelled, "steps=1"), tmp_path, start_another)


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """With every region looked at, equally many in each picture, the means of two halves are the mean of the whole."""
    labels = write_labelled(tmp_path / "drawn", 4, objects=2)
    settings = [*LIGHT, "batch_size=4", "steps=3", "copy_paste=null", "optimiser.name=sgd", "optimiser.rate=0.05"]
    settings += ["detector.rpn.samples=100000", "detector.rpn.positive_fraction=1", "detector.rpn.train=20"]
    settings += ["detector.box_head.samples=1000", "detector.box_head.positive_fraction=1"]
    # Only an object's own box stands for it.
    settings += ['detector.stages=[{"iou": 1.0}]', "detector.drop_loss=null"]
    command = ["-m", "figureground", "train", str(labels), "--recipe", "tiny", "--out", str(tmp_path / "two")]
    for assignment in [*BRIEF, *settings]:
        command += ["--set", assignment]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Detector:") == 1
    run(configure(labels, (), [*BRIEF, *settings], recipe="tiny"), tmp_path / "one")
    one, two = (
        [entry["losses"] for entry in jsonlines.read(tmp_path / name / "log.jsonl") if "losses" in entry]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 3
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-4)
    left, right = (weights(tmp_path / name / "detector.safetensors") for name in ("one", "two"))
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-3, atol=1e-5)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2


def test_half_the_precision_is_nearly_the_same(labelled: Path, tmp_path: Path) -> None:
    losses = [
        run(light(labelled, "steps=1", f"precision={precision}"), tmp_path / precision).losses
        for precision in ("fp32", "bf16")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


class TestInput:
    @pytest.mark.parametrize(
        ("harm", "error", "said"),
        [
            (lambda run: (run / "annotations.json").unlink(), UsageError, "has no annotations.json"),
            (lambda run: (run / "annotations.json").write_text("{"), UsageError, "is not JSON"),
            (lambda run: edit(run, lambda c: c.update(annotations=[])), UsageError, "has a mask to learn from"),
            (lambda run: (run / "result.json").unlink(), UsageError, "where its images are"),
            (lambda run: rename_all(run), UsageError, "The images of the pseudo-labels are not in"),
            (lambda run: overwrite_all(run), RunError, "None of the 3 images"),
        ],
    )
    def test_nothing_to_learn_from(
        self, harm: Callable[[Path], Any], error: type[Exception], said: str, tmp_path: Path
    ) -> None:
        labels = write_labelled(tmp_path / "drawn", 3)
        harm(labels)
        with pytest.raises(error, match=said):
            run(light(labels), tmp_path / "run")
        # What is known before the first step leaves nothing behind.
        assert (tmp_path / "run").exists() == (error is RunError)

    def test_an_unreadable_image_and_a_wrong_mask_are_named(self, tmp_path: Path) -> None:
        labels = write_labelled(tmp_path / "drawn", 3, objects=2)
        (tmp_path / "drawn" / "photos" / "001.png").write_bytes(b"no image")
        edit(labels, lambda content: content["annotations"][0].update(segmentation=None))
        result = run(light(labels, "batch_size=3", "steps=2"), tmp_path / "run")
        assert (result.images, result.failed, result.rejected, result.steps) == (3, 1, 1, 2)
        failures = jsonlines.read(tmp_path / "run" / "failures.jsonl")
        assert [entry["path"] for entry in failures] == ["000.png", "001.png"]
        assert "`segmentation` is missing" in failures[0]["error"]
        assert "not an image" in failures[1]["error"]
        # No second line on the next start.
        assert run(light(labels, "batch_size=3", "steps=2"), tmp_path / "run").failed == 1

    def test_where_the_images_are(self, labelled: Path, tmp_path: Path) -> None:
        photos = labelled.parent / "photos"
        assert configure(labelled, recipe="tiny").images == str(photos)
        given = configure(labelled / "annotations.json", [photos / "000.png", photos / "001.png"], recipe="tiny")
        assert given.images == str(photos)
        assert configure(labelled, [photos, tmp_path], recipe="tiny").images != str(photos)
        with pytest.raises(UsageError, match="no file or folder"):
            configure(labelled, [tmp_path / "nothing"])

    def test_a_truth_without_images(self, labelled: Path, tmp_path: Path) -> None:
        truth = f"probe.truth={labelled / 'annotations.json'}"
        with pytest.raises(ConfigError, match=r"probe\.truth is given without its images"):
            run(light(labelled, truth), tmp_path / "run")
        with pytest.raises(UsageError, match="cannot be read"):
            run(light(labelled, truth, f"probe.images={tmp_path}"), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def rename_all(run: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = f"other/{image['file_name']}"

    edit(run, change)


def overwrite_all(run: Path) -> None:
    for path in (run.parent / "photos").iterdir():
        path.write_bytes(b"no image")


class TestFirstWeights:
    def test_of_a_detector(self, labelled: Path, tmp_path: Path) -> None:
        first = run(light(labelled, "steps=1"), tmp_path / "first")
        begun = run(light(labelled, *STILL, init=str(tmp_path / "first")), tmp_path / "second")
        before, after = weights(first.detector), weights(begun.detector)
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        # Moved, they are the same; others are not.
        first.out.rename(tmp_path / "moved")
        run(light(labelled, *STILL, init=str(tmp_path / "moved")), begun.out)
        with pytest.raises(ConfigError, match="init_digest: "):
            run(light(labelled, *STILL), begun.out)

    def test_of_a_name(self, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name has no digest: a run that goes on cannot have begun with another one."""
        monkeypatch.setattr("figureground.stages.train.load_weights", lambda *_: None)
        out = run(light(labelled, "steps=1", init="dino_resnet50"), tmp_path / "run").out
        assert run(light(labelled, "steps=1", init="dino_resnet50"), out).resumed == 1
        for other in ("densecl_resnet50", None):
            with pytest.raises(ConfigError, match="init: "):
                run(light(labelled, "steps=1", init=other), out)

    def test_of_a_backbone(self, labelled: Path, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        first = run(light(labelled, "steps=1"), tmp_path / "first")
        trunk = {
            name.removeprefix("backbone.trunk."): value
            for name, value in weights(first.detector).items()
            if name.startswith("backbone.trunk.")
        }
        # Learned at 96 px: one value at every place, another of the CLS token.
        trunk["pos_embed"] = torch.full((1, 1 + 6 * 6, 24), 0.25)
        trunk["pos_embed"][:, 0] = 0.5
        (tmp_path / "own").mkdir()
        save_file(trunk, tmp_path / "own" / "backbone.safetensors")
        begun = weights(run(light(labelled, *STILL, init=str(tmp_path / "own")), tmp_path / "second").detector)
        positions = begun.pop("backbone.trunk.pos_embed")
        assert positions.shape == (1, 1 + 14 * 14, 24)
        torch.testing.assert_close(positions[:, 1:], torch.full((1, 14 * 14, 24), 0.25))
        assert (positions[:, 0] == 0.5).all()
        before = weights(first.detector)
        for name, value in before.items():
            if name not in begun:
                continue
            taken = name.startswith("backbone.trunk.") or not value.any() or bool((value == 1).all())
            assert torch.equal(value, begun[name]) == taken, name

    def test_what_does_not_fit(self, labelled: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(WeightsError, match="holds neither"):
            run(light(labelled, init=str(tmp_path / "empty")), tmp_path / "run")
        with pytest.raises(WeightsError, match="No file of weights"):
            run(light(labelled, init=str(tmp_path / "nothing.pth")), tmp_path / "run")
        detectors.save(tmp_path / "other.safetensors", detectors.create(detectors.configure("mask_rcnn", "tiny")))
        with pytest.raises(WeightsError, match=r"The detector in .*does not fit"):
            run(light(labelled, init=str(tmp_path / "other.safetensors")), tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestConfiguration:
    def test_published_values(self, labelled: Path) -> None:
        def values(recipe: str) -> tuple[Any, ...]:
            config = configure(labelled, recipe=recipe)
            optimiser = config.optimiser
            schedule = (optimiser.rate, optimiser.weight_decay, optimiser.milestones, optimiser.gamma)
            assert (optimiser.momentum, optimiser.warmup, optimiser.max_norm) == (0.9, 1000, 1.0)
            assert (config.batch_size, config.ema, config.copy_paste and config.copy_paste.rate) == (16, None, 1.0)
            return config.detector.detector, *schedule, config.steps, config.precision

        cascade, mask = "cascade_mask_rcnn", "mask_rcnn"
        assert values("cutler_cascade") == (cascade, 0.01, 5e-5, (0.5,), 0.02, 160_000, "bf16")
        assert values("cutler_cascade_paper") == (cascade, 0.005, 5e-5, (0.5,), 0.2, 160_000, "bf16")
        assert values("cutler_mask_rcnn") == (mask, 0.01, 5e-5, (0.5,), 0.1, 160_000, "fp32")
        assert values("cutler_mask_rcnn_paper") == (mask, 0.005, 5e-5, (0.5,), 0.2, 160_000, "bf16")
        assert values("cutler_self_train") == (cascade, 0.005, 1e-4, (), 1.0, 80_000, "bf16")
        assert values("cutler_self_train_paper") == (cascade, 0.01, 1e-4, (), 1.0, 80_000, "bf16")
        later = configure(labelled, recipe="cutler_self_train")
        assert later.detector.drop_loss is None
        assert later.copy_paste is not None
        assert later.copy_paste.scale == (0.5, 1.0)
        assert configure(labelled, recipe="cutler_cascade").detector.drop_loss == 0.01

    @pytest.mark.parametrize("recipe", RECIPES)
    @pytest.mark.parametrize("detector", detectors.DETECTORS)
    def test_every_recipe_takes_every_detector(self, recipe: str, detector: str, labelled: Path) -> None:
        config = configure(labelled, recipe=recipe, detector=detector)
        assert config.detector.detector == detector
        assert config.optimiser.name == ("adamw" if detector == "vitdet" else "sgd")

    def test_the_default_follows_the_device(self, labelled: Path) -> None:
        assert configure(labelled).recipe == "small"
        assert configure(labelled, device="cuda").recipe == "cutler_cascade"

    def test_settings_go_over_the_recipe(self, labelled: Path) -> None:
        given = ["detector.rpn.nms=0.9", "copy_paste.scale=[0.1, 0.2]", "steps=7"]
        config = configure(labelled, (), given, recipe="cutler_self_train")
        assert (config.detector.rpn.nms, config.detector.rpn.train, config.steps) == (0.9, 1000, 7)
        assert config.copy_paste is not None
        assert (config.copy_paste.scale, config.copy_paste.rate) == ((0.1, 0.2), 1.0)
        preset = configure(labelled, (), ["detector.preset=self_train"], recipe="cutler_cascade").detector
        assert preset == detectors.configure("cascade_mask_rcnn", "self_train")

    @pytest.mark.parametrize(
        ("assignment", "said"),
        [
            ("stps=3", "'steps'"),
            ("detector.rpn.nmss=0.5", r"detector: .*'rpn.nms'"),
            ("detector=mask_rcn", "Did you mean 'mask_rcnn'"),
            ("recipe=tini", "Did you mean 'tiny'"),
            ("optimiser.milestones=[0.5, 2]", "shares of the steps"),
            ("ema=1", "'ema'"),
        ],
    )
    def test_mistakes(self, assignment: str, said: str, labelled: Path) -> None:
        with pytest.raises(UsageError, match=said):
            configure(labelled, (), [assignment])


def test_norms_and_positions_have_no_decay() -> None:
    for name, count in (("mask_rcnn", 2 * 20 + 2 * 8), ("vitdet", None)):
        detector = detectors.create(detectors.configure(name, "tiny"))
        optimiser = make_optimiser(detector, OptimiserConfig(weight_decay=0.3))
        decayed, kept = optimiser.param_groups
        assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
        assert len(decayed["params"]) + len(kept["params"]) == len(list(detector.parameters()))
        if count:
            assert len(kept["params"]) == count
        else:
            assert any(each is detector.backbone.trunk.pos_embed for each in kept["params"])
        assert all(each.ndim > 1 or len(each) for each in decayed["params"])


class TestExamples:
    @pytest.fixture
    def examples(self, labelled: Path) -> Examples:
        config = configure(labelled, recipe="tiny")
        assert config.copy_paste is not None
        labels = PseudoLabels(
            Path(config.annotations), Path(config.images), config.labels, print, config.augment.enough
        )
        return Examples(labels, config.augment, config.copy_paste, seed=3, paste_later=False)

    def test_a_worker_makes_the_same(self, examples: Examples) -> None:
        copies = pickle.loads(pickle.dumps(examples))
        for first in (0, 8):
            batches = [each.collate([each(index, first + index) for index in range(4)]) for each in (examples, copies)]
            (images, targets, draw), (others, other_targets, _) = batches
            assert draw == first
            assert all(torch.equal(left, right) for left, right in zip(images, others, strict=True))
            assert all(same(left, right) for left, right in zip(targets, other_targets, strict=True))

    def test_another_draw_is_another_picture_with_other_objects(self, examples: Examples) -> None:
        batches = [examples.collate([examples(index, first + index) for index in range(4)]) for first in (0, 4)]
        (images, targets, _), (others, other_targets, _) = batches
        assert not all(
            left.shape == right.shape and torch.equal(left, right) for left, right in zip(images, others, strict=True)
        )
        assert sum(len(each["boxes"]) for each in targets) != sum(len(each["boxes"]) for each in other_targets)

    def test_pasting_later_is_the_same(self, examples: Examples) -> None:
        made = [examples(index, index) for index in range(4)]
        now = examples.collate(made)
        examples.paste_later = True
        later = examples.paste(examples.collate(made))
        assert all(torch.equal(left, right) for left, right in zip(now[0], later[0], strict=True))
        assert all(same(left, right) for left, right in zip(now[1], later[1], strict=True))
        assert sum(len(each["boxes"]) for each in now[1]) > sum(len(targets["boxes"]) for _, targets, _ in made)


def test_a_young_average_follows_fast() -> None:
    detector = detectors.create(detectors.configure("vitdet", "tiny"))
    learner = Learner(detector, momentum=0.999)
    assert learner.best is not detector
    before = learner.best.rpn.conv.bias.clone()
    with torch.no_grad():
        detector.rpn.conv.bias += 1
    learner.after_update(0)
    torch.testing.assert_close(learner.best.rpn.conv.bias, before + 0.9)
    assert Learner(detector, None).best is detector
