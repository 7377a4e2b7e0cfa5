"""`train`, `predict` and the settings of later rounds with SOLOv2."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from figureground import detectors
from figureground.config import build
from figureground.data.images import decode
from figureground.data.label_file import LabelFile
from figureground.data.pseudo_labels import PseudoLabels
from figureground.errors import ConfigError, RunError, UsageError
from figureground.stages import learn, self_train
from figureground.stages import predict as predict_stage
from figureground.stages.detector_training import Examples
from figureground.stages.exemplar_pool import make_embedder
from figureground.stages.instance_embeddings import EmbedderConfig, embed_labels
from figureground.stages.labeller import BackboneConfig
from figureground.stages.rounds import RoundsConfig, later, settings_of_rounds
from figureground.stages.train import TrainConfig, configure, run, settings_of
from figureground.storage import jsonlines
from figureground.training.order import generator_for
from tests.data.blobs import same
from tests.stages.labelled import write_labelled
from tests.stages.pools import write_pool

BRIEF = ["augment.short_sides=[56, 64]", "batch_size=2", "steps=2", "checkpoint_every=1", "optimiser.warmup=0"]
LIGHT = ["detector.layers=1", "detector.width=16"]
# All that lies above nothing is found.
EAGER = ["detector.candidate_threshold=0", "detector.score_threshold=0", "detector.min_areas=[0, 0, 0, 0, 0]"]
EMBEDDINGS = ["detector.embedding_weight=4"]


def brief(labels: Path, *assignments: str, **options: Any) -> TrainConfig:
    return configure(labels, (), [*BRIEF, *LIGHT, *assignments], recipe="tiny", detector="solov2", **options)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    labels = write_labelled(folder / "drawn", 3)
    run(brief(labels), folder / "run")
    run(brief(labels, *EAGER), folder / "eager")
    return folder


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    run(brief(write_labelled(folder / "drawn", 3), *EMBEDDINGS), folder / "run")
    return folder


def test_it_trains_and_predicts(learned: Path) -> None:
    log = jsonlines.read(learned / "run" / "log.jsonl")
    losses = [entry["losses"] for entry in log if "losses" in entry]
    assert len(losses) == 2
    assert losses[0].keys() == {"category", "max_projection", "average_projection", "pairwise"}
    assert (learned / "run" / "report.html").is_file()
    assert int(detectors.load(learned / "run" / "detector.safetensors").steps) == 2
    found = predict_stage.configure(learned / "run", [str(learned / "drawn" / "photos")], score_threshold=0.0)
    predict_stage.run(found, learned / "found")
    assert len(json.loads((learned / "found" / "annotations.json").read_text())["images"]) == 3


def test_a_training_may_begin_with_another_s_end(learned: Path, tmp_path: Path) -> None:
    labels = learned / "drawn" / "run"
    still = ["steps=1", "optimiser.rate=1e-300", "ema=null"]
    config = brief(labels, *still, init=str(learned / "run"))
    after = detectors.load(run(config, tmp_path / "run").detector)
    before = detectors.load(learned / "run" / "detector.safetensors")
    assert int(after.steps) == 3
    assert after.cells.kernel.weight.equal(before.cells.kernel.weight)


class TestRounds:
    """FreeSOLO's: one, which begins anew and learns from what was found, alone."""

    def test_settings(self) -> None:
        first = settings_of("small", {"detector": "solov2"})
        assert first.detector.grids == (24, 20, 16, 12, 8)
        assert later(first) == first
        rounds = build(RoundsConfig, settings_of_rounds(first.replace(init="timm/resnet18.a1_in1k")))
        assert (rounds.rounds, rounds.thresholds, rounds.afresh) == (1, (0.3,), True)
        assert (rounds.merge.keep_older, rounds.merge.nms, rounds.merge.max_width) == (False, None, 0.95)
        assert (rounds.predict.max_detections, rounds.train.init) == (20, "timm/resnet18.a1_in1k")
        assert build(RoundsConfig, settings_of_rounds(settings_of("small", {}))).merge.keep_older

    def test_it_begins_anew(self, learned: Path, tmp_path: Path) -> None:
        """A round whose rate is nothing ends with the first weights of the seed."""
        still = ["train.steps=1", "train.optimiser.rate=1e-300", "train.ema=null", "thresholds=[0.0]"]
        found = ["predict.score_threshold=0.0", "train.detector.candidate_threshold=0"]
        config = self_train.configure(learned / "eager", None, (), [*still, *found])
        result = self_train.run(config, tmp_path / "rounds")
        [counts] = result.rounds
        assert counts["kept"] == 0
        assert counts["replaced"] > 0
        assert counts["added"] > 0
        after = detectors.load(result.detector).state_dict()
        anew = detectors.create(config.train.detector, generator_for(0, "weights")).state_dict()
        assert all(torch.equal(value, after[name]) for name, value in anew.items() if name != "steps")
        assert json.loads((tmp_path / "rounds" / "round-1" / "train" / "config.json").read_text())["init"] is None

    def test_a_detector_that_finds_nothing(self, learned: Path, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"Round 1 has nothing to learn from.*less than 0\.3.*\n.*keep_older"):
            self_train.run(self_train.configure(learned / "run"), tmp_path / "rounds")

    def test_learn(self, learned: Path, tmp_path: Path) -> None:
        wanted = [f"train.{each}" for each in [*BRIEF, *EAGER, *LIGHT, "detector.detector=solov2", *EMBEDDINGS]]
        wanted += ["self_train.thresholds=[0.0]", "self_train.predict.score_threshold=0", "label.size=64"]
        photos = str(learned / "drawn" / "photos")
        result = learn.run(learn.configure([photos], wanted, recipe="tiny", method="centred_box"), tmp_path / "run")
        assert len(result.rounds) == 1
        assert list((tmp_path / "run" / "round-1" / "train" / "embeddings").glob("*.npy"))


class TestEmbeddings:
    def test_they_are_those_of_the_annotations(self, embedded: Path) -> None:
        log = jsonlines.read(embedded / "run" / "log.jsonl")
        [losses, _] = [entry["losses"] for entry in log if "losses" in entry]
        assert losses.keys() == {"category", "max_projection", "average_projection", "pairwise", "embedding"}
        assert 0 < losses["embedding"] <= 8
        labels = LabelFile(embedded / "drawn" / "run" / "annotations.json")
        [file] = (embedded / "run" / "embeddings").iterdir()
        found, embedder = np.load(file), make_embedder(BackboneConfig(), *EmbedderConfig().seen(), "cpu")
        expected = [
            embedder.embed(
                decode(embedded / "drawn" / "photos" / labelled["file_name"])[0],
                [entry["segmentation"] for entry in labelled["annotations"]],
            )
            for labelled in labels
        ]
        np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-3)
        assert detectors.load(embedded / "run" / "detector.safetensors").config.embedding == found.shape[1]

    def test_a_start_that_was_stopped_goes_on(self, embedded: Path, tmp_path: Path, monkeypatch) -> None:
        labels = LabelFile(embedded / "drawn" / "run" / "annotations.json")
        arguments = labels, embedded / "drawn" / "photos", EmbedderConfig(), "cpu", tmp_path / "embeddings" / "one.npy"
        monkeypatch.setattr("figureground.stages.instance_embeddings._SHARD", 1)
        looked: list[Path] = []

        def stopping(path: Path) -> Any:
            looked.append(path)
            if len(looked) == 2:
                raise KeyboardInterrupt
            return decode(path)

        monkeypatch.setattr("figureground.stages.instance_embeddings.decode", stopping)
        with pytest.raises(KeyboardInterrupt):
            embed_labels(*arguments)
        assert not arguments[-1].exists()
        embed_labels(*arguments)
        assert [path.name for path in looked] == ["000.png", "001.png", "001.png", "002.png"]
        [file] = (embedded / "run" / "embeddings").iterdir()
        assert file.read_bytes() == arguments[-1].read_bytes()
        assert [path.name for path in (tmp_path / "embeddings").iterdir()] == ["one.npy"]
        embed_labels(*arguments)
        assert len(looked) == 4

    def test_an_image_that_cannot_be_looked_at(self, tmp_path: Path) -> None:
        """Its rows are there, of zeros, so that the others keep their places."""
        labels = LabelFile(write_labelled(tmp_path / "drawn", 3, objects=2) / "annotations.json")
        (tmp_path / "drawn" / "photos" / "001.png").write_bytes(b"no image")
        embed_labels(labels, tmp_path / "drawn" / "photos", EmbedderConfig(), "cpu", tmp_path / "all.npy")
        assert np.load(tmp_path / "all.npy").any(1).tolist() == [True, True, False, False, True, True]

    def test_another_width(self, embedded: Path, tmp_path: Path) -> None:
        labels = embedded / "drawn" / "run"
        with pytest.raises(UsageError, match=r"detector\.embedding is 128, and handcrafted describes objects by 48"):
            run(brief(labels, *EMBEDDINGS, "detector.embedding=128"), tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestExemplars:
    def test_they_are_learned_beside(self, embedded: Path, tmp_path: Path) -> None:
        labels = embedded / "drawn" / "run"
        pool = write_pool(labels, tmp_path / "pool")
        wanted = [*EMBEDDINGS, f"exemplars={pool}", "exemplar.alpha=-1", "exemplar.beta=-1", "steps=1"]
        result = run(brief(labels, *wanted), tmp_path / "run")
        # Every exemplar is a positive one and none a negative one: nothing to be told from.
        assert result.losses["exemplar"] == 0
        assert "exemplars" not in detectors.load(result.detector).state_dict()
        # A pool that was changed is another one; one that was moved is not.
        pool.rename(tmp_path / "moved")
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert len(config["exemplars_digest"]) > 8
        moved = build(TrainConfig, config | {"exemplars": str(tmp_path / "moved")})
        assert run(moved, tmp_path / "run").resumed == 1
        next((tmp_path / "moved" / "exemplars").glob("*/*.png")).unlink()
        with pytest.raises(ConfigError, match="exemplars_digest: "):
            run(moved, tmp_path / "run")

    def test_of_another_backbone(self, embedded: Path, tmp_path: Path) -> None:
        labels = embedded / "drawn" / "run"
        pool = write_pool(labels, tmp_path / "pool")
        with pytest.raises(ConfigError, match="image of 480 px, but instances by handcrafted, crop of 64 px"):
            run(
                brief(labels, *EMBEDDINGS, f"exemplars={pool}", "embedder.view=crop", "embedder.size=64"),
                tmp_path / "run",
            )
        with pytest.raises(ConfigError, match=r"solov2 learns no embeddings.*\n.*freesolo_paper"):
            run(brief(labels, f"exemplars={pool}"), tmp_path / "run")
        with pytest.raises(UsageError, match="no pool of exemplars"):
            run(brief(labels, *EMBEDDINGS, f"exemplars={tmp_path}"), tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestRecipes:
    def test_published_values(self, learned: Path) -> None:
        labels = learned / "drawn" / "run"
        config = configure(labels, recipe="freesolo")
        optimiser, detector = config.optimiser, config.detector
        assert (optimiser.rate, optimiser.milestones, config.steps, config.batch_size) == (0.001, (), 30_000, 16)
        assert (detector.detector, detector.backbone.arch, detector.embedding_weight) == ("solov2", "resnet101", 0)
        strong = config.augment.strong
        assert strong is not None
        assert (strong.brightness, strong.contrast, strong.saturation, strong.hue) == (0.4, 0.4, 0.4, 0.1)
        assert (strong.jitter, strong.grey, strong.blur, strong.blur_sigma) == (0.8, 0.2, 0.5, (0.1, 2.0))
        assert [each.probability for each in strong.erase] == [0.7, 0.5, 0.3]
        paper = configure(labels, recipe="freesolo_paper")
        assert paper.detector.embedding_weight == 4
        assert paper.replace(recipe="freesolo", detector=detector.model_dump()) == config
        assert configure(labels, recipe="tiny").augment.strong is None

    def test_two_views_of_each_image(self, learned: Path) -> None:
        """The strongly varied ones stand first, and only they get objects of others."""
        config = brief(learned / "drawn" / "run", "augment.strong={}", "augment.short_sides=[64]")
        labels = PseudoLabels(Path(config.annotations), Path(config.images), config.labels, print)
        examples = Examples(labels, config.augment, config.copy_paste, 0, paste_later=False)
        alone = examples.augmentation.replace(strong=None)
        plain = Examples(labels, alone, None, 0, paste_later=False)
        images, targets, _ = examples.collate([examples(index, index) for index in range(3)])
        others, known, _ = plain.collate([plain(index, index) for index in range(3)])
        assert (len(images), len(targets)) == (6, 6)
        for place, (image, target) in enumerate(zip(others, known, strict=True)):
            assert images[3 + place].equal(image)
            assert same(targets[3 + place], target)
            assert images[place].shape == image.shape
            assert not images[place].equal(image)
            assert len(targets[place]["labels"]) > len(target["labels"])

    def test_it_learns_from_both(self, learned: Path, tmp_path: Path) -> None:
        result = run(brief(learned / "drawn" / "run", "augment.strong={}", "steps=1"), tmp_path / "run")
        assert result.losses.keys() == {"category", "max_projection", "average_projection", "pairwise"}
        assert (tmp_path / "run" / "report.html").is_file()
